package ingest

import (
	"errors"
	"runtime"
	"sync"
	"time"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
)

// group is the events of one script call, in the order in which they came. Whoever has joined it waits for done.
type group struct {
	views []event.View // not to be touched after done
	since time.Time    // when the first event came
	err   error        // what became of all of them; set before done is closed
	done  chan struct{}
}

// lane is a queue of groups. Events of one content are always in the same lane; who wants two of them in order, waits for
// the first.
type lane struct {
	most   int           // events that may wait
	kick   chan struct{} // somebody has joined
	filled chan struct{} // takeGrown may have one

	mu      sync.Mutex
	groups  []*group // the oldest first; there is room in the last one only
	waiting int      // events in groups
	sending bool     // one that take has given is under way
	ended   bool     // nobody sends any more
	spares  [][]event.View
}

func newLane(most int) *lane {
	return &lane{most: most, kick: make(chan struct{}, 1), filled: make(chan struct{}, 1)}
}

var (
	errStopping error = fault.New(fault.Unavailable, "append view", "", errors.New("the service is stopping; the event was not sent"))
	errFull     error = fault.New(fault.Unavailable, "append view", "", errors.New("too many requests are waiting; the event was not sent"))
)

// join adds events, MaxGroup at most, to the last group or to a new one. The error is errStopping or errFull.
func (l *lane) join(views ...event.View) (*group, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return nil, errStopping
	}
	if l.waiting+len(views) > l.most {
		return nil, errFull
	}
	var g *group
	if n := len(l.groups); n > 0 && len(l.groups[n-1].views)+len(views) <= MaxGroup {
		g = l.groups[n-1]
	} else {
		g = &group{since: time.Now(), done: make(chan struct{})}
		if n := len(l.spares); n > 0 {
			g.views, l.spares = l.spares[n-1], l.spares[:n-1]
		}
		l.groups = append(l.groups, g)
	}
	g.views = append(g.views, views...)
	l.waiting += len(views)
	wake(l.kick)
	if l.grown() {
		wake(l.filled)
	}
	return g, nil
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// grown tells whether the oldest group grows no more.
func (l *lane) grown() bool {
	return len(l.groups) > 1 || len(l.groups) == 1 && len(l.groups[0].views) == MaxGroup
}

// take removes the oldest group, nil where nobody waits. Before it looks it lets everybody go on who can: of many
// requests that have arrived at once the first would be sent alone else, and each call costs the same. sent must follow.
func (l *lane) take() *group {
	runtime.Gosched()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.groups) == 0 {
		return nil
	}
	g := l.pop()
	l.sending = true
	if l.grown() {
		wake(l.filled)
	}
	return g
}

// sent is for when what take has given is under way no more.
func (l *lane) sent() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sending = false
}

// takeGrown removes the oldest group if it grows no more and another one is under way, else it is nil.
func (l *lane) takeGrown() *group {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.sending || !l.grown() {
		return nil
	}
	return l.pop()
}

func (l *lane) pop() *group {
	g := l.groups[0]
	l.groups[0] = nil
	l.groups = l.groups[1:]
	l.waiting -= len(g.views)
	return g
}

// oldest is closed when the oldest group has been sent and there is room for others.
func (l *lane) oldest() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.groups) == 0 {
		room := make(chan struct{})
		close(room)
		return room
	}
	return l.groups[0].done
}

// recycle takes the memory of a group's events back.
func (l *lane) recycle(g *group) {
	clear(g.views)
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.spares) < 2 { // as many as are under way
		l.spares = append(l.spares, g.views[:0])
	}
	g.views = nil
}

// end refuses whoever comes from now on; false where somebody waits still.
func (l *lane) end() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = len(l.groups) == 0
	return l.ended
}
