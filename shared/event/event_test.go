package event_test

import (
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
)

const uuid = "019aad2b-7f00-7abc-8def-0123456789ab"

// hostile has bytes that a careless reader takes for a field, a new line or the end of a text.
const hostile = "a \"b\"\\ posted_at\r\n\x00\xff😀"

var (
	began = time.Date(2026, 11, 22, 1, 2, 3, 456789000, time.UTC)
	ended = began.Add(90 * time.Second)

	view = event.View{EventID: uuid, ID: 7, Count: 1964, Target: "silver", DBLevel: "bronze", Filename: "g.mp4", PostedAt: began}

	relocated = event.Relocated{
		EventID: uuid, ID: 7, From: "bronze", To: "silver", Filename: "g.mp4", Generation: 3, Count: 1964, Bytes: 1 << 40,
		Digest: "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", Method: "copy", WorkerID: "w1",
		StartedAt: began, FinishedAt: ended, CountEntry: "1795392109598-0", Rule: "hysteresis",
	}
	committed = event.Committed{
		EventID: uuid, ID: 7, From: "bronze", To: "silver", Filename: "g.mp4", Generation: 4, Outcome: event.OutcomeCommitted, CommittedAt: ended,
	}
	failure = event.Failure{
		Stage: "relocate", Reason: "conflict", Error: "publish g.mp4: the name is taken", Attempts: 1,
		SourceStream: "tierflow:views", SourceID: "1795392109598-0", FailedAt: ended,
	}
)

// values returns an entry's fields as Redis returns them.
func values(fields []string) map[string]string {
	m := map[string]string{}
	for i := 0; i < len(fields); i += 2 {
		m[fields[i]] = fields[i+1]
	}
	return m
}

// with returns a copy in which one field has another value, or is missing.
func with(m map[string]string, field, value string, missing bool) map[string]string {
	m = maps.Clone(m)
	m[field] = value
	if missing {
		delete(m, field)
	}
	return m
}

// The golden files have the entries that other versions and other programs write.
func TestTheFieldsOfEntriesHaveNotChanged(t *testing.T) {
	dead := slices.Concat(event.Ordered(values(view.Fields())), failure.Fields())
	for name, fields := range map[string][]string{
		"view": view.Fields(), "relocated": relocated.Fields(), "committed": committed.Fields(), "dead": dead,
	} {
		var b strings.Builder
		for i := 0; i < len(fields); i += 2 {
			b.WriteString(fields[i] + "=" + fields[i+1] + "\n")
		}
		want, err := os.ReadFile("testdata/" + name + ".golden")
		if err != nil {
			t.Fatal(err)
		}
		if b.String() != string(want) {
			t.Errorf("%s:\n%s, not\n%s", name, b.String(), want)
		}
	}
}

func TestEntriesAreReadAsTheyWereWritten(t *testing.T) {
	v := view
	v.Filename, v.Count, v.ID = hostile, math.MaxInt64, math.MaxInt64
	if got, err := event.ParseView(values(v.Fields())); err != nil || got != v {
		t.Errorf("%+v, %v", got, err)
	}
	r := relocated
	r.Filename, r.Digest, r.Bytes, r.Generation, r.CountEntry = hostile, "", 0, math.MaxInt64, "18446744073709551615-18446744073709551615"
	for _, r := range []event.Relocated{relocated, r} {
		if got, err := event.ParseRelocated(values(r.Fields())); err != nil || got != r {
			t.Errorf("%+v, %v", got, err)
		}
	}
	stray := event.Committed{ID: 7, To: "silver", Filename: hostile, Outcome: event.OutcomeStray, CommittedAt: ended}
	superseded := committed
	superseded.Outcome = event.OutcomeSuperseded
	for _, c := range []event.Committed{committed, stray, superseded} {
		if got, err := event.ParseCommitted(values(c.Fields())); err != nil || got != c {
			t.Errorf("%+v, %v", got, err)
		}
	}
	f := failure
	f.Error = ""
	for _, f := range []event.Failure{failure, f} {
		entry := values(relocated.Fields())
		all := maps.Clone(entry)
		maps.Copy(all, values(f.Fields()))
		got, rest, err := event.ParseDead(all)
		if err != nil || got != f || !maps.Equal(rest, entry) {
			t.Errorf("%+v, %v, %v", got, rest, err)
		}
	}
}

func TestUnknownFieldsAreIgnored(t *testing.T) {
	if got, err := event.ParseView(with(values(view.Fields()), "colour", "blue", false)); err != nil || got != view {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestTheOutcomeSaysWhichCopyIsReleased(t *testing.T) {
	for outcome, want := range map[event.Outcome]string{
		event.OutcomeCommitted: "bronze", event.OutcomeSuperseded: "silver", event.OutcomeStray: "silver",
	} {
		c := committed
		c.Outcome = outcome
		if got := c.Clears(); got != want {
			t.Errorf("%s releases the copy on %s", outcome, got)
		}
	}
}

func TestAMalformedFieldIsNamed(t *testing.T) {
	notIDs := []string{"", "0", "07", "-7", "x", "9223372036854775808"}
	notCounts := []string{"", "-1", "01", "x", "9223372036854775808"}
	notNumbers := []string{"", "x", "1.5", "9223372036854775808"}
	notTimes := []string{"", "now", "2026-11-22", "2026-13-22T01:02:03Z", "2026-11-22T01:02:03"}
	notUUIDs := []string{"x", uuid[:35], uuid + "0", strings.ToUpper(uuid), strings.Replace(uuid, "-", "_", 1), "../../../../../etc/passwd/1234567890a"}
	empty := []string{""}

	parseView := func(m map[string]string) error { _, err := event.ParseView(m); return err }
	parseRelocated := func(m map[string]string) error { _, err := event.ParseRelocated(m); return err }
	parseCommitted := func(m map[string]string) error { _, err := event.ParseCommitted(m); return err }
	parseDead := func(m map[string]string) error { _, _, err := event.ParseDead(m); return err }
	for _, e := range []struct {
		name     string
		good     map[string]string
		parse    func(map[string]string) error
		bad      map[string][]string
		optional []string
	}{
		{"view", values(view.Fields()), parseView, map[string][]string{
			"event_id": append(notUUIDs, ""), "cid": notIDs, "count": notCounts, "target": empty, "db_level": empty, "filename": empty, "posted_at": notTimes,
		}, nil},
		{"relocated", values(relocated.Fields()), parseRelocated, map[string][]string{
			"event_id": append(notUUIDs, ""), "cid": notIDs, "from": empty, "to": empty, "filename": empty, "generation": notNumbers, "count": notCounts,
			"bytes": notNumbers, "method": empty, "worker_id": empty, "started_at": notTimes, "finished_at": notTimes,
			"count_entry": {"x", "1", "1-", "-1", "1-0-0", "01-0", "18446744073709551616-0", "1-0 "},
		}, []string{"digest", "count_entry"}},
		{"committed", values(committed.Fields()), parseCommitted, map[string][]string{
			"event_id": notUUIDs, "cid": notIDs, "from": empty, "to": empty, "filename": empty, "generation": notNumbers,
			"outcome": {"", "lost", "Committed"}, "committed_at": notTimes,
		}, []string{"event_id"}},
		{"stray", with(values(committed.Fields()), "outcome", "stray", false), parseCommitted, map[string][]string{"to": empty}, []string{"event_id", "from"}},
		{"dead", values(slices.Concat(view.Fields(), failure.Fields())), parseDead, map[string][]string{
			"stage": empty, "reason": empty, "attempts": notNumbers, "source_stream": empty, "source_id": empty, "failed_at": notTimes,
		}, []string{"error"}},
	} {
		t.Run(e.name, func(t *testing.T) {
			if err := e.parse(e.good); err != nil {
				t.Fatal(err)
			}
			for field, bads := range e.bad {
				for _, bad := range bads {
					err := e.parse(with(e.good, field, bad, bad == ""))
					if !fault.Is(err, fault.Malformed) || !strings.Contains(err.Error(), "field "+field+":") {
						t.Errorf("%s %q: %v", field, bad, err)
					}
				}
			}
			for _, field := range e.optional {
				if err := e.parse(with(e.good, field, "", true)); err != nil {
					t.Errorf("without %s: %v", field, err)
				}
			}
		})
	}
}

func TestAnEmptyEntryIsMalformed(t *testing.T) {
	for _, m := range []map[string]string{nil, {}, {"": ""}} {
		if _, err := event.ParseView(m); !fault.Is(err, fault.Malformed) {
			t.Errorf("%v", err)
		}
		if _, err := event.ParseCommitted(m); !fault.Is(err, fault.Malformed) {
			t.Errorf("%v", err)
		}
	}
}

func TestTimesAreUTCWithMicroseconds(t *testing.T) {
	zone := time.FixedZone("", 5*3600+1800)
	for in, want := range map[time.Time]string{
		began:                             "2026-11-22T01:02:03.456789Z",
		began.In(zone):                    "2026-11-22T01:02:03.456789Z",
		began.Add(999):                    "2026-11-22T01:02:03.456789Z",
		time.Unix(0, 0):                   "1970-01-01T00:00:00.000000Z",
		began.Truncate(time.Second).UTC(): "2026-11-22T01:02:03.000000Z",
	} {
		if got := event.FormatTime(in); got != want {
			t.Errorf("%s, not %s", got, want)
		}
	}
}

func TestOrderedPutsKnownFieldsFirstAndTheOthersByName(t *testing.T) {
	m := values(view.Fields())
	m["zebra"], m["ant"] = "z", "a"
	want := append(slices.Clone(view.Fields()), "ant", "a", "zebra", "z")
	for range 20 {
		if got := event.Ordered(m); !slices.Equal(got, want) {
			t.Fatalf("%v, not %v", got, want)
		}
	}
	for _, fields := range [][]string{relocated.Fields(), committed.Fields()} {
		if got := values(event.Ordered(values(fields))); !maps.Equal(got, values(fields)) {
			t.Errorf("%v", got)
		}
	}
}

func FuzzAnEntryThatCanBeReadIsTheSameAfterAWriteAndARead(f *testing.F) {
	f.Add("event_id", uuid, "filename", hostile, "posted_at", "2026-11-22T01:02:03.4Z")
	f.Add("count", "0", "generation", "-5", "finished_at", "9999-12-31T23:59:59-23:59")
	f.Add("outcome", "stray", "from", "", "committed_at", "2026-11-22t01:02:03z")
	base := map[string]string{}
	for _, fields := range [][]string{view.Fields(), relocated.Fields(), committed.Fields(), failure.Fields()} {
		maps.Copy(base, values(fields))
	}
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2, k3, v3 string) {
		m := maps.Clone(base)
		m[k1], m[k2], m[k3] = v1, v2, v3
		if v, err := event.ParseView(m); err == nil {
			if again, err := event.ParseView(values(v.Fields())); err != nil || !slices.Equal(again.Fields(), v.Fields()) {
				t.Errorf("%+v, then %+v, %v", v, again, err)
			}
		}
		if r, err := event.ParseRelocated(m); err == nil {
			if again, err := event.ParseRelocated(values(r.Fields())); err != nil || !slices.Equal(again.Fields(), r.Fields()) {
				t.Errorf("%+v, then %+v, %v", r, again, err)
			}
		}
		if c, err := event.ParseCommitted(m); err == nil {
			if again, err := event.ParseCommitted(values(c.Fields())); err != nil || !slices.Equal(again.Fields(), c.Fields()) {
				t.Errorf("%+v, then %+v, %v", c, again, err)
			}
		}
		if d, entry, err := event.ParseDead(m); err == nil {
			all := values(slices.Concat(event.Ordered(entry), d.Fields()))
			again, rest, err := event.ParseDead(all)
			if err != nil || !slices.Equal(again.Fields(), d.Fields()) || !maps.Equal(rest, entry) {
				t.Errorf("%+v, then %+v, %v", d, again, err)
			}
		}
	})
}
