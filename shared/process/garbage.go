package process

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// garbage is how much of it may pile up before it is collected, in percent of what is in use.
	garbage  = 400
	standard = 100 // Go's
	// restLook is how often a program is looked at for rest, and atRest what it allocates at most from one look to the next.
	restLook = 2 * time.Second
	atRest   = 1 << 20
)

// CollectLate is for services that have little in use, some megabytes and bounded caches, and make much garbage under load:
// Go would collect it a dozen times a second. What has piled up goes back to the system as soon as the service rests. Where
// memory is limited, GOMEMLIMIT bounds it; a GOGC in the environment that is not Go's own 100 goes before all of this. It
// ends with ctx.
func CollectLate(ctx context.Context) {
	if was := debug.SetGCPercent(garbage); was != standard {
		debug.SetGCPercent(was)
		return
	}
	go func() {
		look := time.NewTicker(restLook)
		defer look.Stop()
		busy, last := false, allocated()
		for {
			select {
			case <-ctx.Done():
				return
			case <-look.C:
			}
			now := allocated()
			rests := now-last < atRest
			if busy && rests {
				debug.FreeOSMemory()
			}
			busy, last = !rests, now
		}
	}()
}

// allocated is the bytes that this program has ever allocated.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
