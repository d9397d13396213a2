// Package apply commits relocations to MySQL: it applies a batch of entries of `relocated` in one transaction, and returns
// one result for each entry (step 6 of docs/design.md). It touches MySQL alone, writes no logs, and knows no Redis.
//
// An entry says: a complete copy of this item lies at To, and when the relocator looked the row up, it had this From, this
// filename and this generation. The row may name To only if that is still so. Every change of a row that matters raises the
// row's generation. So nothing is committed that was decided on an older row, and nothing is committed twice. A count that
// needed no move changes the row without raising its generation; the entry ids of the two counts tell which one is older.
package apply

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
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
	// maxRefused is how many entries are tried alone, and none is committed, before the server is taken to refuse all.
	maxRefused = 8
)

// Result is what became of one entry.
type Result struct {
	Outcome    event.Outcome // committed or superseded; "" where Err is set
	Again      bool          // an earlier delivery committed it, and this one changed nothing
	RowLevel   string        // the level that the row names afterwards; "" where there is no row
	Generation int64         // committed: the row's after that commit; superseded: the entry's
	At         time.Time     // of the commit, or of the refusal; UTC, whole microseconds

	// Err is a fault. It is Conflict or Unprocessable where this entry can never be committed, and Busy where another
	// transaction has locked the row or its new level. It is Unavailable where MySQL could not be asked, or did not say
	// whether it has committed. Else it is Internal. Only the first two say for certain that this entry has not been
	// committed.
	Err error
}

// Applier commits batches. Any number of them may work on one database.
type Applier struct {
	db     *sql.DB
	locked lockedLevels
}

// New takes the pool of a catalog, whose settings it relies on (rows found count as affected; times in UTC; READ
// COMMITTED).
func New(db *sql.DB) *Applier { return &Applier{db: db} }

// Apply commits the entries that can be committed, and returns one result for each entry, in their order. Entries that were
// committed before may be among them: update_history has them.
//
// A transaction that failed for something that passes is repeated a few times. One that failed for its data, or for a
// reason that nobody knows, is split, so that a bad entry fails alone. When MySQL is away or refuses all writes, the entries
// that were not reached share its error. Where a lock holds up a level, only the entries of that level wait.
func (a *Applier) Apply(ctx context.Context, entries []event.Relocated) []Result {
	results := make([]Result, len(entries))
	free := make([]int, 0, len(entries))
	trials := map[string][]int{}
	waits := map[string]error{}
	for i, e := range entries {
		if _, asked := trials[e.To]; !asked && waits[e.To] == nil {
			if trial, err := a.locked.check(e.To); trial {
				trials[e.To] = nil
			} else {
				waits[e.To] = err
			}
		}
		switch _, trial := trials[e.To]; {
		case trial:
			trials[e.To] = append(trials[e.To], i)
		case waits[e.To] != nil:
			results[i].Err = waits[e.To]
		default:
			free = append(free, i)
		}
	}
	b := batch{Applier: a}
	if !b.part(ctx, entries, results, free) {
		for _, some := range trials {
			for _, i := range some {
				results[i].Err = results[free[len(free)-1]].Err
			}
		}
		return results
	}
	for _, some := range trials {
		b.part(ctx, entries, results, some)
	}
	return results
}

// batch is one call of Apply.
type batch struct {
	*Applier
	committed bool // a transaction of it has succeeded
	refused   int  // entries that were tried alone, and failed for a reason of the server
}

// part applies some of the entries.
func (b *batch) part(ctx context.Context, entries []event.Relocated, results []Result, some []int) bool {
	if len(some) == 0 {
		return true
	}
	es, rs := make([]event.Relocated, len(some)), make([]Result, len(some))
	for i, of := range some {
		es[i] = entries[of]
	}
	usable := b.apply(ctx, es, rs)
	for i, of := range some {
		results[of] = rs[i]
	}
	return usable
}

// apply fills results. It tells whether MySQL can be used; if not, what follows need not be tried.
func (b *batch) apply(ctx context.Context, entries []event.Relocated, results []Result) bool {
	decided, err := b.persist(ctx, entries)
	if err == nil {
		b.committed = true
		b.locked.free(entries)
		copy(results, decided)
		return true
	}
	if catalog.IsLocked(err) {
		return b.byLevel(ctx, entries, results, err)
	}
	unavailable, divisible := fault.Is(err, fault.Unavailable), catalog.Divisible(err)
	switch {
	case unavailable && !divisible:
		refuse(results, err)
		return false
	case len(entries) == 1:
		refuse(results, err)
		if unavailable {
			b.refused++
		}
		return b.committed || b.refused < maxRefused
	}
	half := len(entries) / 2
	if !b.apply(ctx, entries[:half], results[:half]) {
		refuse(results[half:], results[half-1].Err)
		return false
	}
	return b.apply(ctx, entries[half:], results[half:])
}

// byLevel applies the entries of each level alone, after a lock has held up all of them. Those of the level that is locked
// wait.
func (b *batch) byLevel(ctx context.Context, entries []event.Relocated, results []Result, err error) bool {
	levels := map[string][]int{}
	for i, e := range entries {
		levels[e.To] = append(levels[e.To], i)
	}
	if level := entries[0].To; len(levels) == 1 {
		var f *fault.Error
		if errors.As(err, &f) {
			err = f.Err
		}
		err = levelLocked(level, err)
		b.locked.lock(level, err)
		refuse(results, err)
		return true
	}
	usable := true
	for _, level := range slices.Sorted(maps.Keys(levels)) {
		usable = b.part(ctx, entries, results, levels[level]) && usable
	}
	return usable
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
		again := catalog.Retryable(err) && !catalog.IsLocked(err) || errors.Is(err, errMoved)
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
