package live

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/state"
)

// Move is a view event that a relocator has read and not settled: it is at work on it, or will try it again.
type Move struct {
	Entry      Ref
	Worker     string // who read it last
	Idle       time.Duration
	Deliveries int64
	View       event.View
	Progress   *state.Progress // nil where no bytes move now
}

// InFlight reads limit moves at most, oldest first over all partitions, after a Ref. next is where to go on from, nil at
// the end.
func InFlight(ctx context.Context, rdb redis.UniversalClient, store *state.Store, after Ref, limit int) (moves []Move, next *Ref, err error) {
	all := store.Keys().Each()
	pages := make([]*redis.XPendingExtCmd, len(all))
	// The pipeline's error is that of its first failed command; each command has its own.
	_, _ = rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for p, k := range all {
			pages[p] = pipe.XPendingExt(ctx, &redis.XPendingExtArgs{Stream: k.Views(), Group: state.GroupRelocator,
				Start: after.start(p), End: "+", Count: int64(limit)})
		}
		return nil
	})
	type pending struct {
		ref Ref
		redis.XPendingExt
	}
	var found []pending
	for p, page := range pages {
		ps, err := page.Result()
		if err != nil && strings.HasPrefix(err.Error(), "NOGROUP") {
			continue
		}
		if err != nil {
			return nil, nil, fault.New(fault.Unavailable, "read pending entries of", all[p].Views(), err)
		}
		for _, e := range ps {
			found = append(found, pending{Ref{p, e.ID}, e})
		}
	}
	slices.SortFunc(found, func(a, b pending) int { return a.ref.compare(b.ref) })
	if len(found) >= limit {
		found = found[:limit]
		next = &found[limit-1].ref
	}
	entries := make([]*redis.XMessageSliceCmd, len(found))
	if len(found) > 0 {
		_, _ = rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
			for i, e := range found {
				entries[i] = pipe.XRange(ctx, all[e.ref.Partition].Views(), e.ID, e.ID)
			}
			return nil
		})
	}
	for i, p := range found {
		ms, err := entries[i].Result()
		if err != nil {
			return nil, nil, fault.New(fault.Unavailable, "read", all[p.ref.Partition].Views(), err)
		}
		if len(ms) == 0 {
			continue
		}
		v, err := event.ParseView(values(ms[0].Values))
		if err != nil {
			continue // the relocator will bury it
		}
		m := Move{Entry: p.ref, Worker: p.Consumer, Idle: p.Idle, Deliveries: p.RetryCount, View: v}
		progress, ok, err := store.GetProgress(ctx, v.ID)
		if err != nil {
			return nil, nil, err
		}
		// Of several events of one content only one moves.
		if ok && progress.EventID == v.EventID {
			m.Progress = &progress
		}
		moves = append(moves, m)
	}
	return moves, next, nil
}
