package commit

import (
	"sync"

	"github.com/tierflow/tierflow/shared/stream"
)

// overlap lets a partition's next batch be read and applied to MySQL while Redis finishes the batch before. It allows no
// more than that: two transactions at once are slower than one after the other, and entries that gather meanwhile are
// better committed as one batch.
type overlap struct {
	consumer  *stream.Consumer
	mu        sync.Mutex
	changed   *sync.Cond
	finishing int // batches that have been applied and are not finished
}

func newOverlap() *overlap {
	o := &overlap{}
	o.changed = sync.NewCond(&o.mu)
	return o
}

// applied is called when a batch needs MySQL no more. finished is for when it needs Redis no more.
func (o *overlap) applied() (finished func()) {
	o.add(1)
	return func() { o.add(-1) }
}

func (o *overlap) add(n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.finishing += n
	o.consumer.SetSlots(min(1+o.finishing, 2))
	if o.finishing == 0 {
		o.changed.Broadcast()
	}
}

// wait returns when all other batches are finished. The caller must not have called applied for its own.
func (o *overlap) wait() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.finishing > 0 {
		o.changed.Wait()
	}
}
