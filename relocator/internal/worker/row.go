package worker

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tierflow/tierflow/shared/batch"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
)

const (
	// rowsMost bounds how many rows one statement reads or raises.
	rowsMost = 256
	// countsMost is how many rows one statement gives their counts: the server finds a row's by going through the others'.
	countsMost = 100
	// looksMost bounds how often a count is written anew, because newer ones may come all the time.
	looksMost = 5
	lookAgain = 10 * time.Millisecond
	// rowsTimeout is for a statement whose callers have all given up.
	rowsTimeout = 10 * time.Second
)

// rows looks contents up, writes counts and raises generations. What is asked at the same time is one trip to MySQL, which begins
// after it was asked.
type rows struct {
	catalog *catalog.Catalog
	store   *state.Store
	finds   *batch.Runner[item.ID, found]
	counts  *batch.Runner[counted, error]
	raises  *batch.Runner[raise, raised]
}

// found is the answer to one look-up: the row and the levels as they are now.
type found struct {
	row    catalog.Row
	policy policy.Policy
	err    error
}

// counted asks to write the count of an event that needs no move. The row is the one that was looked up, the token that of the
// content's lock.
type counted struct {
	row   catalog.Row
	count item.Count
	token state.Token
}

// raise asks to begin the release of a content's copy on a level. The row is the one that was looked up.
type raise struct {
	row   catalog.Row
	level string
}

// raised is its answer. The row is as the statement has locked it, its generation as it has left it.
type raised struct {
	begun bool
	row   catalog.Row // only ID, Level, Filename, Updated, Generation, ViewCount and Digest
	err   error
}

func newRows(c *catalog.Catalog, s *state.Store) *rows {
	r := &rows{catalog: c, store: s}
	r.finds = batch.New(rowsMost, r.findAll)
	r.counts = batch.New(rowsMost, r.countAll)
	r.raises = batch.New(rowsMost, r.raiseAll)
	return r
}

// find reads a row, fault.Unknown where there is none, and the levels, afresh: an event that asks for a change of levels to
// be applied must not meet the old ones. A level that the row names is among them, if it exists.
func (r *rows) find(ctx context.Context, id item.ID) (catalog.Row, policy.Policy, error) {
	f, err := r.finds.Do(ctx, id)
	if err == nil {
		err = f.err
	}
	return f.row, f.policy, err
}

func (r *rows) findAll(ids []item.ID) []found {
	ctx, cancel := context.WithTimeout(context.Background(), rowsTimeout)
	defer cancel()
	fs := make([]found, len(ids))
	var p policy.Policy
	var perr error
	var levels sync.WaitGroup
	levels.Go(func() { p, perr = readPolicy(ctx, r.catalog) })
	there, err := r.catalog.Contents(ctx, ids)
	levels.Wait()
	for _, row := range there {
		if perr == nil && !p.Knows(row.Item(row.ViewCount)) { // a level was made between the two
			p, perr = readPolicy(ctx, r.catalog)
			break
		}
	}
	if err == nil {
		err = perr
	}
	for i, id := range ids {
		row, ok := there[id]
		switch {
		case err != nil:
			fs[i].err = err
		case !ok:
			fs[i].err = catalog.Wrap("look up content", id.String(), sql.ErrNoRows)
		default:
			fs[i] = found{row: row, policy: p}
		}
	}
	return fs
}

// readPolicy reads the levels. A table that is no valid policy is for an operator to mend; no event is at fault for it.
func readPolicy(ctx context.Context, c *catalog.Catalog) (policy.Policy, error) {
	p, err := c.Policy(ctx)
	if fault.Is(err, fault.Unprocessable) {
		return p, fault.New(fault.Unavailable, "read levels", "", err)
	}
	return p, err
}

// setCount writes the count of an event that needs no move, as a commit does for one that does: the state has it too, but
// expires. The row must be as it was looked up, and nobody may have it locked, because it must not hold up the others; else
// the error is fault.Busy.
func (r *rows) setCount(ctx context.Context, row catalog.Row, count item.Count, token state.Token) error {
	if row.ViewCount == count {
		return nil
	}
	failed, err := r.counts.Do(ctx, counted{row, count, token})
	if err != nil {
		return err
	}
	return failed
}

// countAll writes counts, and looks afterwards whether the contents' locks still are those they were written under. While a
// lock lasts, newer events of its content come later. Who was paused for longer may have written an old count over that of
// another worker: it writes the newest one instead.
func (r *rows) countAll(asked []counted) []error {
	errs := r.writeCounts(asked)
	var written []counted
	for i, a := range asked {
		if errs[i] == nil {
			a.row.ViewCount = a.count
			written = append(written, a)
		}
	}
	lost := r.lost(written)
	for look := 0; look < looksMost && len(lost) > 0; look++ {
		if look > 0 {
			time.Sleep(lookAgain)
		}
		lost = r.correct(lost)
	}
	return errs
}

// lost returns those whose lock is not theirs any more, as far as anybody knows.
func (r *rows) lost(written []counted) (lost []counted) {
	ctx, cancel := context.WithTimeout(context.Background(), rowsTimeout)
	defer cancel()
	holders, err := r.store.Holders(ctx, idsOf(written))
	for i, w := range written {
		if err != nil || holders[i] != w.token {
			lost = append(lost, w)
		}
	}
	return lost
}

// correct writes the counts of the newest events where they are others, and returns what is to be looked at once more.
func (r *rows) correct(written []counted) (again []counted) {
	ctx, cancel := context.WithTimeout(context.Background(), rowsTimeout)
	defer cancel()
	states, err := r.store.GetMany(ctx, idsOf(written))
	if err != nil {
		return written
	}
	var newer []counted
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
		case errors.Is(err, errChanged): // another worker has written, and looks as well
			continue
		}
		again = append(again, w)
	}
	return again
}

func idsOf(cs []counted) []item.ID {
	ids := make([]item.ID, len(cs))
	for i, c := range cs {
		ids[i] = c.row.ID
	}
	return ids
}

func (r *rows) writeCounts(asked []counted) []error {
	errs := make([]error, len(asked))
	if len(asked) == 0 {
		return errs
	}
	ids := make([]any, len(asked))
	for i, a := range asked {
		ids[i] = int64(a.row.ID)
	}
	err := r.transact(ids, func(ctx context.Context, tx *sql.Tx, locked map[item.ID]catalog.Row) error {
		var todo []counted
		for i, a := range asked {
			switch now, ok := locked[a.row.ID]; {
			case !ok:
				errs[i] = fault.New(fault.Busy, "write count", a.row.ID.String(), errLocked)
			case now.Level != a.row.Level || now.ViewCount != a.row.ViewCount:
				errs[i] = fault.New(fault.Busy, "write count", a.row.ID.String(), errChanged)
			default:
				todo = append(todo, a)
				delete(locked, a.row.ID) // one of a content
			}
		}
		for part := range slices.Chunk(todo, countsMost) {
			var choices, ids []any
			for _, a := range part {
				choices, ids = append(choices, int64(a.row.ID), int64(a.count)), append(ids, int64(a.row.ID))
			}
			if _, err := tx.ExecContext(ctx, "UPDATE contents SET view_count = CASE cid"+strings.Repeat(" WHEN ? THEN ?", len(part))+
				" END WHERE cid IN ("+marks(len(part))+")", append(choices, ids...)...); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		for i, a := range asked {
			errs[i] = fault.New(catalog.Kind(err), "write count", a.row.ID.String(), err)
		}
	}
	return errs
}

// beginRelease raises the generation of a row that does not name the level, which makes every older look-up stale.
// false: the content lives there. The row must be the one that was looked up, because the grace has been counted for that
// one, and nobody may have it locked, because it must not hold up the others; else the error is fault.Busy.
func (r *rows) beginRelease(ctx context.Context, row catalog.Row, level string) (begun bool, now catalog.Row, err error) {
	a, err := r.raises.Do(ctx, raise{row, level})
	if err == nil {
		err = a.err
	}
	return a.begun, a.row, err
}

// raiseAll raises the rows that may be. One raise serves two releases of a content.
func (r *rows) raiseAll(asked []raise) []raised {
	ids := make([]any, len(asked))
	for i, a := range asked {
		ids[i] = int64(a.row.ID)
	}
	answers := make([]raised, len(asked))
	err := r.transact(ids, func(ctx context.Context, tx *sql.Tx, locked map[item.ID]catalog.Row) error {
		var ids []any
		for i, a := range asked {
			now, ok := locked[a.row.ID]
			answers[i].row = now
			switch {
			case !ok:
				answers[i].err = fault.New(fault.Busy, "begin release", a.row.ID.String(), errLocked)
			case now.Level == a.level: // it lives there
			case !now.Updated.Equal(a.row.Updated):
				answers[i].err = fault.New(fault.Busy, "begin release", a.row.ID.String(), errChanged)
			default:
				answers[i].begun = true
				answers[i].row.Generation++
				ids = append(ids, int64(a.row.ID))
			}
		}
		if len(ids) == 0 {
			return nil
		}
		_, err := tx.ExecContext(ctx, "UPDATE contents SET generation = generation + 1 WHERE cid IN ("+marks(len(ids))+")", ids...)
		return err
	})
	if err != nil {
		for i, a := range asked {
			answers[i] = raised{err: fault.New(catalog.Kind(err), "begin release", a.row.ID.String(), err)}
		}
	}
	return answers
}

// transact calls fn in a transaction that has locked the rows, in the order of the primary key like all who lock more than
// one. A row that somebody else has locked is not among them.
func (r *rows) transact(ids []any, fn func(context.Context, *sql.Tx, map[item.ID]catalog.Row) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), rowsTimeout)
	defer cancel()
	tx, err := r.catalog.DB().BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // does nothing after Commit; what it could say, the first error has said
	locked, err := lock(ctx, tx, ids)
	if err != nil {
		return err
	}
	if err := fn(ctx, tx, locked); err != nil {
		return err
	}
	return tx.Commit()
}

var (
	errLocked  = errors.New("the row is locked by another transaction, or has just gone")
	errChanged = errors.New("the row has just changed")
)

func lock(ctx context.Context, tx *sql.Tx, ids []any) (map[item.ID]catalog.Row, error) {
	rows, err := tx.QueryContext(ctx, "SELECT cid, content_level, filename, update_time, generation, view_count, digest FROM contents"+
		" WHERE cid IN ("+marks(len(ids))+") ORDER BY cid FOR UPDATE SKIP LOCKED", ids...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	locked := make(map[item.ID]catalog.Row, len(ids))
	for rows.Next() {
		var row catalog.Row
		if err := rows.Scan(&row.ID, &row.Level, &row.Filename, &row.Updated, &row.Generation, &row.ViewCount, &row.Digest); err != nil {
			return nil, err
		}
		locked[row.ID] = row
	}
	return locked, rows.Err()
}

// marks is a list of placeholders.
func marks(n int) string { return strings.Repeat(", ?", n)[2:] }
