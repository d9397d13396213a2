package httpapi

import (
	"time"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
)

// decide says where an item belongs by its newest count, and why. It is nil for an item that has no state and was never
// counted, moved or pinned: such an item stays where somebody has put it.
func decide(row catalog.Row, p policy.Policy, st *state.State, now time.Time) *client.Decision {
	count := row.ViewCount
	if st != nil {
		count = st.Count
	}
	i := row.Item(count)
	if st == nil && !row.CountedOrMoved() && !i.Pin.HoldsAt(now) {
		return nil
	}
	d := p.Decide(i, now)
	a := &client.Decision{Target: d.Target, Wanted: d.Wanted, Reason: string(d.Reason), Count: count, FromCount: item.Count(d.Until.Min)}
	if d.Until.Max != policy.Open {
		a.ToCount = &d.Until.Max
	}
	if !d.ReviewAt.IsZero() {
		a.ReviewAt = orNull(event.FormatTime(d.ReviewAt))
	}
	if p.Observes() {
		a.Enforced = orNull(p.Observing(false).Decide(i, now).Target)
	}
	return a
}
