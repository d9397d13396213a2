package stream

import (
	"context"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Delivery is one entry in a handler's hands. The handler says what became of it by exactly one of Settled, Later
// and Failed; saying nothing counts as Failed.
type Delivery struct {
	Stream  string
	ID      string // the entry's id in the stream
	Values  map[string]string
	Attempt int64 // 1 for the first

	// Context is cancelled when the entry is somebody else's, or the drain time is over; and it may be as soon as
	// the entry is acked, so what is left to do then needs a context of its own.
	Context context.Context
	cancel  context.CancelCauseFunc

	parked   bool         // guarded by the consumer's lock
	progress atomic.Int64 // unix nanoseconds of the last sign of life
	verdict  verdict
	wait     time.Duration
	err      error
	waits    int  // Later in a row, here: for the back-off of what is no failure
	failed   bool // Redis has a record of its back-off, until the next attempt begins
}

type verdict int

const (
	none verdict = iota
	settled
	later
	failed
)

// Settled: the handler's script has acked it.
func (d *Delivery) Settled() { d.verdict = settled }

// Later: it stays pending and is handed out again after the wait; this was no attempt. A wait of 0 or less lets the
// consumer choose, longer each time.
func (d *Delivery) Later(wait time.Duration) { d.verdict, d.wait = later, wait }

// Failed: it stays pending and is handed out again after a back-off, as the next attempt.
func (d *Delivery) Failed(err error) { d.verdict, d.err = failed, err }

// Progress is a sign of life: without one for a while, the heartbeat lets the entry go.
func (d *Delivery) Progress() { d.progress.Store(time.Now().UnixNano()) }

// Stalled tells whether the last sign of life is longer ago than that.
func (d *Delivery) Stalled(than time.Duration) bool {
	return time.Now().UnixNano()-d.progress.Load() > int64(than)
}

// Added is the time in an entry's id: the server's clock when it was added.
func Added(id string) (time.Time, error) {
	ms, _, _ := strings.Cut(id, "-")
	n, err := strconv.ParseInt(ms, 10, 64)
	return time.UnixMilli(n), err
}

// Newer tells whether stream id a is newer than b. Ids are two numbers of up to 64 bits, so they are compared as
// digits. An empty id is older than any.
func Newer(a, b string) bool {
	am, as, _ := strings.Cut(a, "-")
	bm, bs, _ := strings.Cut(b, "-")
	if am != bm {
		return longer(am, bm)
	}
	return longer(as, bs)
}

func longer(a, b string) bool {
	if len(a) != len(b) {
		return len(a) > len(b)
	}
	return a > b
}
