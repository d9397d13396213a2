package ingest

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/tierflow/tierflow/shared/fault"
)

// backlog knows about how much is unsettled: what Redis said last, and the view events that were let in since. It errs
// to the high side, by what was settled since it last looked.
type backlog struct {
	limit   int64
	known   atomic.Int64 // as Redis said
	since   atomic.Int64 // let in since then
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
	return &fault.Error{Kind: BacklogFull, Op: "append view", Hint: "try again later; see whether relocators and committer are up and keep up",
		Err: fmt.Errorf("%d view events, moves and releases are not settled, the limit is %d", b.known.Load()+b.since.Load(), b.limit)}
}

func (b *backlog) giveBack(n int) { b.since.Add(-int64(n)) }

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
			counted := l.since.Load()
			ctx, cancel := context.WithTimeout(context.Background(), tripTimeout)
			n, err := b.store.Unsettled(ctx)
			cancel()
			if err == nil {
				l.known.Store(n)
				l.since.Add(-counted)
			} else {
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
