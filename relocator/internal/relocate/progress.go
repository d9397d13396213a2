package relocate

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
)

// progress is how many bytes of a move are copied, for the list of moves in flight.
type progress struct {
	mu    sync.Mutex
	p     state.Progress
	begun bool
	done  atomic.Int64
	total atomic.Int64
}

func (p *progress) begin(s state.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.p, p.begun = s, true
}

func (p *progress) set(done, total int64) { p.done.Store(done); p.total.Store(total) }

func (p *progress) publish(ctx context.Context, store *state.Store, id item.ID) {
	p.mu.Lock()
	s, begun := p.p, p.begun
	p.mu.Unlock()
	if !begun {
		return
	}
	s.BytesDone, s.BytesTotal = p.done.Load(), p.total.Load()
	_ = store.SetProgress(ctx, id, s) // visible only; the next call writes it again
}
