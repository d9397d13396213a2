// Package reevaluate posts the last counts of items again after a change that is not a new count: of a pin, or of the
// levels. A relocator then decides again where each of these items belongs.
package reevaluate

import (
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
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
)

// Options of a Reevaluator. All are required.
type Options struct {
	Store    *state.Store // its client must not retry
	Catalog  *catalog.Catalog
	Registry *registry.Registry
	Full     func() bool // reports whether the backlog has reached its limit
	Log      *zap.Logger
}

// Reevaluator posts last counts again. PostAgain works at once; LevelsChanged needs a running Run.
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
	// pause is the wait after a failure, and after each page while the backlog is full.
	pause = time.Second
	// pollInterval is how soon an api continues a change of levels that another api has left unfinished.
	pollInterval = 5 * time.Second
)

// Run re-evaluates all items after each change of the levels, until ctx ends. It also finishes a change that another api, or
// this one before a restart, has left unfinished.
func (r *Reevaluator) Run(ctx context.Context) {
	for ctx.Err() == nil {
		wait := pollInterval
		var begun bool
		err := r.Registry.WithChange(ctx, func(c registry.Change) error { begun = true; return r.reevaluateAll(ctx, c) })
		// Where MySQL has been away since the start, /readyz says so already.
		if err != nil && (begun || !fault.Is(err, fault.Unavailable)) {
			wait = pause
			if ctx.Err() == nil {
				r.Log.Warn("items cannot be re-evaluated after a change of levels; trying again", zap.Error(err))
			}
		}
		select {
		case <-ctx.Done():
		case <-r.wake:
		case <-time.After(wait):
		}
	}
}

// reevaluateAll re-evaluates the items that are left of a change. It returns nil where the levels have changed again: that
// is a new change, which starts from the first item.
func (r *Reevaluator) reevaluateAll(ctx context.Context, c registry.Change) error {
	posted, after := 0, c.After
	for {
		n, rows, err := r.reevaluatePage(ctx, c.Before, after)
		posted += n
		if err != nil {
			if ctx.Err() != nil {
				r.Log.Info("stopped while items are re-evaluated after a change of levels: the next api continues",
					zap.Int("posted", posted), zap.Stringer("after", after))
			}
			return err // the next try skips the items that were posted: their states have the new target
		}
		if len(rows) < pageSize {
			if done, err := c.Done(ctx); err != nil || !done {
				return err
			}
			r.Log.Info("all items were re-evaluated after a change of levels", zap.Int("posted", posted))
			return nil
		}
		after = rows[len(rows)-1].ID
		if current, err := c.Reached(ctx, after); err != nil || !current {
			return err
		}
		if r.Full() {
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	}
}

// reevaluatePage re-evaluates the pageSize items with the next higher ids. It returns the number of counts that it has
// posted, and the rows of the page.
func (r *Reevaluator) reevaluatePage(ctx context.Context, before []policy.Level, after item.ID) (posted int, rows []catalog.Row, err error) {
	ctx, cancel := context.WithTimeout(ctx, pageTimeout)
	defer cancel()
	p, err := r.Catalog.Policy(ctx)
	if err != nil {
		return 0, nil, err
	}
	rows, err = r.Catalog.List(ctx, "", after, pageSize)
	if err != nil || len(rows) == 0 {
		return 0, nil, err
	}
	ids := make([]item.ID, len(rows))
	for i, row := range rows {
		ids[i] = row.ID
	}
	states, err := r.Store.GetMany(ctx, ids)
	if err != nil {
		return 0, nil, err
	}
	for i, row := range rows {
		if !concerns(row, states[i], before, p) {
			continue
		}
		if _, err := r.PostAgain(ctx, row, p); err != nil {
			return posted, nil, err
		}
		posted++
	}
	return posted, rows, nil
}

// concerns reports whether a change of levels gives an item another target than the level where it lies or moves to. before
// has the levels before the change, p has those after it. Somebody may have put an item that was never counted on its level
// on purpose. Such an item stays, unless the change concerns the count 0.
func concerns(row catalog.Row, st *state.State, before []policy.Level, p policy.Policy) bool {
	count, counted := row.ViewCount, row.CountedOrMoved()
	if st != nil {
		count, counted = st.Count, true
	}
	target := p.Decide(row.Item(count), time.Now()).Target
	if st != nil && (st.Status == state.Update || st.Target != row.Level) {
		return st.Target != target // a move is under way
	}
	if row.Level == target {
		return false
	}
	if l, ok := p.Level(row.Level); counted || ok && l.State == policy.Draining {
		return true
	}
	for _, l := range before {
		if l.Holds(int64(count)) {
			return l.Name != target
		}
	}
	return true
}
