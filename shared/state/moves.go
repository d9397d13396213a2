package state

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/event"
)

// Move is a view event that a relocator has read and not settled. The relocator works on it, or will try it again.
type Move struct {
	Entry      Ref
	Worker     string // the relocator that read it last
	Idle       time.Duration
	Deliveries int64
	View       event.View
	Progress   *Progress // nil where no bytes move now
}

// Moves reads up to limit moves after a Ref, oldest first over all partitions. next is the Ref to go on from, nil at the
// end. An entry that cannot be read is left out: the relocator makes it a dead letter.
//
// Each page takes three pipelines, however many moves it has: the pending entries, their fields, and their progress.
// Each needs what the one before it returned. In a cluster a pipeline is one batch of commands to each node.
func (s *Store) Moves(ctx context.Context, after Ref, limit int) (moves []Move, next *Ref, err error) {
	found, err := s.pendingViews(ctx, after, limit)
	if err != nil {
		return nil, nil, err
	}
	if len(found) >= limit {
		found = found[:limit]
		next = &found[limit-1].Entry
	}
	if moves, err = s.withViews(ctx, found); err != nil {
		return nil, nil, err
	}
	return moves, next, s.addProgress(ctx, moves)
}

// pendingViews returns what XPENDING knows of the next moves.
func (s *Store) pendingViews(ctx context.Context, after Ref, limit int) ([]Move, error) {
	all := s.keys.Each()
	pages := make([]*redis.XPendingExtCmd, len(all))
	// The pipeline's error is that of its first failed command; each command has its own.
	_, _ = s.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for p, k := range all {
			pages[p] = pipe.XPendingExt(ctx, &redis.XPendingExtArgs{Stream: k.Views(), Group: GroupRelocator,
				Start: after.start(p), End: "+", Count: int64(limit)})
		}
		return nil
	})
	var found []Move
	for p, page := range pages {
		entries, err := page.Result()
		if err != nil && strings.HasPrefix(err.Error(), "NOGROUP") {
			continue
		}
		if err != nil {
			return nil, unavailable("read pending entries of", all[p].Views(), err)
		}
		for _, e := range entries {
			found = append(found, Move{Entry: Ref{p, e.ID}, Worker: e.Consumer, Idle: e.Idle, Deliveries: e.RetryCount})
		}
	}
	slices.SortFunc(found, func(a, b Move) int { return a.Entry.Compare(b.Entry) })
	return found, nil
}

// withViews returns the moves whose entries are there and can be read, with their views.
func (s *Store) withViews(ctx context.Context, found []Move) (moves []Move, err error) {
	if len(found) == 0 {
		return nil, nil
	}
	entries := make([]*redis.XMessageSliceCmd, len(found))
	_, _ = s.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, m := range found {
			entries[i] = pipe.XRange(ctx, s.keys.In(m.Entry.Partition).Views(), m.Entry.ID, m.Entry.ID)
		}
		return nil
	})
	for i, m := range found {
		ms, err := entries[i].Result()
		if err != nil {
			return nil, unavailable("read", s.keys.In(m.Entry.Partition).Views(), err)
		}
		if len(ms) == 0 {
			continue
		}
		if m.View, err = event.ParseView(texts(ms[0].Values)); err == nil {
			moves = append(moves, m)
		}
	}
	return moves, nil
}

func (s *Store) addProgress(ctx context.Context, moves []Move) error {
	if len(moves) == 0 {
		return nil
	}
	hashes := make([]*redis.MapStringStringCmd, len(moves))
	_, _ = s.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, m := range moves {
			hashes[i] = pipe.HGetAll(ctx, s.keys.Progress(m.View.ID))
		}
		return nil
	})
	for i := range moves {
		m := &moves[i]
		p, ok, err := parseProgress(m.View.ID, hashes[i])
		if err != nil {
			return err
		}
		if ok && p.EventID == m.View.EventID { // of several events of an item only one moves
			m.Progress = &p
		}
	}
	return nil
}
