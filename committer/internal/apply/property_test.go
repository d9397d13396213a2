package apply_test

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/tierflow/tierflow/committer/internal/apply"
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
	case row != nil && row.generation == e.Generation && row.level == e.From:
		if e.To == "nowhere" {
			return "", false, true
		}
		row.level = e.To
		row.generation++
		m.events[e.EventID] = modelRecord{e.ID, e.To}
		return event.OutcomeCommitted, false, false
	case recorded && rec.level == e.To:
		return event.OutcomeCommitted, true, false
	}
	return event.OutcomeSuperseded, false, false
}

// Batches of good, bad, old, repeated and contradictory entries, with releases and restarts between them: MySQL ends as
// if each entry had been applied alone, in its turn.
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
			batch := draw(t, m, sent)
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
				if r, want := d.row(id), *m.rows[id]; r.Level != want.level || r.Generation != want.generation {
					t.Fatalf("item %s: %s, %d; want %+v", id, r.Level, r.Generation, want)
				}
			}
			var n int
			if err := d.DB().QueryRow("SELECT COUNT(*) FROM update_history").Scan(&n); err != nil || n != len(m.events) {
				t.Fatalf("%d rows of history, want %d (%v)", n, len(m.events), err)
			}
		}
	})
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
		e.WorkerID = fmt.Sprint("w", i)
		batch[i] = e
	}
	return batch
}
