package ingest

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/tierflow/tierflow/shared/fault"
)

// backlog knows about how much is unsettled: what Redis said last, and the view events that were let in and that this
// did not count for certain. It errs to the high side, by what was settled since it last looked.
type backlog struct {
	limit   int64
	known   atomic.Int64 // as Redis said
	since   atomic.Int64 // let in; those that Redis had answered before it was asked are counted in known
	landed  atomic.Int64 // of since, those that Redis has answered
	traffic atomic.Bool
}

func (b *backlog) admit(n int) error {
	if !b.traffic.Load() {
		b.traffic.Store(true)
	}
	if b.known.Load()+b.since.Add(int64(n)) <= b.limit {
		return nil
	}
	b.since.Add(-int64(n))
	return &fault.Error{Kind: fault.BacklogFull, Op: "append view", Hint: "try again later; see whether relocators and committer are up and keep up",
		Err: fmt.Errorf("%d view events, moves and releases are not settled, the limit is %d", b.known.Load()+b.since.Load(), b.limit)}
}

func (b *backlog) giveBack(n int) { b.since.Add(-int64(n)) }

// ask reads anew what is unsettled. An event that is under way meanwhile may be counted or not, so it stays in since.
func (b *backlog) ask(unsettled func() (int64, error)) error {
	landed := b.landed.Load()
	n, err := unsettled()
	if err != nil {
		return err
	}
	b.known.Store(n)
	b.since.Add(-landed)
	b.landed.Add(-landed)
	return nil
}

// Full tells whether the backlog has reached its limit: for those who append by other ways and should wait.
func (b *Batcher) Full() bool {
	b.backlog.traffic.Store(true)
	return b.backlog.known.Load()+b.backlog.since.Load() >= b.backlog.limit
}

// pollBacklog asks Redis while there is traffic, or while the last answer was over the limit.
func (b *Batcher) pollBacklog() {
	l := &b.backlog
	l.traffic.Store(true)
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		if l.traffic.Swap(false) || l.known.Load()+l.since.Load() >= l.limit {
			err := l.ask(func() (int64, error) {
				ctx, cancel := context.WithTimeout(context.Background(), tripTimeout)
				defer cancel()
				return b.store.Unsettled(ctx)
			})
			if err != nil {
				l.traffic.Store(true) // Redis is away: appends fail by themselves, and what it holds must be read once it is back
			}
		}
		select {
		case <-tick.C:
		case <-b.stop:
			return
		}
	}
}
