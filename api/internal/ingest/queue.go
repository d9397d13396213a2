package ingest

import (
	"errors"
	"runtime"
	"sync"
	"time"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
)

// group is the events of one script call, in the order in which they arrived. The callers that joined it wait for done.
type group struct {
	views []event.View // not valid after done is closed: recycle reuses the memory
	since time.Time    // when the first event arrived
	err   error        // the result for all events; set before done is closed
	done  chan struct{}
}

// queue is the groups of one partition that wait for their calls. All events of an item go through the same queue. Two
// calls of a queue can run at once. So a caller that needs two events in order waits for the first to be done.
type queue struct {
	limit  int           // events that may wait
	joined chan struct{} // wakes send
	filled chan struct{} // wakes sendMore

	mu      sync.Mutex
	groups  []*group // oldest first; only the last one has room
	waiting int      // events in groups
	sending bool     // a call of a group from take is under way
	ended   bool     // join refuses events
	spares  [][]event.View
}

func newQueue(limit int) *queue {
	return &queue{limit: limit, joined: make(chan struct{}, 1), filled: make(chan struct{}, 1)}
}

var (
	errStopping error = fault.New(fault.Unavailable, "append view", "", errors.New("the service is stopping; the event was not sent"))
	errFull     error = fault.New(fault.Unavailable, "append view", "", errors.New("too many requests are waiting; the event was not sent"))
)

// join adds up to MaxGroup events to the last group, or to a new one where they do not fit. The error is errStopping or
// errFull.
func (q *queue) join(views ...event.View) (*group, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ended {
		return nil, errStopping
	}
	if q.waiting+len(views) > q.limit {
		return nil, errFull
	}
	var g *group
	if n := len(q.groups); n > 0 && len(q.groups[n-1].views)+len(views) <= MaxGroup {
		g = q.groups[n-1]
	} else {
		g = &group{since: time.Now(), done: make(chan struct{})}
		if n := len(q.spares); n > 0 {
			g.views, q.spares = q.spares[n-1], q.spares[:n-1]
		}
		q.groups = append(q.groups, g)
	}
	g.views = append(g.views, views...)
	q.waiting += len(views)
	wake(q.joined)
	if q.full() {
		wake(q.filled)
	}
	return g, nil
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// full reports whether the oldest group gets no more events.
func (q *queue) full() bool {
	return len(q.groups) > 1 || len(q.groups) == 1 && len(q.groups[0].views) == MaxGroup
}

// take removes and returns the oldest group, nil where there is none. It yields first, so that requests that arrived at
// the same time join one group. Else the first of them would have a call of its own. The caller calls sent afterwards.
func (q *queue) take() *group {
	runtime.Gosched()
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.groups) == 0 {
		return nil
	}
	g := q.pop()
	q.sending = true
	if q.full() {
		wake(q.filled)
	}
	return g
}

// sent says that the call of the group that take returned is over.
func (q *queue) sent() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.sending = false
}

// takeFull removes and returns the oldest group where it is full and a group from take is under way, else nil.
func (q *queue) takeFull() *group {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.sending || !q.full() {
		return nil
	}
	return q.pop()
}

func (q *queue) pop() *group {
	g := q.groups[0]
	q.groups[0] = nil
	q.groups = q.groups[1:]
	q.waiting -= len(g.views)
	return g
}

// oldest returns a channel that is closed when the oldest group has been sent, and so there may be room.
func (q *queue) oldest() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.groups) == 0 {
		room := make(chan struct{})
		close(room)
		return room
	}
	return q.groups[0].done
}

// recycle keeps the memory of a group's events for later groups.
func (q *queue) recycle(g *group) {
	clear(g.views)
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.spares) < 2 { // the number of calls that can be under way
		q.spares = append(q.spares, g.views[:0])
	}
	g.views = nil
}

// end makes join refuse events from now on. It does nothing and returns false where groups wait.
func (q *queue) end() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = len(q.groups) == 0
	return q.ended
}
