// Package appraise posts the last count of contents again, where something else than a new count may have changed
// their target: a pin, or the levels.
package appraise

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

// Options of an Appraiser. All are required.
type Options struct {
	Store    *state.Store // its client must not retry
	Catalog  *catalog.Catalog
	Registry *registry.Registry
	Full     func() bool // tells whether the backlog has reached its limit
	Log      *zap.Logger
}

// Appraiser posts last counts. Run must be started.
type Appraiser struct {
	Options
	kick chan struct{}
}

// New makes an Appraiser.
func New(o Options) *Appraiser { return &Appraiser{Options: o, kick: make(chan struct{}, 1)} }

// NewView makes the view event of a count, now, with a new id.
func NewView(row *catalog.Row, p policy.Policy, count item.Count) event.View {
	now := time.Now()
	return event.View{
		EventID: uuid.Must(uuid.NewV7()).String(), ID: row.ID, Count: count, Target: p.Decide(row.Item(count), now).Target,
		DBLevel: row.Level, Filename: row.Filename, PostedAt: now,
	}
}

// Again posts a content's last count once more: the newest event's, else that of its row. A count that
// is posted meanwhile goes first and is then the one that is repeated.
func (a *Appraiser) Again(ctx context.Context, row catalog.Row, p policy.Policy) (event.View, error) {
	for range 10 {
		st, ok, err := a.Store.Get(ctx, row.ID)
		if err != nil {
			return event.View{}, err
		}
		count, newest := row.ViewCount, ""
		if ok {
			count, newest = st.Count, st.EntryID
		}
		v := NewView(&row, p, count)
		id, err := a.Store.AppendIf(ctx, newest, v)
		if err != nil {
			return event.View{}, err
		}
		if id != "" {
			return v, nil
		}
	}
	return event.View{}, fault.New(fault.Unavailable, "post the last count of content", row.ID.String(),
		errors.New("new counts keep coming"))
}

// LevelsChanged has all contents looked at soon, in the background, after Registry.SetLevels, and the last count posted
// again of those that the change concerns.
func (a *Appraiser) LevelsChanged() {
	select {
	case a.kick <- struct{}{}:
	default:
	}
}

const (
	pageSize = 1000
	// pauseAfter is the wait after a failure, and while the backlog is full.
	pauseAfter = time.Second
	// lookAgain is how soon an api takes up a change that another one has left.
	lookAgain = 5 * time.Second
)

// Run appraises until ctx ends: a change that was made here, and one that another api has left, or this one before it was
// started again.
func (a *Appraiser) Run(ctx context.Context) {
	for ctx.Err() == nil {
		wait := lookAgain
		var begun bool
		err := a.Registry.WithChange(ctx, func(c registry.Change) error { begun = true; return a.all(ctx, c) })
		if err != nil && (begun || !fault.Is(err, fault.Unavailable)) { // else /readyz says what is missing
			wait = pauseAfter // and another api may try it
			if ctx.Err() == nil {
				a.Log.Warn("contents cannot be looked at again after a change of levels; trying on", zap.Error(err))
			}
		}
		select {
		case <-ctx.Done():
		case <-a.kick:
		case <-time.After(wait):
		}
	}
}

// all looks at what is left of a change. Where the levels have changed again it returns: that is the next change.
func (a *Appraiser) all(ctx context.Context, c registry.Change) error {
	posted, after := 0, c.After
	for {
		n, rows, err := a.page(ctx, c.Before, after)
		posted += n
		if err != nil {
			if ctx.Err() != nil {
				a.Log.Info("stopped while contents are looked at again after a change of levels: the next api goes on",
					zap.Int("posted", posted), zap.Stringer("after", after))
			}
			return err // what was posted already needs no more and is passed over
		}
		if len(rows) < pageSize {
			if done, err := c.Done(ctx); err != nil || !done {
				return err
			}
			a.Log.Info("the levels have changed: contents were looked at again", zap.Int("posted", posted))
			return nil
		}
		after = rows[len(rows)-1].ID
		if still, err := c.Looked(ctx, after); err != nil || !still {
			return err
		}
		if a.Full() {
			select {
			case <-ctx.Done():
			case <-time.After(pauseAfter):
			}
		}
	}
}

func (a *Appraiser) page(ctx context.Context, before []policy.Level, after item.ID) (posted int, rows []catalog.Row, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	p, err := a.Catalog.Policy(ctx)
	if err != nil {
		return 0, nil, err
	}
	rows, err = a.Catalog.List(ctx, "", after, pageSize)
	if err != nil || len(rows) == 0 {
		return 0, nil, err
	}
	ids := make([]item.ID, len(rows))
	for i, r := range rows {
		ids[i] = r.ID
	}
	states, err := a.Store.GetMany(ctx, ids)
	if err != nil {
		return 0, nil, err
	}
	for i, r := range rows {
		if !concerns(r, states[i], before, p) {
			continue
		}
		if _, err := a.Again(ctx, r, p); err != nil {
			return posted, nil, err
		}
		posted++
	}
	return posted, rows, nil
}

// concerns tells whether a content does not lie, and is not about to, where the new levels want it. One that was never
// counted may have been put anywhere on purpose: it is left alone unless the change is about the count 0.
func concerns(row catalog.Row, st *state.State, before []policy.Level, p policy.Policy) bool {
	count, counted := row.ViewCount, row.ViewCount > 0 || row.Generation > 0
	if st != nil {
		count, counted = st.Count, true
	}
	target := p.Decide(row.Item(count), time.Now()).Target
	if st != nil && (st.Status == state.Update || st.Target != row.Level) {
		return st.Target != target // it is on its way somewhere
	}
	if row.Level == target {
		return false
	}
	if counted {
		return true
	}
	for _, l := range before {
		if l.Holds(int64(count)) {
			return l.Name != target
		}
	}
	return true
}
