package placement

import (
	"context"
	"database/sql"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
)

// release asks to begin the release of an item's copy on a level. The row is as it was looked up.
type release struct {
	row   catalog.Row
	level string
}

// begun is the answer. The row is as the statement has locked it, with the generation that the statement wrote.
type begun struct {
	begun bool
	row   catalog.Row // only ID, Level, Filename, Updated, Generation, ViewCount, Digest and CountEntry
	err   error
}

// BeginRelease raises the generation of a row, which makes every older look-up stale. It does so only where the row does
// not name the level. begun is false where the row names it: the item lives there. now is the row as it is then; only its
// ID, Level, Filename, Updated, Generation, ViewCount, Digest and CountEntry are set.
//
// The error is of kind fault.Busy where the row is not the one that was looked up: the grace has been counted for that
// one. It is so, too, where another transaction has locked the row: to wait would hold up the other rows of the batch.
func (r *Rows) BeginRelease(ctx context.Context, row catalog.Row, level string) (begun bool, now catalog.Row, err error) {
	a, err := r.releases.Do(ctx, release{row, level})
	if err == nil {
		err = a.err
	}
	return a.begun, a.row, err
}

// beginReleases raises all generations in one statement. One raise serves two releases of an item.
func (r *Rows) beginReleases(releases []release) []begun {
	ids := make([]any, len(releases))
	for i, l := range releases {
		ids[i] = int64(l.row.ID)
	}
	answers := make([]begun, len(releases))
	err := r.transact(ids, func(ctx context.Context, tx *sql.Tx, locked map[item.ID]catalog.Row) error {
		var ids []any
		for i, l := range releases {
			now, ok := locked[l.row.ID]
			answers[i].row = now
			switch {
			case !ok:
				answers[i].err = fault.New(fault.Busy, "begin release", l.row.ID.String(), errLocked)
			case now.Level == l.level: // the item lives there
			case !now.Updated.Equal(l.row.Updated):
				answers[i].err = fault.New(fault.Busy, "begin release", l.row.ID.String(), ErrChanged)
			default:
				answers[i].begun = true
				answers[i].row.Generation++
				ids = append(ids, int64(l.row.ID))
			}
		}
		if len(ids) == 0 {
			return nil
		}
		_, err := tx.ExecContext(ctx, "UPDATE contents SET generation = generation + 1 WHERE cid IN ("+placeholders(len(ids))+")", ids...)
		return err
	})
	if err != nil {
		for i, l := range releases {
			answers[i] = begun{err: fault.New(catalog.Kind(err), "begin release", l.row.ID.String(), err)}
		}
	}
	return answers
}
