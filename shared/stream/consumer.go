package stream

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/batch"
	"github.com/tierflow/tierflow/shared/outage"
)

// Handler works on deliveries: at most Options.Batch of them. On each it calls one of the methods that Delivery names.
type Handler func(ds []*Delivery)

// Options of a Consumer. Redis, Stream, Backoff, Walker, Group, Consumer, MinIdle, Handle and Log are required.
type Options struct {
	Redis    redis.UniversalClient
	Stream   string
	Backoff  string // the group's key, in the stream's slot: which entries have failed, and when they are due
	Walker   string // the group's key, in the stream's slot: which consumer looks for entries of dead ones
	Group    string
	Consumer string        // no other living consumer has this name; the same after a restart where possible
	MinIdle  time.Duration // other consumers take over an entry that was not renewed for so long
	Slots    int           // handlers at once; 1 where 0
	Batch    int           // deliveries that one handler gets; 1 where 0
	// Alone is how many handlers may run at once for entries that were set apart (Delivery.Alone), besides Slots. No new entry is
	// read while as many wait for one: after a crash, all entries in hand wait for a take-over.
	Alone int
	Drain time.Duration // how long handlers may run after a stop
	Keep  int64         // settled entries that trimming leaves in the stream; 10,000 where 0
	// Unconsumed is how long another group of the stream may settle nothing before Unconsumed lists it; a minute where 0.
	Unconsumed time.Duration
	Adopt      time.Duration // how often Run looks for entries reassigned to this consumer; 0: at each upkeep
	Hold       func() bool   // no entry is begun while it returns true; called at every turn; may be nil
	Full       func() bool   // no new entry is read while it returns true, because its handler could only wait; may be nil
	Handle     Handler
	Log        *zap.Logger
	Lost       func(id string) // an entry was deleted while it was pending; may be nil
}

const (
	// idleBlock bounds a blocked read, and so the time that a stop takes while nothing happens.
	idleBlock = time.Second
	// busyBlock bounds a blocked read while handlers run, because Run sees freed slots and parked entries only after it.
	busyBlock = 20 * time.Millisecond
	noBlock   = -1
	// gather is how long a nearly full consumer waits for more free slots where more entries may be there, and one of batches
	// between two reads. Else each entry would cost a round trip.
	gather = 5 * time.Millisecond
	// aheadBlock is how long the turn of an entry, or the end of Full, may go unnoticed while no handler of this consumer ends.
	aheadBlock = 100 * time.Millisecond
	// maxAhead is how many entries may wait for their turn. More are not read: others may have room for them.
	maxAhead = 512
	// holdBlock is how long the end of a hold may go unnoticed.
	holdBlock = 100 * time.Millisecond
	// maxParked bounds memory. An entry beyond it is forgotten here, and comes back through XAUTOCLAIM.
	maxParked = 10_000
	// maxClaimed is how many pending entries one script looks at: one or two milliseconds of Redis, which answers nobody else
	// meanwhile.
	maxClaimed = 100
	// walkStep is how many pending entries XAUTOCLAIM looks at, ten times its COUNT, between two reads: some 1.5 ms of Redis.
	walkStep = 1000
	// The back-off of failures is 1 s, 2 s, 4 s … up to maxBackoff, half of it at random.
	minBackoff = time.Second
	maxBackoff = 5 * time.Minute
	// backoffKeep is how long the record of a back-off stays after it is due. Later than that, its entry is gone.
	backoffKeep = time.Hour
	// minWait and maxWait bound the wait after Later, such as for a busy lock or a server that is away.
	minWait = 20 * time.Millisecond
	maxWait = 5 * time.Second
	// forgetAfter is how long a consumer without pending entries may be idle before it is removed.
	forgetAfter = time.Hour
)

// Consumer is one consumer of one group. Make it with New, start it with Run.
type Consumer struct {
	o Options

	mu       sync.Mutex
	known    map[string]*Delivery // in hand and parked
	parked   parking
	awaiting int // entries that are parked until Wake
	ahead    int // those of them that wait for their turn
	running  int // handlers that have a slot

	// Entries that get a handler alone: those that are parked, those that wait for a slot, and the handlers that have one.
	parkedLone parking
	lone       []*Delivery
	singles    int

	others otherGroups

	base      context.Context // of handlers: outlives Run's context by the drain time
	counts    *batch.Runner[[]count, struct{}]
	freed     chan struct{}
	backlog   bool      // the last read returned as many entries as it may
	readAt    time.Time // when it did
	settledTo string    // every entry up to here was settled: where a vanished group continues
	samples   []sample
	claimed   string    // XAUTOCLAIM's cursor
	walking   bool      // the cursor has not reached the end of the pending list
	walkUntil time.Time // until then no other consumer walks
	walkAt    time.Time // when to ask again whether another one walks; zero: at the next upkeep
	yield     bool      // new entries have the next turn, because the walk had the last one
	adoptAt   time.Time
	clock     Clock
	reads     *outage.Outage
	renewals  *outage.Outage
	asked     bool // this turn has asked Redis
	begun     bool // the entries that were pending at the start have been adopted
	holding   bool // this turn begins nothing, because of Hold
	retired   bool // begins nothing, and ends with its last handler
	ended     bool
}

// New makes a Consumer.
func New(o Options) *Consumer {
	if o.Slots == 0 {
		o.Slots = 1
	}
	if o.Batch == 0 {
		o.Batch = 1
	}
	if o.Keep == 0 {
		o.Keep = 10_000
	}
	if o.Unconsumed == 0 {
		o.Unconsumed = unconsumedAfter
	}
	o.Log = o.Log.With(zap.String("stream", o.Stream), zap.String("group", o.Group), zap.String("consumer", o.Consumer))
	c := &Consumer{o: o, known: map[string]*Delivery{}, freed: make(chan struct{}, 1), claimed: "0-0",
		reads: outage.New("reads of the stream", o.Log), renewals: outage.New("renewals of entries in hand", o.Log),
		others: otherGroups{after: o.Unconsumed}}
	c.counts = batch.New(maxCounts, c.setCounts)
	return c
}

// Run consumes until ctx ends. Then it waits for its handlers, at most the drain time, and gives back the other entries. It
// returns after the last handler, but for those that hang. While Redis is away, Run tries again.
func (c *Consumer) Run(ctx context.Context) {
	var stop context.CancelCauseFunc
	c.base, stop = context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	beat := make(chan struct{})
	go func() {
		defer close(beat)
		c.heartbeat(c.base)
	}()

	var failures int   // in a row
	next := time.Now() // of the upkeep
	var finishing bool
	for ctx.Err() == nil {
		if c.isRetired() {
			if !finishing {
				c.giveBack()
			}
			finishing = true
			if c.finishRetired(ctx) {
				break
			}
			continue
		}
		finishing = false
		c.asked = false
		err := c.turn(ctx, &next)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			c.reads.Failed(err)
			failures++
			pause(ctx, backoff(failures, 50*time.Millisecond, time.Second))
		case c.asked: // else nothing is known of Redis
			c.reads.Succeeded()
			failures = 0
		}
	}

	c.mu.Lock()
	c.holding = true
	c.mu.Unlock()
	c.giveBack() // entries without a handler need not wait for the handlers' end
	drained := time.After(c.o.Drain)
	for c.isRunning() {
		select {
		case <-c.freed:
		case <-drained:
			stop(errors.New("the drain time is over"))
		}
	}
	stop(nil)
	<-beat
	c.giveBack()
}

// Retire makes the consumer begin nothing more, because another consumer has its work from now on. Entries that it has not
// begun go to the others at once. Run returns after the last handler, however long that takes.
func (c *Consumer) Retire() {
	c.mu.Lock()
	c.retired = true
	c.mu.Unlock()
	c.wake()
}

// Resume undoes Retire. False: the consumer has ended, and the caller needs a new one.
func (c *Consumer) Resume() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended {
		c.retired = false
	}
	return !c.ended
}

// Ended reports whether a retired consumer has ended.
func (c *Consumer) Ended() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}

func (c *Consumer) isRunning() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running+c.singles > 0
}

// Holding reports whether the consumer begins nothing, because of Hold or because it has retired. Once Hold returns true for good,
// Holding does so at the latest after the turn that is under way.
func (c *Consumer) Holding() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.holding || c.retired
}

func (c *Consumer) isRetired() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.retired
}

// finishRetired waits for a handler of a retired consumer to return. true: none is left, and the consumer has ended.
func (c *Consumer) finishRetired(ctx context.Context) bool {
	c.mu.Lock()
	if c.retired && c.running+c.singles == 0 {
		c.ended = true
	}
	ended := c.ended
	c.mu.Unlock()
	if ended {
		return true
	}
	select {
	case <-ctx.Done():
	case <-c.freed:
		c.giveBack() // the entry that the handler has left for later
	case <-time.After(idleBlock):
	}
	return false
}

// SetSlots changes how many handlers may run at once, or, where Options.Alone is set, how many with an entry alone.
func (c *Consumer) SetSlots(n int) {
	c.mu.Lock()
	if c.o.Alone > 0 {
		c.o.Alone = n
		c.startLone()
	} else {
		c.o.Slots = n
	}
	c.mu.Unlock()
	c.wake()
}

func (c *Consumer) wake() {
	select {
	case c.freed <- struct{}{}:
	default:
	}
}

// turn is one round. It does the upkeep where that is due, or a step of its walk through the pending list. Then it begins
// parked entries that are due, and reads new ones.
func (c *Consumer) turn(ctx context.Context, next *time.Time) error {
	if (c.backlog || c.walking) && c.nearlyFull() {
		pause(ctx, gather)
	}
	if !c.backlog && c.o.Batch > 1 {
		pause(ctx, gather-time.Since(c.readAt))
	}
	if !time.Now().Before(*next) {
		if err := c.upkeep(ctx); err != nil {
			return err
		}
		*next, c.asked = time.Now().Add(jitter(c.o.MinIdle/3)), true
	} else if c.walks() && !c.yield {
		if err := c.takeOver(ctx); err != nil && !isNoGroup(err) { // the read below makes the group again
			return err
		}
	}
	if c.o.Adopt > 0 && !time.Now().Before(c.adoptAt) {
		if err := c.adopt(ctx); err != nil && !isNoGroup(err) {
			return err
		}
		c.adoptAt, c.asked = time.Now().Add(c.o.Adopt), true
	}
	hold := c.held()
	c.mu.Lock()
	c.holding = hold
	c.mu.Unlock()
	var due []*Delivery
	if !hold {
		due = c.due()
	}

	full := c.o.Full != nil && c.o.Full()
	c.mu.Lock()
	free := (c.o.Slots-c.running)*c.o.Batch - len(due) // entries that handlers have room for
	if c.ahead >= maxAhead || c.o.Alone > 0 && len(c.lone) >= c.o.Alone || full {
		free = 0
	}
	block := idleBlock
	if free > 0 && !hold { // without a free slot, only the end of a handler, Wake or a later upkeep changes anything
		if c.running+c.singles > 0 {
			block = busyBlock
		} else if c.ahead > 0 {
			block = aheadBlock
		}
		if len(c.parked) > 0 {
			block = min(block, time.Until(c.parked[0].due))
		}
	}
	if !hold && len(c.parkedLone) > 0 {
		block = min(block, time.Until(c.parkedLone[0].due))
	}
	c.mu.Unlock()
	if full {
		block = aheadBlock
	}
	if hold {
		block = holdBlock
	}
	block = min(block, time.Until(*next))
	if c.o.Adopt > 0 {
		block = min(block, time.Until(c.adoptAt))
	}
	if !c.walkAt.IsZero() {
		block = min(block, time.Until(c.walkAt))
	}
	block = max(block, time.Millisecond)
	if free <= 0 || hold {
		c.dispatch(due)
		select {
		case <-ctx.Done():
		case <-c.freed:
		case <-time.After(block):
		}
		return nil
	}

	if c.walking || len(due) > 0 { // Redis checks the end of a BLOCK only some ten times a second, so a short one may take 100 ms
		block = noBlock
	}
	c.yield = false
	if c.o.Batch > 1 {
		free = min(free, c.o.Batch)
	}
	msgs, err := c.read(ctx, free, block)
	c.readAt = time.Now()
	if err != nil {
		c.dispatch(due)
		return err
	}
	c.asked = true
	c.backlog = len(msgs) == free
	ds := due // those that were parked share their handlers with the new ones
	for _, m := range msgs {
		if !c.knows(m.ID) { // a group that was made again delivers entries that a handler here still has
			ds = append(ds, c.delivery(m, 1))
		}
	}
	if ctx.Err() != nil { // a stop came during the read: Run gives these entries back
		c.remember(ds)
		return nil
	}
	c.dispatch(ds)
	return nil
}

// nearlyFull reports whether some slots are free, but less than an eighth.
func (c *Consumer) nearlyFull() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	free := c.o.Slots - c.running
	return free > 0 && free < c.o.Slots/8
}

func (c *Consumer) held() bool { return c.o.Hold != nil && c.o.Hold() }

func (c *Consumer) read(ctx context.Context, count int, block time.Duration) ([]redis.XMessage, error) {
	// A stop must not interrupt the read: its entries would be pending with this consumer, which would not know them.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), max(block, 0)+5*time.Second)
	defer cancel()
	streams, err := c.o.Redis.XReadGroup(ctx, &redis.XReadGroupArgs{
		Group: c.o.Group, Consumer: c.o.Consumer, Streams: []string{c.o.Stream, ">"},
		Count: int64(count), Block: block,
	}).Result()
	if errors.Is(err, redis.Nil) || (err == nil && len(streams) == 0) {
		return nil, nil
	}
	if isNoGroup(err) {
		return nil, c.createGroup(ctx)
	}
	if err != nil {
		return nil, err
	}
	return streams[0].Messages, nil
}

func (c *Consumer) delivery(m redis.XMessage, attempt int64) *Delivery {
	d := &Delivery{consumer: c, Stream: c.o.Stream, ID: m.ID, Values: make(map[string]string, len(m.Values)), Attempt: attempt}
	for k, v := range m.Values {
		d.Values[k], _ = v.(string)
	}
	return d
}

func (c *Consumer) forget(d *Delivery) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known[d.ID] == d {
		delete(c.known, d.ID)
	}
}

// Load returns the number of running handlers and of parked deliveries, for metrics.
func (c *Consumer) Load() (running, parked int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running + c.singles, c.waiting()
}

// backoff doubles from first up to limit. Half of it is random, so that many entries do not come back at the same time.
func backoff(n int, first, limit time.Duration) time.Duration {
	d := limit
	if n < 20 {
		d = min(first<<max(n-1, 0), limit)
	}
	return d/2 + rand.N(d/2+1)
}

// jitter varies d by a tenth up or down, so that workers do not act at the same time.
func jitter(d time.Duration) time.Duration { return d - d/10 + rand.N(d/5+1) }

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func isNoGroup(err error) bool { return err != nil && strings.HasPrefix(err.Error(), "NOGROUP") }
