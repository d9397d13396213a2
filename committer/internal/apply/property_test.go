package apply_test

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/tierflow/tierflow/committer/internal/apply"
	"github.com/tierflow/tierflow/shared/entryid"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
)

// model is what MySQL should hold: it applies one entry at a time.
type model struct {
	rows   map[item.ID]*modelRow
	events map[string]modelRecord
}

type modelRow struct {
	level      string
	generation int64
	countEntry string
}

type modelRecord struct {
	id    item.ID
	level string
}

// apply says what must become of an entry: an outcome, or refused.
func (m model) apply(e event.Relocated) (outcome event.Outcome, again, refused bool) {
	rec, recorded := m.events[e.EventID]
	row := m.rows[e.ID]
	switch {
	case recorded && rec.id != e.ID:
		return "", false, true
	case row != nil && row.generation == e.Generation && row.level == e.From && (e.CountEntry == "" || !entryid.Newer(row.countEntry, e.CountEntry)):
		if e.To == "nowhere" {
			return "", false, true
		}
		row.level = e.To
		row.generation++
		if e.CountEntry != "" {
			row.countEntry = e.CountEntry
		}
		m.events[e.EventID] = modelRecord{e.ID, e.To}
		return event.OutcomeCommitted, false, false
	case recorded && rec.level == e.To:
		return event.OutcomeCommitted, true, false
	}
	return event.OutcomeSuperseded, false, false
}

// The test applies batches of good, bad, old, repeated and contradictory entries, with releases, settled counts and
// restarts between them. MySQL ends as if each entry had been applied alone, in its turn. No older count replaces a newer
// one.
func TestABatchDoesWhatItsEntriesWouldDoOneByOne(t *testing.T) {
	const items = 4
	d := newDatabase(t, 0)
	a := apply.New(d.DB())
	rapid.Check(t, func(t *rapid.T) {
		d.exec("DELETE FROM contents")
		d.exec("DELETE FROM update_history")
		m := model{map[item.ID]*modelRow{}, map[string]modelRecord{}}
		for id := item.ID(1); id <= items; id++ {
			d.exec("INSERT INTO contents (cid, content_level, filename) VALUES (?, 'bronze', ?)", id, filename(id))
			m.rows[id] = &modelRow{level: "bronze"}
		}
		var sent []event.Relocated
		for range rapid.IntRange(1, 8).Draw(t, "batches") {
			if rapid.Bool().Draw(t, "a release begins") {
				id := item.ID(rapid.IntRange(1, items).Draw(t, "of"))
				d.exec("UPDATE contents SET generation = generation + 1 WHERE cid = ?", id)
				m.rows[id].generation++
			}
			if rapid.Bool().Draw(t, "a count settles in place") {
				id := item.ID(rapid.IntRange(1, items).Draw(t, "of"))
				if entry := drawEntry(t); !entryid.Newer(m.rows[id].countEntry, entry) {
					d.exec("UPDATE contents SET count_entry = ? WHERE cid = ?", entry, id)
					m.rows[id].countEntry = entry
				}
			}
			batch := draw(t, m, sent)
			was := map[item.ID]string{}
			for id, row := range m.rows {
				was[id] = row.countEntry
			}
			sent = append(sent, batch...)
			results := a.Apply(t.Context(), batch)
			for i, e := range batch {
				outcome, again, refused := m.apply(e)
				r := results[i]
				if r.Outcome != outcome || r.Again != again || (r.Err != nil) != refused {
					t.Fatalf("entry %d, %+v:\ngot %+v, want %s, again %v, refused %v", i, e, r, outcome, again, refused)
				}
			}
			for id := item.ID(1); id <= items; id++ {
				r, want := d.row(id), *m.rows[id]
				if r.Level != want.level || r.Generation != want.generation || r.CountEntry != want.countEntry {
					t.Fatalf("item %s: %+v; want %+v", id, r, want)
				}
				if entryid.Newer(was[id], r.CountEntry) {
					t.Fatalf("item %s: the count of %s replaced that of %s", id, r.CountEntry, was[id])
				}
			}
			var n int
			if err := d.DB().QueryRow("SELECT COUNT(*) FROM update_history").Scan(&n); err != nil || n != len(m.events) {
				t.Fatalf("%d rows of history, want %d (%v)", n, len(m.events), err)
			}
		}
	})
}

// drawEntry makes the id of an entry of views.
func drawEntry(t *rapid.T) string {
	return fmt.Sprintf("%d-0", rapid.SampledFrom([]int{8, 9, 10, 11, 99, 100}).Draw(t, "entry of views"))
}

// draw makes a batch. No entry has a generation that its own batch makes: the relocator cannot have seen it.
func draw(t *rapid.T, m model, sent []event.Relocated) []event.Relocated {
	batch := make([]event.Relocated, rapid.IntRange(1, 12).Draw(t, "entries"))
	for i := range batch {
		if len(sent) > 0 && rapid.IntRange(0, 3).Draw(t, "kind") == 0 {
			batch[i] = rapid.SampledFrom(sent).Draw(t, "sent before")
			continue
		}
		id := item.ID(rapid.IntRange(1, 5).Draw(t, "cid")) // 5 has no row
		e := relocated(rapid.IntRange(1, 30).Draw(t, "event"), id)
		e.To = rapid.SampledFrom([]string{"bronze", "silver", "gold", "gold", "nowhere"}).Draw(t, "to")
		if row := m.rows[id]; row != nil {
			e.From = row.level
			e.Generation = max(0, row.generation-int64(rapid.SampledFrom([]int{0, 0, 0, 1, 2}).Draw(t, "behind")))
		}
		if rapid.IntRange(0, 9).Draw(t, "odd from") == 0 {
			e.From = rapid.SampledFrom([]string{"bronze", "silver", "gold"}).Draw(t, "from")
		}
		if e.From == e.To {
			e.To = "nowhere"
		}
		if rapid.IntRange(0, 3).Draw(t, "age") > 0 {
			e.CountEntry = drawEntry(t)
		}
		e.WorkerID = fmt.Sprint("w", i)
		batch[i] = e
	}
	return batch
}
