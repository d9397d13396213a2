package worker

import (
	"context"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/content"
	"github.com/tierflow/tierflow/shared/fault"
)

// beginRelease raises the generation of a row that does not name the level, which makes every older look-up stale.
// false: the content lives there, or is forgotten.
func beginRelease(ctx context.Context, c *catalog.Catalog, id content.ID, level string) (bool, error) {
	res, err := c.DB().ExecContext(ctx,
		"UPDATE contents SET generation = generation + 1 WHERE cid = ? AND content_level <> ?", int64(id), level)
	if err != nil {
		return false, fault.New(catalog.Kind(err), "begin release", id.String(), err)
	}
	n, err := res.RowsAffected()
	return n == 1, err
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
