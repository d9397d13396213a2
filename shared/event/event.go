// Package event is the contract between the services: the entries of the four streams and their fields.
// Every field is text that redis-cli shows. The package does not talk to Redis: entries are lists and maps of strings.
//
// A reader ignores a field that it does not know, so that fields can be added. A field that is missing or cannot be
// read is an error of kind fault.Malformed, which names the field.
package event

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/tierflow/tierflow/shared/entryid"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
)

// timeLayout is RFC 3339 with microseconds, always UTC.
const timeLayout = "2006-01-02T15:04:05.000000Z07:00"

// FormatTime writes a time as all of Redis and HTTP show it: RFC 3339, microseconds, UTC.
func FormatTime(t time.Time) string { return t.UTC().Format(timeLayout) }

// View is an entry of `views`: one accepted view count.
type View struct {
	EventID  string // UUIDv7, made by the api
	ID       item.ID
	Count    item.Count
	Target   string // level for the count when it was posted; the relocator decides again
	DBLevel  string // level in MySQL when it was posted
	Filename string
	PostedAt time.Time
}

// Fields returns the entry's fields and values, in the order of docs/formats.md.
func (v View) Fields() []string {
	return []string{
		"event_id", v.EventID, "cid", v.ID.String(), "count", v.Count.String(), "target", v.Target,
		"db_level", v.DBLevel, "filename", v.Filename, "posted_at", FormatTime(v.PostedAt),
	}
}

// ParseView reads an entry of `views`.
func ParseView(values map[string]string) (View, error) {
	p := parser{values: values}
	v := View{
		EventID: p.eventID(), ID: p.id(), Count: p.count(), Target: p.text("target"),
		DBLevel: p.text("db_level"), Filename: p.text("filename"), PostedAt: p.time("posted_at"),
	}
	return v, p.err
}

// Relocated is an entry of `relocated`: a copy at To is durable, and the row may name it.
type Relocated struct {
	EventID    string
	ID         item.ID
	From, To   string
	Filename   string
	Generation int64 // of the row when it was looked up: the commit's guard
	Count      item.Count
	Bytes      int64
	Digest     string // "sha256:<hex>", "" where the bytes were not read
	Method     string // link, clone, copy
	WorkerID   string
	StartedAt  time.Time
	FinishedAt time.Time
	CountEntry string // id in `views` of the entry whose count this is; "" from a relocator that did not know the field
	Rule       string // the policy.Reason of the decision; "" from a relocator that did not know the field
}

// Fields returns the entry's fields and values, in the order of docs/formats.md.
func (r Relocated) Fields() []string {
	return []string{
		"event_id", r.EventID, "cid", r.ID.String(), "from", r.From, "to", r.To, "filename", r.Filename,
		"generation", strconv.FormatInt(r.Generation, 10), "count", r.Count.String(),
		"bytes", strconv.FormatInt(r.Bytes, 10), "digest", r.Digest, "method", r.Method, "worker_id", r.WorkerID,
		"started_at", FormatTime(r.StartedAt), "finished_at", FormatTime(r.FinishedAt), "count_entry", r.CountEntry, "rule", r.Rule,
	}
}

// ParseRelocated reads an entry of `relocated`.
func ParseRelocated(values map[string]string) (Relocated, error) {
	p := parser{values: values}
	r := Relocated{
		EventID: p.eventID(), ID: p.id(), From: p.text("from"), To: p.text("to"), Filename: p.text("filename"),
		Generation: p.number("generation"), Count: p.count(), Bytes: p.number("bytes"), Digest: p.optional("digest"),
		Method: p.text("method"), WorkerID: p.text("worker_id"),
		StartedAt: p.time("started_at"), FinishedAt: p.time("finished_at"), CountEntry: p.optionalEntryID("count_entry"), Rule: p.optional("rule"),
	}
	return r, p.err
}

// Outcome says what became of a relocation, and so which copy the relocator releases.
type Outcome string

// Outcomes, and the copy that the relocator releases.
const (
	OutcomeCommitted  Outcome = "committed"  // the row names To: release From
	OutcomeSuperseded Outcome = "superseded" // the row had changed: release To
	OutcomeStray      Outcome = "stray"      // published, but not emitted: release To
)

// Committed is an entry of `committed`. It orders the release of one copy, and tells caches where the item is now.
type Committed struct {
	EventID     string
	ID          item.ID
	From, To    string
	Filename    string
	Generation  int64
	Outcome     Outcome
	CommittedAt time.Time
}

// Clears returns the level whose copy the relocator releases.
func (c Committed) Clears() string {
	if c.Outcome == OutcomeCommitted {
		return c.From
	}
	return c.To
}

// Fields returns the entry's fields and values, in the order of docs/formats.md.
func (c Committed) Fields() []string {
	return []string{
		"event_id", c.EventID, "cid", c.ID.String(), "from", c.From, "to", c.To, "filename", c.Filename,
		"generation", strconv.FormatInt(c.Generation, 10), "outcome", string(c.Outcome),
		"committed_at", FormatTime(c.CommittedAt),
	}
}

// ParseCommitted reads an entry of `committed`. A stray found by a sweep has no event, no from, no generation.
func ParseCommitted(values map[string]string) (Committed, error) {
	p := parser{values: values}
	c := Committed{
		EventID: p.optionalEventID(), ID: p.id(), From: p.optional("from"), To: p.text("to"),
		Filename: p.text("filename"), Generation: p.number("generation"), Outcome: Outcome(p.text("outcome")),
		CommittedAt: p.time("committed_at"),
	}
	if p.err == nil {
		switch c.Outcome {
		case OutcomeCommitted, OutcomeSuperseded, OutcomeStray:
		default:
			p.fail("outcome", fmt.Errorf("%q is none of committed, superseded, stray", c.Outcome))
		}
		if c.Clears() == "" {
			p.fail("from", fmt.Errorf("is empty, but outcome %s releases the copy there", c.Outcome))
		}
	}
	return c, p.err
}

// Failure is what an entry of `dead` has besides the fields of the entry that failed.
type Failure struct {
	Stage        string // relocate, commit, release
	Reason       string // a fault.Kind, or "exhausted"
	Error        string
	Attempts     int64
	SourceStream string // the stream's key
	SourceID     string
	FailedAt     time.Time
	// Redis adds these two when the dead letter is written. An older one has neither.
	Times         int64     // how many dead letters there have been, with this one, which has replaced the others. 0: unknown
	FirstFailedAt time.Time // FailedAt of the first of them
}

// Fields returns the fields that are appended to those of the failed entry, without those that Redis adds.
func (f Failure) Fields() []string {
	return []string{
		"stage", f.Stage, "reason", f.Reason, "error", f.Error, "attempts", strconv.FormatInt(f.Attempts, 10),
		"source_stream", f.SourceStream, "source_id", f.SourceID, "failed_at", FormatTime(f.FailedAt),
	}
}

// failureFields are the names of a Failure's fields. ParseDead separates them from the entry's own fields.
var failureFields = []string{"stage", "reason", "error", "attempts", "source_stream", "source_id", "failed_at", "times", "first_failed_at"}

// ParseDead reads an entry of `dead` into the failure and the fields of the entry that failed.
func ParseDead(values map[string]string) (Failure, map[string]string, error) {
	p := parser{values: values}
	f := Failure{
		Stage: p.text("stage"), Reason: p.text("reason"), Error: p.optional("error"), Attempts: p.number("attempts"),
		SourceStream: p.text("source_stream"), SourceID: p.text("source_id"), FailedAt: p.time("failed_at"),
	}
	if p.optional("times") != "" {
		f.Times, f.FirstFailedAt = p.number("times"), p.time("first_failed_at")
	}
	entry := maps.Clone(values)
	for _, k := range failureFields {
		delete(entry, k)
	}
	return f, entry, p.err
}

// order is the order of the fields in docs/formats.md, over all entries.
var order = []string{
	"event_id", "cid", "count", "target", "from", "to", "db_level", "filename", "generation", "bytes", "digest",
	"method", "worker_id", "started_at", "finished_at", "count_entry", "outcome", "committed_at", "posted_at",
}

// Ordered lists the fields and values of an entry in a fixed order, known fields first, so that two entries read
// alike in redis-cli.
func Ordered(values map[string]string) []string {
	fields := make([]string, 0, 2*len(values))
	for _, k := range order {
		if v, ok := values[k]; ok {
			fields = append(fields, k, v)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(values)) {
		if !slices.Contains(order, k) {
			fields = append(fields, k, values[k])
		}
	}
	return fields
}

// parser remembers the first field that could not be read.
type parser struct {
	values map[string]string
	err    error
}

func (p *parser) fail(field string, err error) {
	if p.err == nil {
		p.err = fault.New(fault.Malformed, "read entry: field", field, err)
	}
}

func (p *parser) optional(field string) string { return p.values[field] }

func (p *parser) text(field string) string {
	v := p.values[field]
	if v == "" {
		p.fail(field, fmt.Errorf("is missing or empty"))
	}
	return v
}

// eventID also becomes a part of file names, so every byte of it is checked.
func (p *parser) eventID() string {
	p.text("event_id")
	return p.optionalEventID()
}

func (p *parser) optionalEventID() string {
	v := p.optional("event_id")
	if v != "" && !ValidEventID(v) {
		p.fail("event_id", fmt.Errorf("%q is not a UUID", v))
	}
	return v
}

// ValidEventID reports whether s is a UUID of 36 characters, in lower case.
func ValidEventID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if i == 8 || i == 13 || i == 18 || i == 23 {
			if c != '-' {
				return false
			}
		} else if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// optionalEntryID also goes into a column of MySQL, so its form is checked.
func (p *parser) optionalEntryID(field string) string {
	v := p.optional(field)
	if v != "" && !entryid.Valid(v) {
		p.fail(field, fmt.Errorf("%q is not the id of an entry", v))
	}
	return v
}

func (p *parser) id() item.ID {
	id, err := item.ParseID(p.values["cid"])
	if err != nil {
		p.fail("cid", err)
	}
	return id
}

func (p *parser) count() item.Count {
	c, err := item.ParseCount(p.values["count"])
	if err != nil {
		p.fail("count", err)
	}
	return c
}

func (p *parser) number(field string) int64 {
	n, err := strconv.ParseInt(p.values[field], 10, 64)
	if err != nil {
		p.fail(field, fmt.Errorf("%q is not a number", p.values[field]))
	}
	return n
}

func (p *parser) time(field string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, p.values[field])
	t = t.UTC()
	if err != nil || t.Year() < 0 || t.Year() > 9999 { // in UTC, the year may be one that RFC 3339 cannot write
		p.fail(field, fmt.Errorf("%q is not an RFC 3339 time", p.values[field]))
	}
	return t
}
