package worker

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/tierflow/tierflow/shared/batch"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/content"
	"github.com/tierflow/tierflow/shared/fault"
)

const (
	// rowsMost bounds how many rows one statement reads or raises.
	rowsMost = 256
	// rowsTimeout is for a statement whose callers have all given up.
	rowsTimeout = 10 * time.Second
)

// rows looks contents up and raises generations. What is asked at the same time is one trip to MySQL, which begins
// after it was asked.
type rows struct {
	catalog *catalog.Catalog
	finds   *batch.Runner[content.ID, found]
	raises  *batch.Runner[raise, raised]
}

// found is the answer to one look-up: the row and the levels as they are now.
type found struct {
	row    catalog.Row
	policy content.Policy
	err    error
}

// raise asks to begin the release of a content's copy on a level. The row is the one that was looked up.
type raise struct {
	row   catalog.Row
	level string
}

// raised is its answer. The row is as the statement has locked it, its generation as it has left it.
type raised struct {
	begun bool
	row   catalog.Row // only ID, Level, Filename, Updated, Generation and Digest
	err   error
}

func newRows(c *catalog.Catalog) *rows {
	r := &rows{catalog: c}
	r.finds = batch.New(rowsMost, r.findAll)
	r.raises = batch.New(rowsMost, r.raiseAll)
	return r
}

// find reads a row, fault.Unknown where there is none, and the levels, afresh: an event that asks for a change of levels to
// be applied must not meet the old ones. A level that the row names is among them, if it exists.
func (r *rows) find(ctx context.Context, id content.ID) (catalog.Row, content.Policy, error) {
	f, err := r.finds.Do(ctx, id)
	if err == nil {
		err = f.err
	}
	return f.row, f.policy, err
}

func (r *rows) findAll(ids []content.ID) []found {
	ctx, cancel := context.WithTimeout(context.Background(), rowsTimeout)
	defer cancel()
	fs := make([]found, len(ids))
	var p content.Policy
	var perr error
	var levels sync.WaitGroup
	levels.Go(func() { p, perr = policy(ctx, r.catalog) })
	there, err := r.catalog.Contents(ctx, ids)
	levels.Wait()
	for _, row := range there {
		if perr == nil && !names(p, row) { // a level was made between the two
			p, perr = policy(ctx, r.catalog)
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

// names tells whether the levels that a row names are among these.
func names(p content.Policy, row catalog.Row) bool {
	_, on := p.Level(row.Level)
	_, pinned := p.Level(row.Pinned)
	return on && (pinned || row.Pinned == "")
}

// policy reads the levels. A table that is no valid policy is for an operator to mend; no event is at fault for it.
func policy(ctx context.Context, c *catalog.Catalog) (content.Policy, error) {
	p, err := c.Policy(ctx)
	if fault.Is(err, fault.Unprocessable) {
		return p, fault.New(fault.Unavailable, "read levels", "", err)
	}
	return p, err
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

func (r *rows) raiseAll(asked []raise) []raised {
	ctx, cancel := context.WithTimeout(context.Background(), rowsTimeout)
	defer cancel()
	answers, err := r.transact(ctx, asked)
	if err != nil {
		for i, a := range asked {
			answers[i] = raised{err: fault.New(catalog.Kind(err), "begin release", a.row.ID.String(), err)}
		}
	}
	return answers
}

// transact locks the rows, in the order of the primary key like all who lock more than one, and raises those that may
// be. One raise serves two releases of a content.
func (r *rows) transact(ctx context.Context, asked []raise) ([]raised, error) {
	answers := make([]raised, len(asked))
	tx, err := r.catalog.DB().BeginTx(ctx, nil)
	if err != nil {
		return answers, err
	}
	defer func() { _ = tx.Rollback() }() // does nothing after Commit; what it could say, the first error has said
	locked, err := lock(ctx, tx, asked)
	if err != nil {
		return answers, err
	}
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
	if len(ids) > 0 {
		_, err := tx.ExecContext(ctx, "UPDATE contents SET generation = generation + 1 WHERE cid IN ("+marks(len(ids))+")", ids...)
		if err != nil {
			return answers, err
		}
	}
	return answers, tx.Commit()
}

var (
	errLocked  = errors.New("the row is locked by another transaction, or has just gone")
	errChanged = errors.New("the row has just changed")
)

func lock(ctx context.Context, tx *sql.Tx, asked []raise) (map[content.ID]catalog.Row, error) {
	ids := make([]any, len(asked))
	for i, a := range asked {
		ids[i] = int64(a.row.ID)
	}
	rows, err := tx.QueryContext(ctx, "SELECT cid, content_level, filename, update_time, generation, digest FROM contents"+
		" WHERE cid IN ("+marks(len(ids))+") ORDER BY cid FOR UPDATE SKIP LOCKED", ids...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	locked := make(map[content.ID]catalog.Row, len(asked))
	for rows.Next() {
		var row catalog.Row
		if err := rows.Scan(&row.ID, &row.Level, &row.Filename, &row.Updated, &row.Generation, &row.Digest); err != nil {
			return nil, err
		}
		locked[row.ID] = row
	}
	return locked, rows.Err()
}

// marks is a list of placeholders.
func marks(n int) string { return strings.Repeat(", ?", n)[2:] }
