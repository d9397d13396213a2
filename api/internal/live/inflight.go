package live

import (
	"context"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/state"
)

// Move is a view event that a relocator has read and not settled: it is at work on it, or will try it again.
type Move struct {
	EntryID    string
	Worker     string // who read it last
	Idle       time.Duration
	Deliveries int64
	View       event.View
	Progress   *state.Progress // nil where no bytes move now
}

// InFlight reads limit moves at most, oldest first, from an entry id on ("-" is the oldest, "(id" what follows id).
// next is where to go on from, "" at the end.
func InFlight(ctx context.Context, rdb redis.UniversalClient, store *state.Store, from string, limit int64) (moves []Move, next string, err error) {
	views := store.Keys().Views()
	pending, err := rdb.XPendingExt(ctx, &redis.XPendingExtArgs{Stream: views, Group: state.GroupRelocator,
		Start: from, End: "+", Count: limit}).Result()
	if err != nil && strings.HasPrefix(err.Error(), "NOGROUP") {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", fault.New(fault.Unavailable, "read pending entries of", views, err)
	}
	entries := make([]*redis.XMessageSliceCmd, len(pending))
	if len(pending) > 0 {
		// The pipeline's error is that of its first failed command; each command has its own.
		_, _ = rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
			for i, p := range pending {
				entries[i] = pipe.XRange(ctx, views, p.ID, p.ID)
			}
			return nil
		})
	}
	if int64(len(pending)) == limit {
		next = pending[len(pending)-1].ID
	}
	for i, p := range pending {
		ms, err := entries[i].Result()
		if err != nil {
			return nil, "", fault.New(fault.Unavailable, "read", views, err)
		}
		if len(ms) == 0 {
			continue
		}
		v, err := event.ParseView(values(ms[0].Values))
		if err != nil {
			continue // the relocator will bury it
		}
		m := Move{EntryID: p.ID, Worker: p.Consumer, Idle: p.Idle, Deliveries: p.RetryCount, View: v}
		progress, ok, err := store.GetProgress(ctx, v.ID)
		if err != nil {
			return nil, "", err
		}
		// Of several events of one content only one moves.
		if ok && progress.EventID == v.EventID {
			m.Progress = &progress
		}
		moves = append(moves, m)
	}
	return moves, next, nil
}
