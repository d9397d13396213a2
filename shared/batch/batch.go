// Package batch lets calls that are made at the same time share one round trip to a server or one sync of a disk. Databases
// call this group commit. Calls that arrive while a batch runs gather for the next one. A lone call runs at once. A caller
// sees only its own call. The state store and the relocator's look-ups, syncs and listings use it.
package batch

import (
	"context"
	"sync"
)

// Runner does the work of many calls. Batches run one after the other. The zero value is not usable.
type Runner[In, Out any] struct {
	run func(ins []In) []Out
	max int // calls in a batch

	mu      sync.Mutex
	waiting []*call[In, Out]
	running bool
}

type call[In, Out any] struct {
	in   In
	out  Out
	done chan struct{}
}

// New makes a Runner. run gets the arguments of up to maxCalls calls and returns a result for each, in their order. It must
// bound its own time, because it outlives callers that give up.
func New[In, Out any](maxCalls int, run func(ins []In) []Out) *Runner[In, Out] {
	return &Runner[In, Out]{run: run, max: maxCalls}
}

// Do returns the call's own result. The run that serves a call begins after Do was called. So an fsync covers all that the
// caller did before, and a read sees it. The only error is the cause of ctx's end; the call may run all the same.
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

// work runs batches until no call waits.
func (r *Runner[In, Out]) work() {
	for {
		r.mu.Lock()
		n := min(len(r.waiting), r.max)
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
