// Package reevaluate posts the last counts of items again, for all reasons that are not a new count: a change of a pin or of the
// levels, and the end of a pin or of a residency. A relocator then decides again where each of these items belongs.
// contents.review_at is the queue of these items.
package reevaluate

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/tierflow/tierflow/api/internal/registry"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/outage"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
)

// Options of a Reevaluator. All are required.
type Options struct {
	Store      *state.Store // its client must not retry
	Catalog    *catalog.Catalog
	Registry   *registry.Registry
	MaxBacklog int64 // that of the Batcher
	Log        *zap.Logger
}

// Reevaluator posts last counts again. PostAgain works at once; everything else needs a running Run.
type Reevaluator struct {
	Options
	wake chan struct{}
}

// New makes a Reevaluator.
func New(o Options) *Reevaluator { return &Reevaluator{Options: o, wake: make(chan struct{}, 1)} }

// NewView makes the view event of a count, posted now, with a new event id.
func NewView(row *catalog.Row, p policy.Policy, count item.Count) event.View {
	now := time.Now()
	return event.View{
		EventID: uuid.Must(uuid.NewV7()).String(), ID: row.ID, Count: count, Target: p.Decide(row.Item(count), now).Target,
		DBLevel: row.Level, Filename: row.Filename, PostedAt: now,
	}
}

// maxAppends bounds how often PostAgain starts over because a newer count has arrived.
const maxAppends = 10

// PostAgain appends an item's last count as a new view event, and returns the event. The last count is that of the newest
// event, or that of the row where Redis has no state. Where a newer count arrives meanwhile, PostAgain repeats that one
// instead. The error is fault.Unavailable where Redis does not answer, or where new counts arrive faster than PostAgain
// reads them.
func (r *Reevaluator) PostAgain(ctx context.Context, row catalog.Row, p policy.Policy) (event.View, error) {
	for range maxAppends {
		st, ok, err := r.Store.Get(ctx, row.ID)
		if err != nil {
			return event.View{}, err
		}
		count, newest := row.ViewCount, ""
		if ok {
			count, newest = st.Count, st.EntryID
		}
		v := NewView(&row, p, count)
		id, err := r.Store.AppendIf(ctx, newest, v)
		if err != nil {
			return event.View{}, err
		}
		if id != "" {
			return v, nil
		}
	}
	return event.View{}, fault.New(fault.Unavailable, "post the last count of item", row.ID.String(),
		errors.New("new counts arrive faster than the last one can be posted again"))
}

// LevelsChanged wakes Run after Registry.SetLevels. Without it Run finds the change at its next poll.
func (r *Reevaluator) LevelsChanged() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

const (
	pageSize    = 1000
	pageTimeout = 30 * time.Second
	// pollInterval is how late a review may begin, and how soon an api continues what another api has left unfinished.
	pollInterval = time.Second
	// roomInterval is how long reviews wait for room in the backlog.
	roomInterval = 200 * time.Millisecond
)

// errNoRoom means that the backlog has no room for reviews now.
var errNoRoom = errors.New("the backlog has no room for reviews")

// Run works on the reviews that are due (registry.Reviews), and requires those of the items that a change of the levels concerns,
// until ctx ends. It also finishes what another api, or this one before a restart, has left unfinished.
func (r *Reevaluator) Run(ctx context.Context) {
	reviews := outage.New("reviews of items", r.Log)
	for ctx.Err() == nil {
		wait := pollInterval
		var begun bool
		err := r.Registry.WithReviews(ctx, func(q registry.Reviews) error { begun = true; return r.work(ctx, q) })
		switch {
		case errors.Is(err, errNoRoom):
			wait = roomInterval
		// Where MySQL has been away since the start, /readyz says so already.
		case err != nil && ctx.Err() == nil && (begun || !fault.Is(err, fault.Unavailable)):
			reviews.Failed(err)
		case err == nil:
			reviews.Succeeded()
		}
		select {
		case <-ctx.Done():
		case <-r.wake:
		case <-time.After(wait):
		}
	}
}

// work alternates between pages of a change of the levels and pages of due reviews, until both are done. So neither waits for all
// of the other.
func (r *Reevaluator) work(ctx context.Context, q registry.Reviews) error {
	for {
		required, changeErr := r.require(ctx, q)
		posted, err := r.review(ctx, q)
		if errors.Is(err, errNoRoom) && required {
			continue // a change of the levels appends nothing
		}
		if err := cmp.Or(changeErr, err); err != nil || !required && !posted {
			return err
		}
	}
}

// require requires the reviews of a page of the items that a change of the levels concerns. It returns false where there is no
// change, or no page of it is left.
func (r *Reevaluator) require(ctx context.Context, q registry.Reviews) (more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, pageTimeout)
	defer cancel()
	c, ok, err := q.Change(ctx)
	if err != nil || !ok {
		return false, err
	}
	p, err := r.Catalog.Policy(ctx)
	if err != nil {
		return false, err
	}
	rows, err := r.Catalog.List(ctx, "", c.After, pageSize)
	if err != nil {
		return false, err
	}
	states, err := r.Store.GetMany(ctx, idsOf(rows))
	if err != nil {
		return false, err
	}
	at, now := map[item.ID]time.Time{}, time.Now()
	for i, row := range rows {
		d := p.Decide(row.Item(newest(row, states[i])), now)
		switch {
		case concerns(row, states[i], c.Before, p, d.Target):
			at[row.ID] = time.Time{}
		case !d.ReviewAt.IsZero() && (counted(row, states[i]) || d.Reason != policy.ByResidency):
			at[row.ID] = d.ReviewAt
		}
	}
	left, err := q.Require(ctx, at)
	if err != nil {
		return false, err
	}
	if err := r.postLocked(ctx, left, p); err != nil {
		return false, err
	}
	if len(rows) == pageSize {
		_, err := c.Reached(ctx, rows[len(rows)-1].ID)
		return true, err // where the levels have changed again, the next page is the first one of that change
	}
	done, err := c.Done(ctx)
	if done {
		r.Log.Info("all items were looked at after a change of levels")
	}
	return !done, err
}

// postLocked posts the last counts of items whose reviews could not be required, because somebody has their rows locked.
func (r *Reevaluator) postLocked(ctx context.Context, ids []item.ID, p policy.Policy) error {
	rows, err := r.Catalog.Rows(ctx, ids)
	if err != nil {
		return err
	}
	for _, row := range rows {
		if _, err := r.PostAgain(ctx, row, p); err != nil {
			return err
		}
	}
	return nil
}

// review posts the last counts of a page of items whose reviews are due. It returns false where no further review is due. Reviews
// use half of the backlog, so they never refuse a view.
func (r *Reevaluator) review(ctx context.Context, q registry.Reviews) (more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, pageTimeout)
	defer cancel()
	unsettled, err := r.Store.Unsettled(ctx) // before the claim: without Redis nothing is claimed
	if err != nil {
		return false, err
	}
	limit := int(min(max(1, r.MaxBacklog/2)-unsettled, pageSize))
	if limit <= 0 {
		return false, errNoRoom
	}
	p, err := r.Catalog.Policy(ctx)
	if err != nil {
		return false, err
	}
	claimed, err := q.Claim(ctx, limit)
	if err != nil || len(claimed.Rows) == 0 {
		return false, err
	}
	found, err := r.Store.Newest(ctx, idsOf(claimed.Rows))
	if err != nil {
		return false, err
	}
	var underWay []item.ID
	for i, row := range claimed.Rows {
		st, entry := found[i].State, ""
		v := NewView(&row, p, newest(row, st))
		if st != nil {
			entry = st.EntryID
		}
		if !found[i].Settled && st.Target == v.Target {
			underWay = append(underWay, row.ID)
			continue
		}
		// Where a newer event has come since, it is a review as well.
		if _, err := r.Store.AppendIf(ctx, entry, v); err != nil {
			return false, err
		}
	}
	return len(claimed.Rows) == limit, q.Postpone(ctx, claimed, underWay)
}

func idsOf(rows []catalog.Row) []item.ID {
	ids := make([]item.ID, len(rows))
	for i, row := range rows {
		ids[i] = row.ID
	}
	return ids
}

// newest is an item's newest count. st may be nil.
func newest(row catalog.Row, st *state.State) item.Count {
	if st != nil {
		return st.Count
	}
	return row.ViewCount
}

// counted reports whether an item was ever counted or moved. Somebody may have put any other on its level on purpose. Such an item
// stays, unless a change of levels concerns the count 0. st may be nil.
func counted(row catalog.Row, st *state.State) bool { return row.CountedOrMoved() || st != nil }

// concerns reports whether a change of levels gives an item another target than the level where it lies or moves to. before has
// the levels before the change, p has those after it, by which the target is decided. st may be nil.
func concerns(row catalog.Row, st *state.State, before []policy.Level, p policy.Policy, target string) bool {
	if st != nil && (st.Status == state.Update || st.Target != row.Level) {
		return st.Target != target // a move is under way
	}
	if row.Level == target {
		return false
	}
	if l, ok := p.Level(row.Level); counted(row, st) || ok && l.State == policy.Draining {
		return true
	}
	for _, l := range before {
		if l.Holds(int64(newest(row, st))) {
			return l.Name != target
		}
	}
	return true
}
