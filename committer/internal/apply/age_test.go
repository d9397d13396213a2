package apply_test

import (
	"testing"

	"github.com/tierflow/tierflow/committer/internal/apply"
	"github.com/tierflow/tierflow/shared/event"
)

func TestAMoveCommitsUnlessTheRowHasANewerCount(t *testing.T) {
	for _, c := range []struct {
		name       string
		row, entry string // count_entry of both
		outcome    event.Outcome
		level      string
		after      string // count_entry of the row
	}{
		{"the row's count is newer", "10-0", "9-0", event.OutcomeSuperseded, "bronze", "10-0"},
		{"the row has the same count", "9-0", "9-0", event.OutcomeCommitted, "gold", "9-0"},
		{"the row's count is older", "9-5", "10-0", event.OutcomeCommitted, "gold", "10-0"},
		{"the age of the row's count is unknown", "", "9-0", event.OutcomeCommitted, "gold", "9-0"},
		{"the move is of a relocator that did not know of count_entry", "10-0", "", event.OutcomeCommitted, "gold", "10-0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDatabase(t, 1)
			d.exec("UPDATE contents SET view_count = 3, count_entry = ? WHERE cid = 1", c.row)
			e := relocated(1, 1)
			e.CountEntry = c.entry
			expectOutcome(t, apply.New(d.DB()).Apply(t.Context(), []event.Relocated{e})[0], c.outcome, c.level)
			count := e.Count
			if c.outcome == event.OutcomeSuperseded {
				count = 3
			}
			if r := d.row(1); r.CountEntry != c.after || r.ViewCount != count || r.Level != c.level {
				t.Errorf("row: %+v", r)
			}
		})
	}
}

func TestInABatchEveryRowGetsTheEntryOfItsOwnCount(t *testing.T) {
	d := newDatabase(t, 3)
	d.exec("UPDATE contents SET count_entry = '5-0'")
	es := []event.Relocated{relocated(1, 1), relocated(2, 2), relocated(3, 3)}
	es[0].CountEntry, es[2].CountEntry = "7-0", "6-0"
	for _, r := range apply.New(d.DB()).Apply(t.Context(), es) {
		expectOutcome(t, r, event.OutcomeCommitted, "gold")
	}
	for i, want := range []string{"7-0", "5-0", "6-0"} {
		if got := d.row(es[i].ID).CountEntry; got != want {
			t.Errorf("item %s: %s, want %s", es[i].ID, got, want)
		}
	}
}
