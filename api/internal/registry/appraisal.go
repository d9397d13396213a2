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

// Change is a change of the levels whose contents are still to be looked at again. It stands in MySQL, written together
// with the levels, until that is done: no crash loses it, and any api can go on with it.
type Change struct {
	ID     string
	Before []policy.Level // the levels before the first change that is not done; names and ranges
	After  item.ID        // contents up to here were looked at

	conn *sql.Conn // which holds the lock: MySQL ends it when it asks nothing for long
}

// levelBefore is how a level stands in appraisal.before_levels.
type levelBefore struct {
	Level    string `json:"level"`
	MinCount int64  `json:"min_counts"`
	MaxCount int64  `json:"max_counts"`
}

// note writes a change down; one that is not done yet starts over, with the levels before it.
func note(ctx context.Context, tx *sql.Tx, before []policy.Level) error {
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

// WithChange calls fn with the change that is to be done, if there is one and no other api is at it.
func (r *Registry) WithChange(ctx context.Context, fn func(Change) error) error {
	if _, ok, err := r.change(ctx); err != nil || !ok {
		return err
	}
	err := r.locked(ctx, "appraisal", 0, func(conn *sql.Conn) error {
		c, ok, err := r.change(ctx)
		if err != nil || !ok {
			return err
		}
		c.conn = conn
		return fn(c)
	})
	if errors.Is(err, errHeld) {
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

// Looked notes that a change's contents up to after were looked at. false: the levels have changed again.
func (c Change) Looked(ctx context.Context, after item.ID) (bool, error) {
	return c.still(ctx, "UPDATE appraisal SET after_cid = ? WHERE id = 1 AND change_id = ?", after, c.ID)
}

// Done ends a change. false: the levels have changed again.
func (c Change) Done(ctx context.Context) (bool, error) {
	return c.still(ctx, "DELETE FROM appraisal WHERE id = 1 AND change_id = ?", c.ID)
}

func (c Change) still(ctx context.Context, statement string, args ...any) (bool, error) {
	res, err := c.conn.ExecContext(ctx, statement, args...)
	if err != nil {
		return false, catalog.Wrap("write", "appraisal", err)
	}
	n, err := res.RowsAffected()
	return n > 0, catalog.Wrap("write", "appraisal", err)
}
