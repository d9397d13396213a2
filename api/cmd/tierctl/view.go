package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode"
)

// view prints answers: as JSON, or as tables for people.
type view struct {
	out  io.Writer
	json bool
}

// happening is one server-sent event.
type happening struct {
	Event string          `json:"event"`
	ID    string          `json:"id,omitempty"`
	Data  json.RawMessage `json:"data"`
}

// content is what is shown of a content.
type contentAnswer struct {
	CID          int64   `json:"cid"`
	Level        string  `json:"level"`
	Filename     string  `json:"filename"`
	Generation   int64   `json:"generation"`
	ViewCount    int64   `json:"view_count"`
	SizeBytes    int64   `json:"size_bytes"`
	Digest       string  `json:"digest"`
	PinnedLevel  *string `json:"pinned_level"`
	GenerateTime string  `json:"generate_time"`
	UpdateTime   string  `json:"update_time"`
	State        *struct {
		Count     int64  `json:"count"`
		Target    string `json:"target"`
		Status    string `json:"status"`
		UpdatedAt string `json:"updated_at"`
	} `json:"state"`
	Location locationAnswer `json:"location"`
}

type locationAnswer struct {
	Level string `json:"level"`
	Path  string `json:"path"`
}

func (v view) contents(body []byte) error {
	var a struct {
		Contents  []contentAnswer `json:"contents"`
		NextAfter *int64          `json:"next_after"`
	}
	return v.table(body, &a, func(t *table) {
		t.row("CID", "LEVEL", "COUNT", "TARGET", "BYTES", "PINNED", "FILENAME")
		for _, c := range a.Contents {
			count, target := c.ViewCount, ""
			if c.State != nil {
				count, target = c.State.Count, c.State.Target
			}
			t.row(c.CID, c.Level, count, target, c.SizeBytes, or(c.PinnedLevel), c.Filename)
		}
		if a.NextAfter != nil {
			t.note("there are more: --after %d", *a.NextAfter)
		}
	})
}

func (v view) content(body []byte) error {
	var c contentAnswer
	return v.table(body, &c, func(t *table) {
		t.row("cid", c.CID)
		t.row("filename", c.Filename)
		t.row("level", c.Level)
		t.row("path", c.Location.Path)
		t.row("pinned", or(c.PinnedLevel))
		if c.State != nil {
			t.row("newest count", fmt.Sprintf("%d, calls for %s, %s, %s", c.State.Count, c.State.Target, c.State.Status, c.State.UpdatedAt))
		}
		t.row("last settled count", c.ViewCount)
		t.row("last copy", fmt.Sprintf("%d bytes, %s", c.SizeBytes, c.Digest))
		t.row("generation", c.Generation)
		t.row("registered", c.GenerateTime)
		t.row("moved", c.UpdateTime)
	})
}

func (v view) location(body []byte) error {
	var a locationAnswer
	return v.table(body, &a, func(t *table) { t.row(a.Level, a.Path) })
}

func (v view) history(body []byte) error {
	var a struct {
		History []struct {
			OldLevel   string `json:"old_level"`
			NewLevel   string `json:"new_level"`
			UpdateTime string `json:"update_time"`
			ViewCount  int64  `json:"view_count"`
			Bytes      int64  `json:"bytes"`
			DurationUS int64  `json:"duration_us"`
			WorkerID   string `json:"worker_id"`
		} `json:"history"`
	}
	return v.table(body, &a, func(t *table) {
		t.row("TIME", "FROM", "TO", "COUNT", "BYTES", "TOOK", "WORKER")
		for _, h := range a.History {
			t.row(h.UpdateTime, h.OldLevel, h.NewLevel, h.ViewCount, h.Bytes, fmt.Sprintf("%.3fs", float64(h.DurationUS)/1e6), h.WorkerID)
		}
	})
}

func (v view) accepted(body []byte) error {
	var a struct {
		EventID string `json:"event_id"`
		Status  string `json:"status"`
		Target  string `json:"target"`
	}
	return v.table(body, &a, func(t *table) { t.row("accepted", a.Status, a.Target, a.EventID) })
}

func (v view) levels(body []byte) error {
	var a struct {
		Levels []struct {
			Level     string `json:"level"`
			MinCounts int64  `json:"min_counts"`
			MaxCounts *int64 `json:"max_counts"`
			Path      string `json:"path"`
			Contents  *int64 `json:"contents"`
		} `json:"levels"`
	}
	return v.table(body, &a, func(t *table) {
		t.row("LEVEL", "FROM", "TO", "CONTENTS", "PATH")
		for _, l := range a.Levels {
			t.row(l.Level, l.MinCounts, or(l.MaxCounts), or(l.Contents), l.Path)
		}
	})
}

func (v view) relocations(body []byte) error {
	var a struct {
		Relocations []struct {
			CID        int64  `json:"cid"`
			Count      int64  `json:"count"`
			Filename   string `json:"filename"`
			From       string `json:"from"`
			To         string `json:"to"`
			WorkerID   string `json:"worker_id"`
			Deliveries int64  `json:"deliveries"`
			Moving     bool   `json:"moving"`
			BytesDone  *int64 `json:"bytes_done"`
			BytesTotal *int64 `json:"bytes_total"`
		} `json:"relocations"`
		Unsettled int64 `json:"unsettled"`
		Paused    bool  `json:"paused"`
	}
	return v.table(body, &a, func(t *table) {
		t.row("CID", "COUNT", "FROM", "TO", "BYTES", "OF", "TRIED", "WORKER", "FILENAME")
		for _, r := range a.Relocations {
			t.row(r.CID, r.Count, r.From, r.To, or(r.BytesDone), or(r.BytesTotal), r.Deliveries, r.WorkerID, r.Filename)
		}
		paused := ""
		if a.Paused {
			paused = "; relocations are paused"
		}
		t.note("%d view events are not settled%s", a.Unsettled, paused)
	})
}

func (v view) dead(body []byte) error {
	var a struct {
		Dead []struct {
			ID       string            `json:"id"`
			Stage    string            `json:"stage"`
			Reason   string            `json:"reason"`
			Error    string            `json:"error"`
			Attempts int64             `json:"attempts"`
			FailedAt string            `json:"failed_at"`
			Entry    map[string]string `json:"entry"`
		} `json:"dead"`
		NextAfter *string `json:"next_after"`
	}
	return v.table(body, &a, func(t *table) {
		t.row("ID", "CID", "STAGE", "REASON", "TRIED", "FAILED", "FILENAME", "ERROR")
		for _, d := range a.Dead {
			t.row(d.ID, d.Entry["cid"], d.Stage, d.Reason, d.Attempts, d.FailedAt, d.Entry["filename"], d.Error)
		}
		if a.NextAfter != nil {
			t.note("there are more: --after %s", *a.NextAfter)
		}
	})
}

func (v view) retried(body []byte) error {
	var a struct {
		EventID string `json:"event_id"`
		EntryID string `json:"entry_id"`
	}
	return v.table(body, &a, func(t *table) { t.row("appended", a.EntryID, a.EventID) })
}

func (v view) paused(body []byte) error {
	var a struct {
		Paused bool `json:"paused"`
	}
	return v.table(body, &a, func(t *table) {
		if a.Paused {
			t.row("relocations are paused")
		} else {
			t.row("relocations go on")
		}
	})
}

func (v view) done([]byte) error {
	_, err := fmt.Fprintln(v.out, "done")
	return err
}

// happened prints one event on a line.
func (v view) happened(e happening) error {
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
		"views":     fmt.Sprintf("count %s, %s, calls for %s", d["count"], d["db_level"], d["target"]),
		"relocated": fmt.Sprintf("%s to %s, %s bytes by %s, %s", d["from"], d["to"], d["bytes"], d["method"], d["worker_id"]),
		"committed": fmt.Sprintf("%s, %s to %s", d["outcome"], first("from"), d["to"]),
		"progress":  fmt.Sprintf("%s to %s, %s of %s bytes", d["from"], d["to"], d["bytes_done"], d["bytes_total"]),
		"dead":      fmt.Sprintf("%s: %s: %s", d["stage"], d["reason"], d["error"]),
	}[e.Event]
	_, err := fmt.Fprintf(v.out, "%s  %-9s  %s %s  %s\n", first("posted_at", "finished_at", "committed_at", "failed_at", "updated_at"), e.Event,
		plain(d["cid"]), plain(d["filename"]), plain(what))
	return err
}

// clear empties a terminal's screen.
func (v view) clear() {
	f, ok := v.out.(*os.File)
	if !ok || v.json {
		return
	}
	if info, err := f.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		fmt.Fprint(f, "\x1b[H\x1b[2J")
	}
}

// table reads an answer into a and prints what fill makes of it.
func (v view) table(body []byte, a any, fill func(*table)) error {
	if err := json.Unmarshal(body, a); err != nil {
		return fmt.Errorf("the answer cannot be read: %w: is this Tierflow's api?", err)
	}
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

// row adds a line; an error shows at the flush.
func (t *table) row(cells ...any) {
	texts := make([]string, len(cells))
	for i, c := range cells {
		texts[i] = plain(fmt.Sprint(c))
	}
	fmt.Fprintln(t.w, strings.Join(texts, "\t"))
}

func (t *table) note(format string, args ...any) { t.notes += fmt.Sprintf(format, args...) + "\n" }

// or is what a value points to, "-" where there is none.
func or[T any](p *T) string {
	if p == nil {
		return "-"
	}
	return fmt.Sprint(*p)
}

// plain keeps what names and errors hold from steering a terminal, or breaking a table.
func plain(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}
