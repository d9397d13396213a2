// Package placement has the SQL that the relocator runs on rows of the table contents. It looks items up, writes the counts
// of events that need no move, and begins releases. It touches MySQL alone, but for one look at Redis: before a single count is
// written, the item's lock must still be the writer's. Counts of a batch are written under the locks of their rows (WriteCounts).
//
// Calls that are made at the same time share one round trip, which begins after the calls (shared/batch).
package placement

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/tierflow/tierflow/shared/batch"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/outage"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
)

const (
	// maxRows bounds how many calls share one statement that reads or locks rows. A batch of WriteCounts may have more rows.
	maxRows = 256
	// timeout is for a statement whose callers have all given up.
	timeout = 10 * time.Second
)

// ErrChanged is the cause where a row is not as it was looked up.
var ErrChanged = errors.New("the row has just changed")

var errLocked = errors.New("the row is locked by another transaction, or was just deleted")

// Rows reads and writes rows. It is safe for concurrent use.
type Rows struct {
	catalog  *catalog.Catalog
	store    *state.Store
	writes   *outage.Outage
	finds    *batch.Runner[item.ID, found]
	counts   *batch.Runner[newCount, error]
	releases *batch.Runner[release, begun]
}

// found is the answer to one look-up: the row and the levels as they are now.
type found struct {
	row    catalog.Row
	policy policy.Policy
	err    error
}

// New makes a Rows. writes gets to know how the transactions end that change rows.
func New(c *catalog.Catalog, s *state.Store, writes *outage.Outage) *Rows {
	r := &Rows{catalog: c, store: s, writes: writes}
	r.finds = batch.New(maxRows, r.findAll)
	r.counts = batch.New(maxRows, r.setCounts)
	r.releases = batch.New(maxRows, r.beginReleases)
	return r
}

// Find reads a row and the levels. The levels are read anew: an event that was posted after a change of levels must not
// meet the old ones. A level that the row names is among them, if it exists. The error is of kind fault.Unknown where
// there is no row.
func (r *Rows) Find(ctx context.Context, id item.ID) (catalog.Row, policy.Policy, error) {
	f, err := r.finds.Do(ctx, id)
	if err == nil {
		err = f.err
	}
	return f.row, f.policy, err
}

func (r *Rows) findAll(ids []item.ID) []found {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	var p policy.Policy
	var policyErr error
	var levels sync.WaitGroup
	levels.Go(func() { p, policyErr = Levels(ctx, r.catalog.DB()) })
	rows, err := r.catalog.Rows(ctx, ids)
	levels.Wait()
	for _, row := range rows {
		// A level may have been made between the two queries. A review time is set after its cause, such as new levels: a decision that
		// replaces it must know the cause, so the levels are read after the row.
		if policyErr == nil && (!p.Knows(row.Item(row.ViewCount)) || !row.ReviewAt.IsZero()) {
			p, policyErr = Levels(ctx, r.catalog.DB())
			break
		}
	}
	if err == nil {
		err = policyErr
	}
	answers := make([]found, len(ids))
	for i, id := range ids {
		row, ok := rows[id]
		switch {
		case err != nil:
			answers[i].err = err
		case !ok:
			answers[i].err = catalog.Wrap("look up item", id.String(), sql.ErrNoRows)
		default:
			answers[i] = found{row: row, policy: p}
		}
	}
	return answers
}

// Levels reads the levels. Where they are no valid policy, the error is of kind fault.Unavailable: an operator has to
// correct the table, and no event is at fault.
func Levels(ctx context.Context, q catalog.Querier) (policy.Policy, error) {
	p, err := catalog.PolicyIn(ctx, q)
	if fault.Is(err, fault.Unprocessable) {
		return p, fault.New(fault.Unavailable, "read levels", "", err)
	}
	return p, err
}

// transact calls f in a transaction that has locked the rows (catalog.LockRows).
func (r *Rows) transact(ids []any, f func(context.Context, *sql.Tx, map[item.ID]catalog.Row) error) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	defer func() {
		switch {
		case err == nil:
			r.writes.Succeeded()
		case catalog.Kind(err) == fault.Unavailable:
			r.writes.Failed(catalog.Wrap("write rows", "", err))
		}
	}()
	tx, err := r.catalog.DB().BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // does nothing after Commit; the first error has said what is wrong
	locked, err := catalog.LockRows(ctx, tx, ids)
	if err != nil {
		return err
	}
	if err := f(ctx, tx, locked); err != nil {
		return err
	}
	return tx.Commit()
}

func placeholders(n int) string { return strings.Repeat(", ?", n)[2:] }
