package catalog

import (
	"context"
	"database/sql"

	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/policy"
)

const levelColumns = "min_counts, max_counts, path, tier_id"

// Levels reads the level table as it is, ascending by Min. It does not validate: see Policy.
func (c *Catalog) Levels(ctx context.Context) ([]policy.Level, error) {
	const op, subject = "read", "the level table"
	rows, err := c.db.QueryContext(ctx, "SELECT content_level, "+levelColumns+" FROM `level` ORDER BY min_counts, content_level")
	if err != nil {
		return nil, Wrap(op, subject, err)
	}
	defer rows.Close()
	var levels []policy.Level
	for rows.Next() {
		var l policy.Level
		var top sql.NullInt64
		if err := rows.Scan(&l.Name, &l.Min, &top, &l.Path, &l.TierID); err != nil {
			return nil, Wrap(op, subject, err)
		}
		l.Max = policy.Open
		if top.Valid {
			l.Max = top.Int64
		}
		levels = append(levels, l)
	}
	return levels, Wrap(op, subject, rows.Err())
}

// Policy reads the level table and validates it as a whole. The error of an invalid table is fault.Unprocessable and names every
// problem.
func (c *Catalog) Policy(ctx context.Context) (policy.Policy, error) {
	levels, err := c.Levels(ctx)
	if err != nil {
		return policy.Policy{}, err
	}
	p, err := policy.New(levels)
	if err != nil {
		return policy.Policy{}, &fault.Error{Kind: fault.Unprocessable, Op: "use", Subject: "the level table", Err: err,
			Hint: "correct it with PUT /v1/levels or in SQL"}
	}
	return p, nil
}
