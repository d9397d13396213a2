// Package apply commits relocations to MySQL: it applies a batch of entries of `relocated` in one transaction, and returns
// one result for each entry (step 6 of docs/design.md). It touches MySQL alone, writes no logs, and knows no Redis.
//
// An entry says: a complete copy of this item lies at To, and when the relocator looked the row up, it had this From, this
// filename and this generation. The row may name To only if that is still so. Every change of a row that matters raises the
// row's generation. So nothing is committed that was decided on an older row, and nothing is committed twice.
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
	// maxTries of one transaction in one call of Apply.
	maxTries = 5
	// firstWait follows the first try; it doubles after each.
	firstWait = 10 * time.Millisecond
)

// Result is what became of one entry.
type Result struct {
	Outcome    event.Outcome // committed or superseded; "" where Err is set
	Again      bool          // an earlier delivery committed it, and this one changed nothing
	RowLevel   string        // the level that the row names afterwards; "" where there is no row
	Generation int64         // committed: the row's after that commit; superseded: the entry's
	At         time.Time     // of the commit, or of the refusal; UTC, whole microseconds

	// Err is a fault: Conflict or Unprocessable where this entry can never be committed; Busy where
	// another transaction has locked the row; Unavailable where MySQL is away, or did not say whether it has
	// committed; else Internal. Only the first two say for certain that this entry has not been committed.
	Err error
}

// Applier commits batches. Any number of Appliers may work on one database.
type Applier struct{ db *sql.DB }

// New makes an Applier. db must be the pool of a catalog: its sessions count rows that are found as affected, have times in
// UTC, and are READ COMMITTED.
func New(db *sql.DB) *Applier { return &Applier{db} }

// Apply commits the entries that can be committed, and returns one result for each entry, in their order. Entries that were
// committed before may be among them: update_history has them.
//
// Apply repeats a transaction that failed for a reason that passes by itself, such as a deadlock. It splits a transaction
// that failed for its data, so that a bad entry fails alone. When MySQL is away, all entries that are left have its error.
func (a *Applier) Apply(ctx context.Context, entries []event.Relocated) []Result {
	results := make([]Result, len(entries))
	if len(entries) > 0 {
		a.apply(ctx, entries, results)
	}
	return results
}

// apply fills results in. false: MySQL is away, and the caller need not try more.
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

// persist runs the transaction until it succeeds, or fails for a reason that does not pass by itself.
func (a *Applier) persist(ctx context.Context, entries []event.Relocated) ([]Result, error) {
	for try := 1; ; try++ {
		results, err := a.transact(ctx, entries)
		if err == nil {
			return results, nil
		}
		again := catalog.Retryable(err) || errors.Is(err, errMoved)
		if !again || try == maxTries || ctx.Err() != nil {
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

// explain makes a fault of the server's error.
func explain(entries []event.Relocated, err error) error {
	subject := fmt.Sprintf("%d relocations", len(entries))
	if len(entries) == 1 {
		e := entries[0]
		subject = fmt.Sprintf("item %s from %s to %s", e.ID, e.From, e.To)
	}
	if errors.Is(err, errMoved) {
		return fault.New(fault.Unavailable, "commit", subject, err)
	}
	return catalog.Wrap("commit", subject, err)
}
