package catalog

import (
	"context"
	"database/sql"
	"math"
	"time"

	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/policy"
)

const levelColumns = "min_counts, max_counts, path, tier_id, demote_counts, min_residency, state"

// Values of policy.mode. With ModeObserve nothing moves.
const (
	ModeEnforce = "enforce"
	ModeObserve = "observe"
)

// Levels reads the level table as it is, ascending by Min. It does not validate: see Policy.
func (c *Catalog) Levels(ctx context.Context) ([]policy.Level, error) {
	levels, _, err := c.LevelsAndMode(ctx)
	return levels, err
}

// LevelsAndMode is Levels, and also tells whether the policy is in the mode ModeObserve.
func (c *Catalog) LevelsAndMode(ctx context.Context) (levels []policy.Level, observes bool, err error) {
	return levelsAndMode(ctx, c.db)
}

func levelsAndMode(ctx context.Context, q Querier) (levels []policy.Level, observes bool, err error) {
	const op, subject = "read", "the level table"
	rows, err := q.QueryContext(ctx, "SELECT content_level, "+levelColumns+", (SELECT mode FROM policy WHERE id = 1) FROM `level`"+
		" ORDER BY min_counts, content_level")
	if err != nil {
		return nil, false, Wrap(op, subject, err)
	}
	defer rows.Close()
	for rows.Next() {
		var l policy.Level
		var top, demote sql.NullInt64
		var residency int64
		var state string
		var mode sql.NullString
		if err := rows.Scan(&l.Name, &l.Min, &top, &l.Path, &l.TierID, &demote, &residency, &state, &mode); err != nil {
			return nil, false, Wrap(op, subject, err)
		}
		if l.State, err = policy.ParseState(state); err != nil {
			return nil, false, &fault.Error{Kind: fault.Unprocessable, Op: op, Subject: "level " + l.Name, Err: err}
		}
		l.Max = policy.Open
		if top.Valid {
			l.Max = top.Int64
		}
		l.Demote = policy.Threshold{Count: demote.Int64, Set: demote.Valid}
		l.MinResidency = Residency(residency)
		observes = mode.String == ModeObserve
		levels = append(levels, l)
	}
	return levels, observes, Wrap(op, subject, rows.Err())
}

// Residency returns a number of seconds as a duration. One that is too large for a duration is larger than policy.MaxResidency.
func Residency(seconds int64) time.Duration {
	const most = math.MaxInt64 / int64(time.Second)
	return time.Duration(max(-most, min(seconds, most))) * time.Second
}

// Policy reads the level table and validates it as a whole. The error of an invalid table is fault.Unprocessable and names every
// problem.
func (c *Catalog) Policy(ctx context.Context) (policy.Policy, error) { return PolicyIn(ctx, c.db) }

// PolicyIn is Catalog.Policy on a connection or in a transaction.
func PolicyIn(ctx context.Context, q Querier) (policy.Policy, error) {
	levels, observes, err := levelsAndMode(ctx, q)
	if err != nil {
		return policy.Policy{}, err
	}
	p, err := policy.New(levels)
	if err != nil {
		return policy.Policy{}, &fault.Error{Kind: fault.Unprocessable, Op: "use", Subject: "the level table", Err: err,
			Hint: "correct it with PUT /v1/levels or in SQL"}
	}
	return p.Observing(observes), nil
}
