package placement

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"
	"time"

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

// newCount asks to write the count of an event that needs no move. Its row is as it was looked up, and the token is that of the
// item's lock.
type newCount struct {
	Count
	token state.Token
}

// SetCount writes the count of an event that needs no move, with the id of its entry and the time of the item's next review. It
// writes only over an older count. The first count of a row raises the generation: moves that were emitted before it cannot be
// compared by age.
//
// The error is of kind fault.Busy where the row is not as it was looked up, or has a newer count by now. A review time that
// another has set since is such a change: the levels or the pin may not be those of the look-up. It is also Busy
// where another transaction has locked the row: to wait would hold up the other rows of the batch. It is of kind fault.Lost
// where the lock was lost before.
func (r *Rows) SetCount(ctx context.Context, c Count, token state.Token) error {
	if c.Row.CountEntry == c.Entry {
		return nil // an earlier attempt has written it
	}
	failed, err := r.counts.Do(ctx, newCount{c, token})
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
		ids[i] = c.Row.ID
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
			errs[i] = fault.New(fault.Lost, "write count", c.Row.ID.String(), errLostLock)
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
		ids[i] = int64(c.Row.ID)
	}
	err := r.transact(ids, func(ctx context.Context, tx *sql.Tx, locked map[item.ID]catalog.Row) error {
		var todo []Count
		for i, c := range counts {
			now, ok := locked[c.Row.ID]
			switch {
			case !ok:
				errs[i] = fault.New(fault.Busy, "write count", c.Row.ID.String(), errLocked)
			case now.Generation != c.Row.Generation || now.Level != c.Row.Level || now.Filename != c.Row.Filename ||
				!now.ReviewAt.Equal(c.Row.ReviewAt) || entryid.Newer(now.CountEntry, c.Entry):
				errs[i] = fault.New(fault.Busy, "write count", c.Row.ID.String(), ErrChanged)
			default:
				c.Row = now
				todo = append(todo, c.Count)
				delete(locked, c.Row.ID) // one count for each item
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
			errs[i] = fault.New(catalog.Kind(err), "write count", c.Row.ID.String(), err)
		}
	}
	return errs
}

func updateCounts(ctx context.Context, tx *sql.Tx, counts []Count) error {
	var values, entries, ids, first []any
	var reviews []Count
	for _, c := range counts {
		id := int64(c.Row.ID)
		values, entries, ids = append(values, id, int64(c.Count)), append(entries, id, c.Entry), append(ids, id)
		if c.Row.CountEntry == "" {
			first = append(first, id)
		}
		if !c.ReviewAt.Equal(c.Row.ReviewAt) {
			reviews = append(reviews, c)
		}
	}
	raise := ""
	if len(first) > 0 { // in the same statement: a second one would cost a round trip
		raise = ", generation = CASE WHEN cid IN (" + placeholders(len(first)) + ") THEN generation + 1 ELSE generation END"
	}
	cases := strings.Repeat(" WHEN ? THEN ?", len(counts))
	u := update{text: "UPDATE contents SET view_count = CASE cid" + cases + " END, count_entry = CASE cid" + cases + " END" + raise,
		args: slices.Concat(values, entries, first)}
	u.choose("review_at", reviews)
	_, err := tx.ExecContext(ctx, u.text+" WHERE cid IN ("+placeholders(len(counts))+")", append(u.args, ids...)...)
	return err
}

// update is a statement in the making, with its arguments.
type update struct {
	text string
	args []any
}

// minReview is how long after the server's time a review is at least. Without it, an item whose review is due by the server's
// clock, and not by the relocator's, would be reviewed all the time.
const minReview = "10 SECOND"

// choose sets the column to the review time of each count. Other rows keep theirs.
func (u *update) choose(column string, counts []Count) {
	if len(counts) == 0 {
		return
	}
	u.text += ", " + column + " = CASE cid"
	for _, c := range counts {
		if u.args = append(u.args, int64(c.Row.ID)); c.ReviewAt.IsZero() {
			u.text += " WHEN ? THEN NULL"
			continue
		}
		u.text += " WHEN ? THEN GREATEST(CAST(? AS DATETIME(6)), UTC_TIMESTAMP(6) + INTERVAL " + minReview + ")"
		u.args = append(u.args, c.ReviewAt)
	}
	u.text += " ELSE " + column + " END"
}

// Count is a count to write into a row, with what its decision says of the item's next review.
type Count struct {
	Row      catalog.Row
	Count    item.Count
	Entry    string    // id of the event's entry
	ReviewAt time.Time // policy.Decision.ReviewAt; zero: never
}

// Look is what a batch of WriteCounts has looked up.
type Look struct {
	Rows map[item.ID]catalog.Row // as they are locked
	// Policy reads the levels in the transaction, and so under the locks of the rows. Whoever changes the levels sets the
	// reviews of rows afterwards. So the review that this transaction writes is one by the new levels, or is set again.
	Policy func(context.Context) (policy.Policy, error)
}

// WriteCounts locks the rows of these items, without the items' locks, and writes the counts that choose returns for them, all
// in one transaction. A row that is missing, or that another transaction has locked, is not in the Look. The locks of the rows
// are the fence: nobody changes a row between its look-up and its write. So choose must be quick. The caller must have made sure
// that the row's count is not newer.
func (r *Rows) WriteCounts(ids []item.ID, choose func(context.Context, Look) ([]Count, error)) error {
	args := make([]any, len(ids))
	for i, id := range ids {
		args[i] = int64(id)
	}
	err := r.transact(args, func(ctx context.Context, tx *sql.Tx, locked map[item.ID]catalog.Row) error {
		counts, err := choose(ctx, Look{locked, func(ctx context.Context) (policy.Policy, error) { return Levels(ctx, tx) }})
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
