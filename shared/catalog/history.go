package catalog

import (
	"context"
	"math"
	"time"

	"github.com/tierflow/tierflow/shared/item"
)

// History is a row of update_history: one committed move.
type History struct {
	ID             int64
	EventID        string
	CID            item.ID
	OldLevel       string
	NewLevel       string
	PrevUpdateTime time.Time
	UpdateTime     time.Time
	ViewCount      item.Count
	Bytes          int64
	Duration       time.Duration // whole microseconds
	WorkerID       string
	Reason         string // the policy.Reason of the move; "" where it was made before reasons were recorded
}

const historyColumns = "id, event_id, cid, old_level, new_level, prev_update_time, update_time, view_count, bytes, duration_us, worker_id, reason"

// History reads at most limit moves of an item, newest first, with row ids below before. Where before is 0, it starts at
// the newest. The history outlives its item. An unknown item has an empty history and no error.
func (c *Catalog) History(ctx context.Context, id item.ID, before int64, limit int) ([]History, error) {
	const op = "read the history of item"
	if before == 0 {
		before = math.MaxInt64
	}
	rows, err := c.db.QueryContext(ctx, "SELECT "+historyColumns+
		" FROM update_history WHERE cid = ? AND id < ? ORDER BY id DESC LIMIT ?", id, before, limit)
	if err != nil {
		return nil, Wrap(op, id.String(), err)
	}
	defer rows.Close()
	var hs []History
	for rows.Next() {
		var h History
		var us int64
		if err := rows.Scan(&h.ID, &h.EventID, &h.CID, &h.OldLevel, &h.NewLevel, &h.PrevUpdateTime, &h.UpdateTime,
			&h.ViewCount, &h.Bytes, &us, &h.WorkerID, &h.Reason); err != nil {
			return nil, Wrap(op, id.String(), err)
		}
		h.Duration = time.Duration(us) * time.Microsecond
		hs = append(hs, h)
	}
	return hs, Wrap(op, id.String(), rows.Err())
}
