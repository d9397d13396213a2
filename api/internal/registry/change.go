package registry

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
)

// Change is a change of the levels after which items still have to be re-evaluated. It is the row of the table appraisal,
// which the transaction that changes the levels writes. So no crash loses the change, and any api can continue it.
type Change struct {
	ID     string         // new with every change
	Before []policy.Level // the levels before the first change that is not finished; only Name, Min and Max
	After  item.ID        // items up to this one were re-evaluated

	conn *sql.Conn // holds the lock; MySQL ends it, and with it the lock, when it is idle for 30 seconds
}

// levelBefore is a level in appraisal.before_levels.
type levelBefore struct {
	Level    string `json:"level"`
	MinCount int64  `json:"min_counts"`
	MaxCount int64  `json:"max_counts"`
}

// recordChange records a change. Where a change is not finished yet, it starts over and keeps its own levels before.
func recordChange(ctx context.Context, tx *sql.Tx, before []policy.Level) error {
	list := make([]levelBefore, len(before))
	for i, l := range before {
		list[i] = levelBefore{l.Name, l.Min, l.Max}
	}
	text, err := json.Marshal(list)
	if err != nil {
		return err
	}
	id := uuid.NewString()
	_, err = tx.ExecContext(ctx, "INSERT INTO appraisal (id, change_id, before_levels) VALUES (1, ?, ?) "+
		"ON DUPLICATE KEY UPDATE change_id = ?, after_cid = 0, changed_at = UTC_TIMESTAMP(6)", id, string(text), id)
	return catalog.Wrap("set levels", "", err)
}

// WithChange calls fn with the change that is not finished, if there is one and no other api works on it. fn runs under a
// lock of the database. WithChange returns fn's error.
func (r *Registry) WithChange(ctx context.Context, fn func(Change) error) error {
	if _, ok, err := r.change(ctx); err != nil || !ok {
		return err
	}
	err := r.catalog.Locked(ctx, lockChange, 0, func(conn *sql.Conn) error {
		c, ok, err := r.change(ctx)
		if err != nil || !ok {
			return err
		}
		c.conn = conn
		return fn(c)
	})
	if errors.Is(err, catalog.ErrHeld) {
		return nil
	}
	return err
}

func (r *Registry) change(ctx context.Context) (c Change, ok bool, err error) {
	var text string
	err = r.db.QueryRowContext(ctx, "SELECT change_id, before_levels, after_cid FROM appraisal WHERE id = 1").Scan(&c.ID, &text, &c.After)
	if errors.Is(err, sql.ErrNoRows) {
		return Change{}, false, nil
	}
	if err != nil {
		return Change{}, false, catalog.Wrap("read", "appraisal", err)
	}
	var list []levelBefore
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return Change{}, false, fmt.Errorf("appraisal.before_levels: %w: delete the row and repeat PUT /v1/levels", err)
	}
	for _, l := range list {
		c.Before = append(c.Before, policy.Level{Name: l.Level, Min: l.MinCount, Max: l.MaxCount})
	}
	return c, true, nil
}

// Reached records that the items up to after were re-evaluated. It returns false where the levels have changed again; then
// it records nothing.
func (c Change) Reached(ctx context.Context, after item.ID) (bool, error) {
	return c.exec(ctx, "UPDATE appraisal SET after_cid = ? WHERE id = 1 AND change_id = ?", after, c.ID)
}

// Done ends a change. It returns false where the levels have changed again: then the new change is not finished.
func (c Change) Done(ctx context.Context) (bool, error) {
	return c.exec(ctx, "DELETE FROM appraisal WHERE id = 1 AND change_id = ?", c.ID)
}

// exec runs a statement on the row of this change. It returns false where the row belongs to another change by now.
func (c Change) exec(ctx context.Context, statement string, args ...any) (bool, error) {
	res, err := c.conn.ExecContext(ctx, statement, args...)
	if err != nil {
		return false, catalog.Wrap("write", "appraisal", err)
	}
	n, err := res.RowsAffected()
	return n > 0, catalog.Wrap("write", "appraisal", err)
}
