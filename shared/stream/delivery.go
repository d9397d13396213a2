package stream

import (
	"context"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Delivery is one entry that a handler works on. The handler calls exactly one of Settled, Later, Await, AwaitTurn, Alone and
// Failed. A handler that calls none has failed.
type Delivery struct {
	Single  bool   // its handler gets it alone, because an earlier one has called Alone
	Reason  string // why the entry waits, a word, for Waiting and Waits; a handler may set it
	Cause   error  // the last error, for Waits; a handler may set it
	Stream  string
	ID      string // the entry's id in the stream
	Values  map[string]string
	Attempt int64 // 1 for the first

	// Context is cancelled when another consumer has the entry, or when the drain time is over. It may also be cancelled as
	// soon as the entry is acked, so work after the ack needs another context.
	Context context.Context
	cancel  context.CancelCauseFunc

	consumer *Consumer
	handling *handling // guarded by the consumer's lock, as the next seven; nil while it waits for a handler after Alone
	shown    shown     // what Waits tells
	parked   bool
	due      time.Time    // of one that is in a heap
	at       int          // its index there plus 1; 0: it is in none
	awaits   bool         // it is parked until Wake
	turn     bool         // it waits for its turn
	woken    bool         // Wake was called since its handler began
	progress atomic.Int64 // of the last sign of life, by monotonic
	working  atomic.Int32 // calls of Working that are not over
	verdict  verdict
	wait     time.Duration
	waits    int  // calls of Later in a row, by this consumer
	failed   bool // Redis has a record of its back-off, until the next attempt begins

	// uncounted: the delivery count is one less than Attempt, until the entry is begun again.
	uncounted bool
}

type verdict int

const (
	none verdict = iota
	settled
	later
	await
	failed
)

// Settled says that the handler's script has acked the entry.
func (d *Delivery) Settled() { d.verdict = settled }

// Later says that this was no attempt. The entry stays pending and comes again after the wait. With a wait of 0 or less the
// consumer chooses one, longer each time.
func (d *Delivery) Later(wait time.Duration) { d.verdict, d.wait = later, wait }

// Await says that this was no attempt, and that the entry waits until Wake is called. It stays pending meanwhile.
func (d *Delivery) Await() { d.verdict, d.turn = await, false }

// AwaitTurn is Await for an entry that waits for a limit of this process. Where many do, the consumer reads no further ones.
func (d *Delivery) AwaitTurn() { d.verdict, d.turn = await, true }

// Wake ends the wait of Await, also where it is called before the handler has returned. Later calls do nothing. false:
// this consumer has lost the entry, and nothing waits. It is safe for concurrent use.
func (d *Delivery) Wake() bool { return d.consumer.awake(d) }

// Alone gives the entry to a handler that gets it alone, at once or as soon as there is a slot for it (Options.Alone). So the
// rest of its batch need not wait for it. The handler that calls it is done with the entry, before it returns. From then on, the
// entry always gets a handler alone.
func (d *Delivery) Alone() { d.consumer.setApart(d) }

// Hurry ends the wait of Later for an entry that still waits. It is safe for concurrent use.
func (d *Delivery) Hurry() { d.consumer.hurry(d) }

// Acked says that an entry which waits after Later was acked meanwhile, for example with a newer one that supersedes it. Where it
// does not wait any more, Acked does nothing. It is safe for concurrent use.
func (d *Delivery) Acked() { d.consumer.acked(d) }

// Hangs says that the handler may never return, because a system call hangs. The handler gives its slot to others, and a crash
// counts no attempt from now on. It is safe for concurrent use.
func (d *Delivery) Hangs() { d.consumer.hangs(d) }

// Failed says that the attempt has failed. The entry stays pending and comes again after a back-off, as the next attempt.
func (d *Delivery) Failed(err error) { d.verdict, d.Cause = failed, err }

// Progress is a sign of life. After MinIdle without one, the heartbeat does not renew the entry any more.
func (d *Delivery) Progress() { d.progress.Store(monotonic()) }

// Working says that the handler makes calls that can take any time and give no sign of life meanwhile, such as an fsync. The
// heartbeat renews the entry until done is called, however long that takes. done is to be called once.
func (d *Delivery) Working() (done func()) {
	d.working.Add(1)
	return func() {
		d.Progress()
		d.working.Add(-1)
	}
}

// Stalled reports whether the last sign of life is longer ago than the given time, and the handler is not Working.
func (d *Delivery) Stalled(than time.Duration) bool {
	return d.working.Load() == 0 && monotonic()-d.progress.Load() > int64(than)
}

var processStart = time.Now()

// monotonic is a time in nanoseconds that goes on evenly whatever happens to the clock of this machine.
func monotonic() int64 { return int64(time.Since(processStart)) }

// Added returns the time in an entry's id: when it was added, by the server's clock.
func Added(id string) (time.Time, error) {
	ms, _, _ := strings.Cut(id, "-")
	n, err := strconv.ParseInt(ms, 10, 64)
	return time.UnixMilli(n), err
}
