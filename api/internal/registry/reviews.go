package registry

import (
	"context"
	"database/sql"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/item"
)

// A review is a look at where an item belongs, without a new count. contents.review_at says when it is due, by the server's
// clock. It is never cleared before the review has had its effect:
//
//   - Claim takes due reviews and, in the same transaction, makes them due again later. So a claim whose event is lost is
//     repeated, whoever is killed and whatever Redis loses.
//   - The caller posts the item's last count again.
//   - The relocator that settles an event of the item in place writes the next review, or none, under the row's lock and in the
//     statement that writes the count. Where the item moves, the claim stays, and the item is looked at once more after its move.
const (
	// claimEnds is when a claim is due again: an event that was appended is mostly settled by then.
	claimEnds = "UTC_TIMESTAMP(6) + INTERVAL 60 SECOND"
	// postponed is when a review is due again whose item has an event under way that would decide the same. Such an event may wait
	// long, for a tier or for a human, and many may.
	postponed = "UTC_TIMESTAMP(6) + INTERVAL 15 MINUTE"
)

// Reviews is the right to work on the reviews of a database. One api at a time has it.
type Reviews struct {
	*Registry
	conn *sql.Conn // holds the lock; MySQL ends it, and with it the lock, when it is idle for 30 seconds
}

// WithReviews calls fn where a review is due, or where a change of the levels is not finished, and no other api works on them. fn
// runs under a lock of the database. WithReviews returns fn's error.
func (r *Registry) WithReviews(ctx context.Context, fn func(Reviews) error) error {
	var changed, due bool
	err := r.db.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM level_change), EXISTS (SELECT 1 FROM contents"+
		" WHERE review_at <= UTC_TIMESTAMP(6))").Scan(&changed, &due)
	if err != nil || !changed && !due {
		return catalog.Wrap("look for", "reviews that are due", err)
	}
	err = r.catalog.Locked(ctx, lockReviews, 0, func(conn *sql.Conn) error { return fn(Reviews{r, conn}) })
	if errors.Is(err, catalog.ErrHeld) {
		return nil
	}
	return err
}

// Claimed is a set of claimed reviews.
type Claimed struct {
	Rows []catalog.Row // as they were before the claim
	ends time.Time     // the review time that they have now
}

// Claim takes at most limit due reviews, the longest due first. It leaves out rows that others have locked.
func (r Reviews) Claim(ctx context.Context, limit int) (c Claimed, err error) {
	err = r.transact(ctx, "claim reviews", func(tx *sql.Tx) error {
		if c.Rows, err = catalog.LockDue(ctx, tx, limit); err != nil || len(c.Rows) == 0 {
			return err
		}
		if err := tx.QueryRowContext(ctx, "SELECT "+claimEnds).Scan(&c.ends); err != nil {
			return err
		}
		ids := make([]any, len(c.Rows))
		for i, row := range c.Rows {
			ids[i] = row.ID
		}
		_, err := tx.ExecContext(ctx, "UPDATE contents SET review_at = ? WHERE cid IN ("+placeholders(len(ids))+")",
			append([]any{c.ends}, ids...)...)
		return err
	})
	return c, err
}

// Postpone makes claimed reviews due much later, where nobody has set them since the claim. It leaves out rows that others have
// locked: their claims end.
func (r Reviews) Postpone(ctx context.Context, c Claimed, ids []item.ID) error {
	return r.transact(ctx, "postpone reviews", func(tx *sql.Tx) error {
		rows, err := lockRows(ctx, tx, ids)
		if err != nil {
			return err
		}
		var late []any
		for _, row := range rows {
			if row.ReviewAt.Equal(c.ends) {
				late = append(late, row.ID)
			}
		}
		if len(late) == 0 {
			return nil
		}
		_, err = tx.ExecContext(ctx, "UPDATE contents SET review_at = "+postponed+" WHERE cid IN ("+placeholders(len(late))+")", late...)
		return err
	})
}

// maxCases is how many rows one statement gives values of their own. The server finds the value of a row by going through those
// of the others.
const maxCases = 100

// Require makes the reviews of items due at these times, or before; a zero time is now. It returns the items whose rows others have
// locked, or that are gone: it waits for none, because it would hold up the other items.
//
// It changes each review time in any case: one that is earlier becomes so by a microsecond. Whoever has looked up a row, and is about
// to write what it has decided by the old levels, finds by this that the row has changed.
func (r Reviews) Require(ctx context.Context, at map[item.ID]time.Time) (left []item.ID, err error) {
	err = r.transact(ctx, "require reviews", func(tx *sql.Tx) error {
		rows, err := lockRows(ctx, tx, slices.Collect(maps.Keys(at)))
		if err != nil {
			return err
		}
		var now, cases []any
		for _, id := range slices.Sorted(maps.Keys(at)) {
			row, ok := rows[id]
			switch t := at[id]; {
			case !ok:
				left = append(left, id)
			case t.IsZero():
				now = append(now, id)
			default:
				if earlier := row.ReviewAt.Add(-time.Microsecond); !row.ReviewAt.IsZero() && earlier.Before(t) {
					t = earlier
				}
				cases = append(cases, id, t)
			}
		}
		if len(now) > 0 {
			if _, err := tx.ExecContext(ctx, "UPDATE contents SET review_at = UTC_TIMESTAMP(6) WHERE cid IN ("+placeholders(len(now))+")",
				now...); err != nil {
				return err
			}
		}
		for part := range slices.Chunk(cases, 2*maxCases) {
			var ids []any
			for i := 0; i < len(part); i += 2 {
				ids = append(ids, part[i])
			}
			if _, err := tx.ExecContext(ctx, "UPDATE contents SET review_at = CASE cid"+strings.Repeat(" WHEN ? THEN ?", len(ids))+
				" END WHERE cid IN ("+placeholders(len(ids))+")", append(slices.Clip(part), ids...)...); err != nil {
				return err
			}
		}
		return nil
	})
	return left, err
}

// lockRows is catalog.LockRows for any number of items.
func lockRows(ctx context.Context, tx *sql.Tx, ids []item.ID) (map[item.ID]catalog.Row, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	anys := make([]any, len(ids))
	for i, id := range ids {
		anys[i] = id
	}
	return catalog.LockRows(ctx, tx, anys)
}

func (r Reviews) transact(ctx context.Context, op string, fn func(*sql.Tx) error) error {
	tx, err := r.conn.BeginTx(ctx, nil)
	if err != nil {
		return catalog.Wrap(op, "", err)
	}
	defer func() { _ = tx.Rollback() }() // does nothing after Commit; where Rollback fails, MySQL ends the session and rolls back
	if err := fn(tx); err != nil {
		return catalog.Wrap(op, "", err)
	}
	return catalog.Wrap(op, "", tx.Commit())
}

func placeholders(n int) string { return strings.Repeat(", ?", n)[2:] }
