package state_test

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
)

// roundTrips counts how often a client waits for Redis: a pipeline counts once.
type roundTrips struct{ n atomic.Int64 }

func (r *roundTrips) DialHook(next redis.DialHook) redis.DialHook { return next }

func (r *roundTrips) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		r.n.Add(1)
		return next(ctx, cmd)
	}
}

func (r *roundTrips) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		r.n.Add(1)
		return next(ctx, cmds)
	}
}

func TestAPageOfMovesTakesThreeRoundTripsHoweverLongItIs(t *testing.T) {
	w := newWorld(t)
	var views []event.View
	for i := range 100 {
		views = append(views, view(i, item.ID(i+1), 1, "silver", "bronze", "f"))
	}
	_, err := w.Append(t.Context(), views)
	w.must(err)
	w.read(w.keys.Views(), state.GroupRelocator)
	for i, v := range views {
		if i%2 == 0 {
			w.must(w.SetProgress(t.Context(), v.ID, state.Progress{EventID: v.EventID, BytesDone: int64(i)}))
		}
	}
	counted := &roundTrips{}
	w.rdb.(*redis.Client).AddHook(counted)
	var seen int
	after := &state.Ref{}
	for _, limit := range []int{1, 60, 60} {
		counted.n.Store(0)
		moves, next, err := w.Moves(t.Context(), *after, limit)
		w.must(err)
		if n := counted.n.Load(); n != 3 {
			t.Errorf("%d moves take %d round trips", len(moves), n)
		}
		for _, m := range moves {
			v := views[seen]
			if m.View != v || (m.Progress != nil) != (seen%2 == 0) || m.Progress != nil && m.Progress.BytesDone != int64(seen) {
				t.Errorf("move %d: %+v", seen, m)
			}
			seen++
		}
		after = next
	}
	if seen != 100 || after != nil {
		t.Errorf("%d moves, and more after %v", seen, after)
	}
	counted.n.Store(0)
	if moves, next, err := w.Moves(t.Context(), state.Ref{ID: "9999999999999-0"}, 10); err != nil || len(moves) > 0 || next != nil || counted.n.Load() != 1 {
		t.Errorf("behind the end: %v, %v, %v, %d round trips", moves, next, err, counted.n.Load())
	}
}

func TestAMoveDoesNotShowTheProgressOfAnotherEvent(t *testing.T) {
	w := newWorld(t)
	w.append(view(1, 7, 1, "silver", "bronze", "f"))
	w.must(w.SetProgress(t.Context(), 7, state.Progress{EventID: uuid(2)}))
	moves, _, err := w.Moves(t.Context(), state.Ref{}, 10)
	if err != nil || len(moves) != 1 || moves[0].Progress != nil {
		t.Errorf("%+v, %v", moves, err)
	}
}

func TestTheEndsOfAllStreamsAreReadInOneRoundTrip(t *testing.T) {
	w := newWorld(t)
	entry := w.append(view(1, 7, 1, "silver", "bronze", "f"))
	counted := &roundTrips{}
	w.rdb.(*redis.Client).AddHook(counted)
	ids, err := w.LastIDs(t.Context(), []string{w.keys.Dead(), w.keys.Views()})
	if err != nil || ids[0] != "0-0" || ids[1] != entry || counted.n.Load() != 1 {
		t.Errorf("%v, %v, %d round trips", ids, err, counted.n.Load())
	}
}
