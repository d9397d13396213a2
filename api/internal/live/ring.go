package live

import (
	"slices"
	"sync"
)

const (
	// ringLength is how many events the ring keeps. An event takes less than a kilobyte as a rule.
	ringLength = 8192
	// portion is how many events a watcher takes at a time.
	portion = 256
)

// ring keeps the newest events for all watchers. Each watcher has only the number of the event that it reads next. So a
// watcher costs no memory for events, and one that does not read holds up nobody.
type ring struct {
	mu     sync.Mutex
	events []Event       // event n is at n modulo the length
	oldest uint64        // the number of the oldest event that is kept
	next   uint64        // the number of the next event
	floor  []string      // of each stream, the id up to which events may be missing here; nil: nobody reads the streams
	ends   []string      // of each stream, the id of the last event
	more   chan struct{} // closed when there are more events, or when somebody begins to read the streams
}

func newRing(length int) *ring {
	return &ring{events: make([]Event, length), more: make(chan struct{})}
}

// begin empties the ring. From now on it gets every event after these ids.
func (r *ring) begin(ids []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.events)
	r.oldest, r.floor, r.ends = r.next, slices.Clone(ids), slices.Clone(ids)
	r.wake()
}

// stop says that nobody reads the streams any more.
func (r *ring) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.events)
	r.floor, r.ends = nil, nil
}

func (r *ring) wake() {
	close(r.more)
	r.more = make(chan struct{})
}

func (r *ring) add(events []Event) {
	if len(events) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.floor == nil {
		return
	}
	size := uint64(len(r.events))
	for _, e := range events {
		place := &r.events[r.next%size]
		if r.next-r.oldest == size {
			if place.ID != "" {
				r.floor[place.at] = place.ID
			}
			r.oldest++
		}
		*place = e
		r.next++
		if e.ID != "" {
			r.ends[e.at] = e.ID
		}
	}
	r.wake()
}

// last returns the id of the last event of each stream, nil where nobody reads the streams.
func (r *ring) last() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.ends)
}

// start says what a watcher finds: the number of the first event, and live, that of the first event that is yet to come. floor has
// of each stream the id up to which events may be missing; nil: nobody reads the streams. more is closed when that or the
// events change.
func (r *ring) start() (first, live uint64, floor []string, more <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.oldest, r.next, slices.Clone(r.floor), r.more
}

// from returns events from number n on, and a channel that is closed when there are more. ok is false where the ring has
// lost event n.
func (r *ring) from(n uint64) (events []Event, more <-chan struct{}, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n < r.oldest || r.floor == nil {
		return nil, nil, false
	}
	for ; n < r.next && len(events) < portion; n++ {
		events = append(events, r.events[n%uint64(len(r.events))])
	}
	return events, r.more, true
}
