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

// Change is a change of the levels after which reviews of items still have to be required. It is the row of the table
// level_change, which the transaction that changes the levels writes. So no crash loses the change, and any api can continue it.
// The rows that it concerns are found page by page, in the order of their ids: one statement for all of them would lock them all.
type Change struct {
	ID     string         // new with every change
	Before []policy.Level // the levels before the first change that is not finished; only Name, Min and Max
	After  item.ID        // the reviews of the items up to this one were required

	conn *sql.Conn // of Reviews
}

// levelBefore is a level in level_change.before_levels.
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
	_, err = tx.ExecContext(ctx, "INSERT INTO level_change (id, change_id, before_levels) VALUES (1, ?, ?) "+
		"ON DUPLICATE KEY UPDATE change_id = ?, after_cid = 0, changed_at = UTC_TIMESTAMP(6)", id, string(text), id)
	return catalog.Wrap("set levels", "", err)
}

// Change returns the change of the levels that is not finished. ok is false where there is none.
func (r Reviews) Change(ctx context.Context) (c Change, ok bool, err error) {
	c.conn = r.conn
	var text string
	err = r.conn.QueryRowContext(ctx, "SELECT change_id, before_levels, after_cid FROM level_change WHERE id = 1").Scan(&c.ID, &text, &c.After)
	if errors.Is(err, sql.ErrNoRows) {
		return Change{}, false, nil
	}
	if err != nil {
		return Change{}, false, catalog.Wrap("read", "level_change", err)
	}
	var list []levelBefore
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return Change{}, false, fmt.Errorf("level_change.before_levels: %w: delete the row and repeat PUT /v1/levels", err)
	}
	for _, l := range list {
		c.Before = append(c.Before, policy.Level{Name: l.Level, Min: l.MinCount, Max: l.MaxCount})
	}
	return c, true, nil
}

// Reached records that the reviews of the items up to after were required. It returns false where the levels have changed again; then
// it records nothing.
func (c Change) Reached(ctx context.Context, after item.ID) (bool, error) {
	return c.exec(ctx, "UPDATE level_change SET after_cid = ? WHERE id = 1 AND change_id = ?", after, c.ID)
}

// Done ends a change. It returns false where the levels have changed again: then the new change is not finished.
func (c Change) Done(ctx context.Context) (bool, error) {
	return c.exec(ctx, "DELETE FROM level_change WHERE id = 1 AND change_id = ?", c.ID)
}

// exec runs a statement on the row of this change. It returns false where the row belongs to another change by now.
func (c Change) exec(ctx context.Context, statement string, args ...any) (bool, error) {
	res, err := c.conn.ExecContext(ctx, statement, args...)
	if err != nil {
		return false, catalog.Wrap("write", "level_change", err)
	}
	n, err := res.RowsAffected()
	return n > 0, catalog.Wrap("write", "level_change", err)
}
