package process

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// gcPercent is how much the heap grows before a collection, in percent of the live heap (runtime/debug.SetGCPercent).
	gcPercent      = 400
	defaultPercent = 100 // Go's
	// A program that allocates less than maxIdleBytes within idleInterval is idle.
	idleInterval = 2 * time.Second
	maxIdleBytes = 1 << 20
)

// CollectLate makes garbage collection rarer, until ctx ends. It is for services with a live heap of some megabytes that
// allocate much under load: by default, Go would collect a dozen times a second. As soon as the service is idle, its free
// memory goes back to the system. GOMEMLIMIT bounds the heap as always. With a GOGC other than 100 in the environment,
// CollectLate does nothing.
func CollectLate(ctx context.Context) {
	if was := debug.SetGCPercent(gcPercent); was != defaultPercent {
		debug.SetGCPercent(was)
		return
	}
	go func() {
		tick := time.NewTicker(idleInterval)
		defer tick.Stop()
		busy, last := false, allocated()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			now := allocated()
			idle := now-last < maxIdleBytes
			if busy && idle {
				debug.FreeOSMemory()
			}
			busy, last = !idle, now
		}
	}()
}

// allocated returns the number of bytes that this program has ever allocated on its heap.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
