package apply

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
)

// row is what the transaction has locked of a row of contents.
type row struct {
	level      string
	filename   string
	generation int64
	updated    time.Time
	locked     bool // by somebody else: nothing else is known of it
}

// seen tells whether the row is as the relocator saw it.
func (r *row) seen(e event.Relocated) bool {
	return r != nil && !r.locked && r.generation == e.Generation && r.level == e.From && r.filename == e.Filename
}

// asSeen tells whether each entry has a row of its own that is as the relocator saw it.
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

// decide says what becomes of each entry, in their order, and returns the moves in the order of their ids. rows and
// records are brought up to date as the moves will leave them; at is the time of the moves.
//
// An entry commits if the row is as the relocator saw it. The generation alone would do, were it not for rows that are
// written by hand, or removed and registered again: their level and name are compared as well. At most one entry of a
// content commits in a batch, because the relocator cannot have seen the row that this transaction makes.
//
// Else, an event in update_history that led to the same level was committed by an earlier delivery. One that led to
// another level had two moves: the newest event is appended again when a commit led elsewhere, and keeps its id.
//
// Everything else is superseded; so is a content that has no row any more.
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
				fmt.Errorf("it is in update_history as one of content %s", rec.id))
		case r != nil && r.locked:
			results[i].Err = fault.New(fault.Busy, "commit", "content "+e.ID.String(),
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
