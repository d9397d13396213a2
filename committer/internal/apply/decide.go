package apply

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/tierflow/tierflow/shared/entryid"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
)

// row is a row of contents as the transaction has locked it.
type row struct {
	level      string
	filename   string
	generation int64
	updated    time.Time
	countEntry string
	locked     bool // by another transaction: the other fields are not known
}

// seen says whether the row is as the relocator saw it, and has no newer count. A count that needed no move does not raise
// the generation. An entry of a relocator that did not know of count_entry has no id to compare.
func (r *row) seen(e event.Relocated) bool {
	return r != nil && !r.locked && r.generation == e.Generation && r.level == e.From && r.filename == e.Filename &&
		(e.CountEntry == "" || !entryid.Newer(r.countEntry, e.CountEntry))
}

// asSeen says whether each entry has a row of its own, and each row is as the relocator saw it.
func asSeen(entries []event.Relocated, rows map[item.ID]*row) bool {
	return len(rows) == len(entries) && !slices.ContainsFunc(entries, func(e event.Relocated) bool { return !rows[e.ID].seen(e) })
}

// record is a row of update_history.
type record struct {
	id    item.ID
	level string // new_level
	at    time.Time
}

// move is one entry that commits.
type move struct {
	event.Relocated
	prevUpdate time.Time
	recorded   bool // update_history has a row of an earlier move of the same event
}

// decide returns the result of each entry, in their order, and the moves to write, in the order of their ids. It changes
// rows and records to what the moves will leave. at is the time of the moves.
//
// An entry commits if the row is as the relocator saw it. Level and filename are compared as well as the generation,
// because people write rows by hand, and delete and register items again. At most one entry of an item commits in a batch:
// the relocator cannot have seen the row that this transaction writes.
//
// Otherwise, update_history may have the event. With the same level, an earlier delivery has committed this entry. With
// another level, the event had two moves: the newest event keeps its id when it is appended again after a commit.
//
// Every other entry is superseded, and so is one whose item has no row any more.
func decide(entries []event.Relocated, rows map[item.ID]*row, records map[string]record, at time.Time) ([]Result, []move) {
	results := make([]Result, len(entries))
	moved := map[item.ID]bool{}
	var moves []move
	for i, e := range entries {
		r := rows[e.ID]
		rec, recorded := records[e.EventID]
		switch {
		case recorded && rec.id != e.ID:
			results[i].Err = fault.New(fault.Conflict, "commit", "event "+e.EventID,
				fmt.Errorf("it is in update_history as one of item %s", rec.id))
		case r != nil && r.locked:
			results[i].Err = fault.New(fault.Busy, "commit", "item "+e.ID.String(),
				fmt.Errorf("its row is locked by another transaction"))
		case !moved[e.ID] && r.seen(e):
			moves = append(moves, move{e, r.updated, recorded})
			moved[e.ID] = true
			r.level = e.To
			records[e.EventID] = record{e.ID, e.To, at}
			results[i] = Result{Outcome: event.OutcomeCommitted, Generation: e.Generation + 1, At: at}
		case recorded && rec.level == e.To:
			results[i] = Result{Outcome: event.OutcomeCommitted, Again: true, Generation: e.Generation + 1, At: rec.at}
		default:
			results[i] = Result{Outcome: event.OutcomeSuperseded, Generation: e.Generation, At: at}
		}
	}
	for i, e := range entries {
		if r := rows[e.ID]; r != nil && results[i].Err == nil {
			results[i].RowLevel = r.level
		}
	}
	slices.SortFunc(moves, func(a, b move) int { return cmp.Compare(a.ID, b.ID) })
	return results, moves
}
