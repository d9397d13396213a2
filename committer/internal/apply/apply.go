// Package apply commits relocations to MySQL: a batch of entries of `relocated`, one transaction, one outcome for
// each entry (protocol step 6). It knows neither Redis nor logs; it returns results.
//
// An entry says: a copy of this content lies at To, complete, and the row named From, this file name and this
// generation when I looked. The row may name To if that is still so, and every change of a row that counts raises
// its generation; so nobody commits what was decided on an older row, and nobody commits twice.
package apply

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
)

const (
	// tries of one transaction before it is given up for now, and the wait after the first; it doubles
	tries     = 5
	firstWait = 10 * time.Millisecond
)

// Result says what became of one entry.
type Result struct {
	Outcome    event.Outcome // committed or superseded; "" where Err is set
	Again      bool          // committed by an earlier delivery: this one changed nothing
	RowLevel   string        // the level that the row names now; "" where there is no row
	Generation int64         // committed: the row's after that commit; superseded: the entry's
	At         time.Time     // of the commit, or of the refusal; UTC, whole microseconds

	// Err is a fault: Conflict or Unprocessable where this entry can never be committed; Busy where
	// somebody else has locked the row; Unavailable where MySQL could not be asked, or did not say whether it has
	// committed; else Internal. Only the first two say for certain that this entry has not been committed.
	Err error
}

// Applier commits batches. Any number of them may work on one database.
type Applier struct{ db *sql.DB }

// New takes the pool of a catalog, whose settings it relies on (rows found count as affected; times in UTC; READ
// COMMITTED).
func New(db *sql.DB) *Applier { return &Applier{db} }

// Apply commits what can be committed and returns one result for each entry, in their order. It may be called again
// with entries that were committed before; they are found in update_history.
//
// A transaction that failed for something that passes is repeated a few times. One that failed for its data is split,
// so that a bad entry fails alone. When MySQL is away, the entries that were not reached share its error.
func (a *Applier) Apply(ctx context.Context, entries []event.Relocated) []Result {
	results := make([]Result, len(entries))
	if len(entries) > 0 {
		a.apply(ctx, entries, results)
	}
	return results
}

// apply fills results. It tells whether MySQL can be used; if not, what follows need not be tried.
func (a *Applier) apply(ctx context.Context, entries []event.Relocated, results []Result) bool {
	decided, err := a.persist(ctx, entries)
	if err == nil {
		copy(results, decided)
		return true
	}
	away := fault.Is(err, fault.Unavailable)
	if away || len(entries) == 1 {
		refuse(results, err)
		return !away
	}
	half := len(entries) / 2
	if !a.apply(ctx, entries[:half], results[:half]) {
		refuse(results[half:], results[half-1].Err)
		return false
	}
	return a.apply(ctx, entries[half:], results[half:])
}

func refuse(results []Result, err error) {
	for i := range results {
		results[i] = Result{Err: err}
	}
}

// persist runs the transaction until it succeeds, or fails for something that does not pass by itself.
func (a *Applier) persist(ctx context.Context, entries []event.Relocated) ([]Result, error) {
	for try := 1; ; try++ {
		results, err := a.transact(ctx, entries)
		if err == nil {
			return results, nil
		}
		again := catalog.Retryable(err) || errors.Is(err, errMoved)
		if !again || try == tries || ctx.Err() != nil {
			return nil, explain(entries, err)
		}
		wait := firstWait << (try - 1)
		select {
		case <-ctx.Done():
			return nil, explain(entries, err)
		case <-time.After(wait/2 + rand.N(wait)):
		}
	}
}

// explain makes a fault of what the server said.
func explain(entries []event.Relocated, err error) error {
	subject := fmt.Sprintf("%d relocations", len(entries))
	if len(entries) == 1 {
		e := entries[0]
		subject = fmt.Sprintf("content %s from %s to %s", e.ID, e.From, e.To)
	}
	if errors.Is(err, errMoved) {
		return fault.New(fault.Unavailable, "commit", subject, err)
	}
	return catalog.Wrap("commit", subject, err)
}
