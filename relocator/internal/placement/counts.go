package placement

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/entryid"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
)

// maxCounts is how many rows one statement gives their counts. The server finds the count of a row by going through the
// counts of the others.
const maxCounts = 100

var errLostLock = errors.New("the item's lock is somebody else's")

// newCount asks to write the count of an event that needs no move. The row is as it was looked up, entry is the id of the
// event's entry, and the token is that of the item's lock.
type newCount struct {
	row   catalog.Row
	count item.Count
	entry string
	token state.Token
}

// SetCount writes the count of an event that needs no move, and the id of the event's entry with it. It writes only over an
// older count. The first count of a row raises the generation: moves that were emitted before it cannot be compared by age.
//
// The error is of kind fault.Busy where the row is not as it was looked up, or has a newer count by now. It is also Busy
// where another transaction has locked the row: to wait would hold up the other rows of the batch. It is of kind fault.Lost
// where the lock was lost before.
func (r *Rows) SetCount(ctx context.Context, row catalog.Row, count item.Count, entry string, token state.Token) error {
	if row.CountEntry == entry {
		return nil // an earlier attempt has written it
	}
	failed, err := r.counts.Do(ctx, newCount{row, count, entry, token})
	if err != nil {
		return err
	}
	return failed
}

// setCounts checks the locks, and then writes the counts whose writers still have the lock. A lock that is still there
// after the look-up shows that Redis was not wiped before it: the entry id and the row's are comparable.
func (r *Rows) setCounts(counts []newCount) []error {
	errs := make([]error, len(counts))
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	ids := make([]item.ID, len(counts))
	for i, c := range counts {
		ids[i] = c.row.ID
	}
	holders, err := r.store.Holders(ctx, ids)
	if err != nil {
		for i := range errs {
			errs[i] = err
		}
		return errs
	}
	var held []newCount
	var at []int // where in counts
	for i, c := range counts {
		if holders[i] != c.token {
			errs[i] = fault.New(fault.Lost, "write count", c.row.ID.String(), errLostLock)
			continue
		}
		held, at = append(held, c), append(at, i)
	}
	for i, err := range r.writeCounts(held) {
		errs[at[i]] = err
	}
	return errs
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
		var todo []Count
		for i, c := range counts {
			now, ok := locked[c.row.ID]
			switch {
			case !ok:
				errs[i] = fault.New(fault.Busy, "write count", c.row.ID.String(), errLocked)
			case now.Generation != c.row.Generation || now.Level != c.row.Level || now.Filename != c.row.Filename ||
				entryid.Newer(now.CountEntry, c.entry):
				errs[i] = fault.New(fault.Busy, "write count", c.row.ID.String(), ErrChanged)
			default:
				todo = append(todo, Count{now, c.count, c.entry})
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

func updateCounts(ctx context.Context, tx *sql.Tx, counts []Count) error {
	var values, entries, ids, first []any
	for _, c := range counts {
		id := int64(c.Row.ID)
		values, entries, ids = append(values, id, int64(c.Count)), append(entries, id, c.Entry), append(ids, id)
		if c.Row.CountEntry == "" {
			first = append(first, id)
		}
	}
	raise := ""
	if len(first) > 0 { // in the same statement: a second one would cost a round trip
		raise = ", generation = CASE WHEN cid IN (" + placeholders(len(first)) + ") THEN generation + 1 ELSE generation END"
	}
	cases := strings.Repeat(" WHEN ? THEN ?", len(counts))
	_, err := tx.ExecContext(ctx, "UPDATE contents SET view_count = CASE cid"+cases+" END, count_entry = CASE cid"+cases+" END"+raise+
		" WHERE cid IN ("+placeholders(len(counts))+")", slices.Concat(values, entries, first, ids)...)
	return err
}

// Count is a count to write into a row that is locked.
type Count struct {
	Row   catalog.Row // as it is locked
	Count item.Count
	Entry string // id of the event's entry
}

// WriteCounts locks the rows of these items, without the items' locks, and writes the counts that choose returns for them, all
// in one transaction. choose gets the locked rows, by id, and the levels, both read afresh. A row that is missing, or that
// another transaction has locked, is not among them. The locks of the rows are the fence: nobody changes a row between its
// look-up and its write. So choose must be quick. The caller must have made sure that the row's count is not newer.
func (r *Rows) WriteCounts(ids []item.ID, choose func(context.Context, map[item.ID]catalog.Row, policy.Policy) ([]Count, error)) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	var levels policy.Policy
	var levelsErr error
	var reading sync.WaitGroup
	reading.Go(func() { levels, levelsErr = Levels(ctx, r.catalog) })
	defer reading.Wait()
	args := make([]any, len(ids))
	for i, id := range ids {
		args[i] = int64(id)
	}
	err := r.transact(args, func(ctx context.Context, tx *sql.Tx, locked map[item.ID]catalog.Row) error {
		reading.Wait()
		if levelsErr != nil {
			return levelsErr
		}
		counts, err := choose(ctx, locked, levels)
		for part := range slices.Chunk(counts, maxCounts) {
			if err == nil {
				err = updateCounts(ctx, tx, part)
			}
		}
		return err
	})
	return catalog.Wrap("write counts", "", err)
}

// ForgetEntry makes the age of a row's count unknown, where the row still is as it was looked up. It is for an entry id of a
// Redis that was wiped: every new id would be older, and no count would be taken any more.
func (r *Rows) ForgetEntry(ctx context.Context, row catalog.Row) error {
	_, err := r.catalog.DB().ExecContext(ctx, "UPDATE contents SET count_entry = '' WHERE cid = ? AND generation = ? AND count_entry = ?",
		int64(row.ID), row.Generation, row.CountEntry)
	if err != nil {
		return fault.New(catalog.Kind(err), "reset the age of the count of", row.ID.String(), err)
	}
	return nil
}
