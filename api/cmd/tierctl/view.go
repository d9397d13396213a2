package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/tierflow/tierflow/api/client"
)

// view prints answers, as JSON or as tables.
type view struct {
	out  io.Writer
	json bool
}

// answer prints an answer of the api as it is, where that is wanted.
func (v view) answer(body []byte) {
	if body = bytes.TrimRight(body, "\n"); v.json && len(body) > 0 {
		fmt.Fprintf(v.out, "%s\n", body)
	}
}

// done prints that a call without an answer has succeeded.
func (v view) done(err error) error {
	if err == nil && !v.json {
		_, err = fmt.Fprintln(v.out, "done")
	}
	return err
}

func showItems(t *table, a client.Items) {
	t.row("CID", "LEVEL", "COUNT", "TARGET", "BYTES", "PINNED", "FILENAME")
	for _, i := range a.Contents {
		count, target := i.ViewCount, ""
		if i.State != nil {
			count, target = i.State.Count, i.State.Target
		}
		t.row(i.CID, i.Level, count, target, i.SizeBytes, or(i.PinnedLevel), i.Filename)
	}
	if a.NextAfter != nil {
		t.note("there are more: --after %d", *a.NextAfter)
	}
}

func showItem(t *table, i client.Item) {
	t.row("cid", i.CID)
	t.row("filename", i.Filename)
	t.row("level", i.Level)
	path := "-"
	if i.Location != nil {
		path = i.Location.Path
	}
	t.row("path", path)
	t.row("pinned", or(i.PinnedLevel))
	if i.PinnedUntil != nil {
		t.row("pinned until", *i.PinnedUntil)
	}
	if s := i.State; s != nil {
		t.row("newest count", fmt.Sprintf("%d, target %s, %s, %s", s.Count, s.Target, s.Status, s.UpdatedAt))
	}
	t.row("last settled count", i.ViewCount)
	t.row("last copy", fmt.Sprintf("%d bytes, %s", i.SizeBytes, i.Digest))
	t.row("generation", i.Generation)
	t.row("registered", i.GenerateTime)
	t.row("moved", i.UpdateTime)
}

func showLocation(t *table, l client.Location) { t.row(l.Level, l.Path) }

func showHistory(t *table, a client.History) {
	t.row("TIME", "FROM", "TO", "COUNT", "BYTES", "TOOK", "WORKER")
	for _, m := range a.History {
		t.row(m.UpdateTime, m.OldLevel, m.NewLevel, m.ViewCount, m.Bytes, fmt.Sprintf("%.3fs", float64(m.DurationUS)/1e6), m.WorkerID)
	}
	if a.NextBefore != nil {
		t.note("there are more: --before %d", *a.NextBefore)
	}
}

func showAccepted(t *table, a client.Accepted) { t.row("accepted", a.Status, a.Target, a.EventID) }

func showPlan(t *table, a client.Plan) {
	t.row("FROM", "TO", "ITEMS", "BYTES")
	for _, m := range a.Moves {
		t.row(m.From, m.To, m.Items, m.Bytes)
		if m.Unsized > 0 {
			t.note("the size of %d items from %s to %s is not known", m.Unsized, plain(m.From), plain(m.To))
		}
	}
	for _, l := range a.Levels {
		t.note("%s has %d items of %d bytes, then %d of %d", plain(l.Level), l.Items, l.Bytes, l.ItemsAfter, l.BytesAfter)
	}
}

func showLevels(t *table, a client.Levels) {
	t.row("LEVEL", "FROM", "TO", "ITEMS", "PATH")
	for _, l := range a.Levels {
		t.row(l.Level, l.MinCounts, or(l.MaxCounts), or(l.Contents), l.Path)
		if l.DemoteCounts != nil {
			t.note("%s keeps an item until its count is below %d", plain(l.Level), *l.DemoteCounts)
		}
		if l.MinResidency != 0 {
			t.note("%s keeps an item for %s after it came", plain(l.Level), time.Duration(l.MinResidency)*time.Second)
		}
		if l.State != "" {
			t.note("%s is %s", plain(l.Level), plain(l.State))
		}
	}
	if a.Mode != "" {
		t.note("the mode is %s: nothing moves", plain(a.Mode))
	}
}

func showRelocations(t *table, a client.Relocations) {
	t.row("CID", "COUNT", "FROM", "TO", "BYTES", "OF", "TRIED", "WORKER", "FILENAME")
	for _, r := range a.Relocations {
		t.row(r.CID, r.Count, r.From, r.To, or(r.BytesDone), or(r.BytesTotal), r.Deliveries, r.WorkerID, r.Filename)
	}
	if a.NextAfter != nil {
		t.note("there are more: --after %s", *a.NextAfter)
	}
	paused := ""
	if a.Paused {
		paused = "; relocations are paused"
	}
	t.note("%d entries of all streams are not settled%s", a.Unsettled, paused)
	for _, u := range a.Unreachable {
		t.note("entries wait for a relocator that reaches %s: none does (%s)", plain(strings.Join(u.Tiers, " and ")), plain(u.SeenAt))
	}
}

func showWaiting(t *table, a client.Waiting) {
	t.row("CID", "STREAM", "ENTRY", "REASON", "SINCE", "FAILED", "NEXT TRY", "WORKER", "ERROR")
	for _, w := range a.Waiting {
		t.row(w.CID, w.Stream, w.EntryID, w.Reason, w.Since, w.Attempts, or(w.NextTry), w.WorkerID, w.Error)
	}
	counts := ""
	for _, reason := range slices.Sorted(maps.Keys(a.ByReason)) {
		counts += fmt.Sprintf(", %s %d", plain(reason), a.ByReason[reason])
	}
	t.note("%d entries wait%s", a.Total, counts)
}

func showDeadLetters(t *table, a client.DeadLetters) {
	t.row("ID", "CID", "STAGE", "REASON", "TRIED", "SEEN", "FAILED", "FILENAME", "ERROR")
	for _, d := range a.Dead {
		t.row(d.ID, d.Entry["cid"], d.Stage, d.Reason, d.Attempts, d.Times, d.FailedAt, d.Entry["filename"], d.Error)
	}
	if a.NextAfter != nil {
		t.note("there are more: --after %s", *a.NextAfter)
	}
}

func showRetried(t *table, r client.Retried) { t.row("appended", r.EntryID, r.EventID) }

func showPaused(t *table, p client.Paused) {
	if p.Paused {
		t.row("relocations are paused")
		for _, w := range p.WaitingFor {
			t.note("relocator %s has not answered, and may still begin moves", plain(w))
		}
	} else {
		t.row("relocations go on")
	}
}

// event prints one event on a line.
func (v view) event(e client.Event) error {
	if v.json {
		text, err := json.Marshal(e)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(v.out, "%s\n", text)
		return err
	}
	var d map[string]string
	if err := json.Unmarshal(e.Data, &d); err != nil {
		return fmt.Errorf("an event of %s cannot be read: %w", e.Event, err)
	}
	first := func(names ...string) string {
		for _, n := range names {
			if d[n] != "" {
				return d[n]
			}
		}
		return "-"
	}
	what := map[string]string{
		"views":     fmt.Sprintf("count %s, on %s, target %s", d["count"], d["db_level"], d["target"]),
		"relocated": fmt.Sprintf("%s to %s, %s bytes by %s, %s", d["from"], d["to"], d["bytes"], d["method"], d["worker_id"]),
		"committed": fmt.Sprintf("%s, %s to %s", d["outcome"], first("from"), d["to"]),
		"progress":  fmt.Sprintf("%s to %s, %s of %s bytes", d["from"], d["to"], d["bytes_done"], d["bytes_total"]),
		"dead":      fmt.Sprintf("%s: %s: %s", d["stage"], d["reason"], d["error"]),
		"slow":      d["why"],
		"reset":     d["why"],
	}[e.Event]
	_, err := fmt.Fprintf(v.out, "%s  %-9s  %s %s  %s\n", first("posted_at", "finished_at", "committed_at", "failed_at", "updated_at"), e.Event,
		plain(d["cid"]), plain(d["filename"]), plain(what))
	return err
}

// clear clears the screen of a terminal.
func (v view) clear() {
	f, ok := v.out.(*os.File)
	if !ok || v.json {
		return
	}
	if info, err := f.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		fmt.Fprint(f, "\x1b[H\x1b[2J")
	}
}

// table prints the rows and notes that fill adds.
func (v view) table(fill func(*table)) error {
	t := &table{w: tabwriter.NewWriter(v.out, 0, 0, 2, ' ', 0)}
	fill(t)
	if err := t.w.Flush(); err != nil {
		return err
	}
	_, err := io.WriteString(v.out, t.notes)
	return err
}

type table struct {
	w     *tabwriter.Writer
	notes string
}

// row adds a line. The flush reports its error.
func (t *table) row(cells ...any) {
	texts := make([]string, len(cells))
	for i, c := range cells {
		texts[i] = plain(fmt.Sprint(c))
	}
	fmt.Fprintln(t.w, strings.Join(texts, "\t"))
}

func (t *table) note(format string, args ...any) { t.notes += fmt.Sprintf(format, args...) + "\n" }

// or is the value that p points to, "-" for nil.
func or[T any](p *T) string {
	if p == nil {
		return "-"
	}
	return fmt.Sprint(*p)
}

// plain quotes a text that could control a terminal or break a table.
func plain(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}
