// Package batch lets calls that are made at the same time share one round trip to a server or one sync of a disk: group commit. While
// one batch runs, the calls that come meanwhile gather for the next; a lone call runs at once. Code that uses it stays
// as straight as if every call were its own. Its importers are the state store, the relocator's look-ups,
// syncs and listings.
package batch

import (
	"context"
	"sync"
)

// Runner does the work of many calls. Batches run one after the other. The zero value is not usable.
type Runner[In, Out any] struct {
	run  func(ins []In) []Out
	most int

	mu      sync.Mutex
	waiting []*call[In, Out]
	running bool
}

type call[In, Out any] struct {
	in   In
	out  Out
	done chan struct{}
}

// New makes a Runner. run gets the arguments of at most so many calls and returns a result for each, in their order;
// it bounds its own time, because it outlives the callers that give up.
func New[In, Out any](most int, run func(ins []In) []Out) *Runner[In, Out] {
	return &Runner[In, Out]{run: run, most: most}
}

// Do returns the call's own result. What serves it has begun after Do was called: an fsync then covers all that the
// caller did before, and a read sees it. The error is the cause of ctx's end, and nothing else; the call may be carried
// out all the same.
func (r *Runner[In, Out]) Do(ctx context.Context, in In) (Out, error) {
	c := &call[In, Out]{in: in, done: make(chan struct{})}
	r.mu.Lock()
	r.waiting = append(r.waiting, c)
	if !r.running {
		r.running = true
		go r.work()
	}
	r.mu.Unlock()
	select {
	case <-c.done:
		return c.out, nil
	case <-ctx.Done():
		var none Out
		return none, context.Cause(ctx)
	}
}

// work runs batches until nobody waits.
func (r *Runner[In, Out]) work() {
	for {
		r.mu.Lock()
		n := min(len(r.waiting), r.most)
		batch := r.waiting[:n:n]
		r.waiting = r.waiting[n:]
		if n == 0 {
			r.waiting, r.running = nil, false
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()

		ins := make([]In, n)
		for i, c := range batch {
			ins[i] = c.in
		}
		for i, out := range r.run(ins) {
			batch[i].out = out
			close(batch[i].done)
		}
	}
}
