package ingest

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/tierflow/tierflow/shared/fault"
)

// backlog estimates how many entries are unsettled: the number that Redis returned last, and the view events that this
// number may not include. The estimate is never too low. It is too high by what was settled since the last reading.
type backlog struct {
	limit    int64
	known    atomic.Int64 // as Redis returned it
	since    atomic.Int64 // admitted events that known may not include
	appended atomic.Int64 // those of since that Redis has appended
	traffic  atomic.Bool  // events arrived since the last reading
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

// refresh reads the number of unsettled entries. The number may or may not include an event whose append runs during the
// reading, so such an event stays in since.
func (b *backlog) refresh(unsettled func() (int64, error)) error {
	appended := b.appended.Load()
	n, err := unsettled()
	if err != nil {
		return err
	}
	b.known.Store(n)
	b.since.Add(-appended)
	b.appended.Add(-appended)
	return nil
}

// pollBacklog reads the backlog from Redis while events arrive, or while the backlog is over its limit.
func (b *Batcher) pollBacklog() {
	l := &b.backlog
	l.traffic.Store(true)
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		if l.traffic.Swap(false) || l.known.Load()+l.since.Load() >= l.limit {
			err := l.refresh(func() (int64, error) {
				ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
				defer cancel()
				return b.store.Unsettled(ctx)
			})
			if err != nil {
				l.traffic.Store(true) // Redis is away, and so appends fail as well: read again until it is back
			}
		}
		select {
		case <-tick.C:
		case <-b.stop:
			return
		}
	}
}
