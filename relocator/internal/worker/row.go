package worker

import (
	"context"
	"errors"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/content"
	"github.com/tierflow/tierflow/shared/fault"
)

// beginRelease raises the generation of a row that does not name the level, which makes every older look-up stale.
// false: the content lives there, or is forgotten. The row must be the one that was looked up, because the grace has
// been counted for that one; else the error is fault.Busy.
func beginRelease(ctx context.Context, c *catalog.Catalog, row catalog.Row, level string) (bool, error) {
	res, err := c.DB().ExecContext(ctx, "UPDATE contents SET generation = generation + 1"+
		" WHERE cid = ? AND content_level <> ? AND update_time = ?", int64(row.ID), level, row.Updated)
	if err != nil {
		return false, fault.New(catalog.Kind(err), "begin release", row.ID.String(), err)
	}
	n, err := res.RowsAffected()
	if n == 1 || err != nil {
		return n == 1, err
	}
	now, err := c.Content(ctx, row.ID)
	switch {
	case fault.Is(err, fault.Unknown) || err == nil && now.Level == level:
		return false, nil
	case err != nil:
		return false, err
	}
	return false, fault.New(fault.Busy, "begin release", row.ID.String(), errors.New("the row has just changed"))
}

// policy reads the levels, afresh at every call: an event that asks for a change of levels to be applied must not
// meet the old ones. A table that is no valid policy is for an operator to mend; no event is at fault for it.
func (o Options) policy(ctx context.Context) (content.Policy, error) {
	p, err := o.Catalog.Policy(ctx)
	if fault.Is(err, fault.Unprocessable) {
		return p, fault.New(fault.Unavailable, "read levels", "", err)
	}
	return p, err
}
