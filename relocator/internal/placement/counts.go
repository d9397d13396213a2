package placement

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
)

const (
	// maxCounts is how many rows one statement gives their counts. The server finds the count of a row by going through
	// the counts of the others.
	maxCounts = 100
	// maxCorrections bounds how often a count is corrected: newer ones may come all the time.
	maxCorrections = 5
	correctionWait = 10 * time.Millisecond
)

// newCount asks to write the count of an event that needs no move. The row is as it was looked up. The token is that of
// the item's lock.
type newCount struct {
	row   catalog.Row
	count item.Count
	token state.Token
}

// SetCount writes the count of an event that needs no move. The item's state in Redis has the count too, but expires.
//
// The error is of kind fault.Busy where the row is not as it was looked up, or another transaction has locked it: to wait
// would hold up the other rows of the batch.
func (r *Rows) SetCount(ctx context.Context, row catalog.Row, count item.Count, token state.Token) error {
	if row.ViewCount == count {
		return nil
	}
	failed, err := r.counts.Do(ctx, newCount{row, count, token})
	if err != nil {
		return err
	}
	return failed
}

// setCounts writes counts, and then looks whether the items still have the locks under which it has written. As long as a
// lock lasts, newer events of its item wait. A worker that was paused for longer may have written an old count over that
// of another worker. It then writes the newest count instead.
func (r *Rows) setCounts(counts []newCount) []error {
	errs := r.writeCounts(counts)
	var written []newCount
	for i, c := range counts {
		if errs[i] == nil {
			c.row.ViewCount = c.count
			written = append(written, c)
		}
	}
	lost := r.withLostLock(written)
	for try := 0; try < maxCorrections && len(lost) > 0; try++ {
		if try > 0 {
			time.Sleep(correctionWait)
		}
		lost = r.correct(lost)
	}
	return errs
}

// withLostLock returns the counts whose lock is somebody else's by now, or may be.
func (r *Rows) withLostLock(written []newCount) (lost []newCount) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	holders, err := r.store.Holders(ctx, idsOf(written))
	for i, w := range written {
		if err != nil || holders[i] != w.token {
			lost = append(lost, w)
		}
	}
	return lost
}

// correct writes the counts of the newest events where they differ, and returns those that must be compared once more.
func (r *Rows) correct(written []newCount) (again []newCount) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	states, err := r.store.GetMany(ctx, idsOf(written))
	if err != nil {
		return written
	}
	var newer []newCount
	for i, w := range written {
		if st := states[i]; st != nil && st.Count != w.row.ViewCount {
			w.count = st.Count
			newer = append(newer, w)
		}
	}
	for i, err := range r.writeCounts(newer) {
		w := newer[i]
		switch {
		case err == nil:
			w.row.ViewCount = w.count
		case errors.Is(err, ErrChanged): // another worker has written, and corrects its count as well
			continue
		}
		again = append(again, w)
	}
	return again
}

func idsOf(counts []newCount) []item.ID {
	ids := make([]item.ID, len(counts))
	for i, c := range counts {
		ids[i] = c.row.ID
	}
	return ids
}

func (r *Rows) writeCounts(counts []newCount) []error {
	errs := make([]error, len(counts))
	if len(counts) == 0 {
		return errs
	}
	ids := make([]any, len(counts))
	for i, c := range counts {
		ids[i] = int64(c.row.ID)
	}
	err := r.transact(ids, func(ctx context.Context, tx *sql.Tx, locked map[item.ID]catalog.Row) error {
		var todo []newCount
		for i, c := range counts {
			switch now, ok := locked[c.row.ID]; {
			case !ok:
				errs[i] = fault.New(fault.Busy, "write count", c.row.ID.String(), errLocked)
			case now.Level != c.row.Level || now.ViewCount != c.row.ViewCount:
				errs[i] = fault.New(fault.Busy, "write count", c.row.ID.String(), ErrChanged)
			default:
				todo = append(todo, c)
				delete(locked, c.row.ID) // one count for each item
			}
		}
		for part := range slices.Chunk(todo, maxCounts) {
			if err := updateCounts(ctx, tx, part); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		for i, c := range counts {
			errs[i] = fault.New(catalog.Kind(err), "write count", c.row.ID.String(), err)
		}
	}
	return errs
}

func updateCounts(ctx context.Context, tx *sql.Tx, counts []newCount) error {
	var choices, ids []any
	for _, c := range counts {
		choices, ids = append(choices, int64(c.row.ID), int64(c.count)), append(ids, int64(c.row.ID))
	}
	_, err := tx.ExecContext(ctx, "UPDATE contents SET view_count = CASE cid"+strings.Repeat(" WHEN ? THEN ?", len(counts))+
		" END WHERE cid IN ("+placeholders(len(counts))+")", append(choices, ids...)...)
	return err
}
