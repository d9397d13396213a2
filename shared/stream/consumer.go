package stream

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
)

// Handler works on deliveries: at most Options.Batch of them. It must call Settled, Later or Failed on each.
type Handler func(ds []*Delivery)

// Options of a Consumer. Redis, Stream, Backoff, Group, Consumer, MinIdle, Handle and Log are required.
type Options struct {
	Redis    redis.UniversalClient
	Stream   string
	Backoff  string // a key in the stream's slot, the group's own: which entries have failed, and when they are due
	Group    string
	Consumer string        // unique among the living, stable over restarts where possible
	MinIdle  time.Duration // an entry that nobody has renewed for so long is taken over
	Slots    int           // handlers at once; 1 where 0
	Batch    int           // deliveries that one handler gets; 1 where 0
	Drain    time.Duration // how long handlers may go on after a stop
	Keep     int64         // settled entries that trimming leaves for those who look; 10,000 where 0
	Adopt    time.Duration // how often entries that others reassign to us are looked for; with the upkeep where 0
	Hold     func() bool   // no entry is begun while it returns true; called at every turn; may be nil
	Handle   Handler
	Log      *zap.Logger
	Lost     func(id string) // an entry was deleted while it was pending; may be nil
}

const (
	// idleBlock bounds a blocked read, and so the time that a stop takes when nothing is to do.
	idleBlock = time.Second
	// busyBlock bounds a blocked read while handlers run: what they park or free is seen after it.
	busyBlock = 20 * time.Millisecond
	noBlock   = -1
	// gather is how long a consumer that is nearly full waits for more of its slots to be free, where there may be more to
	// take on: else it would fetch each entry with a round trip of its own.
	gather = 5 * time.Millisecond
	// holdBlock is how soon the end of a hold is seen.
	holdBlock = 100 * time.Millisecond
	// maxParked bounds memory. What is parked beyond it is let go of: it comes back through XAUTOCLAIM.
	maxParked = 10_000
	// walkStep is how many pending entries XAUTOCLAIM looks at, ten times its COUNT, between two reads: some 1.5 ms of Redis.
	walkStep = 1000
	// The back-off of failures is 1 s, 2 s, 4 s … up to maxBackoff, half of it at random.
	minBackoff = time.Second
	maxBackoff = 5 * time.Minute
	// backoffKeep is how long a record of a back-off stays after it is due. Nobody has come for it, so it is useless.
	backoffKeep = time.Hour
	// minWait and maxWait bound the wait for what is no failure: a busy lock, a server that is away.
	minWait = 20 * time.Millisecond
	maxWait = 5 * time.Second
	// consumers that have nothing pending and were not seen for so long are removed
	forgetAfter = time.Hour
)

// Consumer is one consumer of one group. Make it with New, start it with Run.
type Consumer struct {
	o Options

	mu      sync.Mutex
	known   map[string]*Delivery // in hand and parked
	parked  parking
	running int // handlers

	base      context.Context // of handlers: outlives Run's context by the drain time
	handlers  sync.WaitGroup
	freed     chan struct{}
	backlog   bool   // the last read found as much as it asked for
	settledTo string // every entry up to here was settled: where a vanished group goes on
	samples   []sample
	claimed   string // XAUTOCLAIM's cursor
	walking   bool   // it has not come to the end
	yield     bool   // what it has found has had slots, and nothing else since
	adoptAt   time.Time
	begun     bool // what was pending at the start has been adopted
	retired   bool // takes on nothing, and ends with its last handler
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
	o.Log = o.Log.With(zap.String("stream", o.Stream), zap.String("group", o.Group), zap.String("consumer", o.Consumer))
	return &Consumer{o: o, known: map[string]*Delivery{}, freed: make(chan struct{}, 1), claimed: "0-0"}
}

// Run consumes until ctx ends; then it waits for its handlers, at most the drain time, and hands back what is left.
// Redis being away is no error: it goes on when Redis is back. It returns when nothing of it runs any more.
func (c *Consumer) Run(ctx context.Context) {
	var stop context.CancelCauseFunc
	c.base, stop = context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	beat := make(chan struct{})
	go func() {
		defer close(beat)
		c.heartbeat(c.base)
	}()

	var outage int
	next := time.Now() // of the upkeep
	var finishing bool
	for ctx.Err() == nil {
		if c.isRetired() {
			if !finishing {
				c.handBack()
			}
			finishing = true
			if c.finishRetired(ctx) {
				break
			}
			continue
		}
		finishing = false
		err := c.turn(ctx, &next)
		if err == nil || ctx.Err() != nil {
			outage = 0
			continue
		}
		if outage == 0 || outage%30 == 0 {
			c.o.Log.Warn("reading failed, trying again", zap.Error(err))
		}
		outage++
		pause(ctx, backoff(outage, 50*time.Millisecond, time.Second))
	}

	c.handBack() // what nobody has in hand: others need not wait for our handlers
	done := make(chan struct{})
	go func() { c.handlers.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(c.o.Drain):
		stop(errors.New("the drain time is over"))
		<-done
	}
	stop(nil)
	<-beat
	c.handBack()
}

// Retire makes the consumer take on nothing more: what it has not begun goes to the others at once, and Run returns when
// the last handler has, however long that takes. Another consumer does its work from now on.
func (c *Consumer) Retire() {
	c.mu.Lock()
	c.retired = true
	c.mu.Unlock()
	c.wake()
}

// Resume undoes Retire. false: it has ended, and it takes a new one.
func (c *Consumer) Resume() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended {
		c.retired = false
	}
	return !c.ended
}

// Ended tells whether a retired consumer has ended.
func (c *Consumer) Ended() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}

func (c *Consumer) isRetired() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.retired
}

// finishRetired waits for a handler of a retired consumer to return. true: none is left, and the consumer has ended.
func (c *Consumer) finishRetired(ctx context.Context) bool {
	c.mu.Lock()
	if c.retired && c.running == 0 {
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
		c.handBack() // what a handler has left for later
	case <-time.After(idleBlock):
	}
	return false
}

// SetSlots changes how many handlers may run at once.
func (c *Consumer) SetSlots(n int) {
	c.mu.Lock()
	c.o.Slots = n
	c.mu.Unlock()
	c.wake()
}

func (c *Consumer) wake() {
	select {
	case c.freed <- struct{}{}:
	default:
	}
}

// turn is one round: upkeep when it is due, or a step of its walk; then what is parked and due, then new entries.
func (c *Consumer) turn(ctx context.Context, next *time.Time) error {
	if (c.backlog || c.walking) && c.nearlyFull() {
		pause(ctx, gather)
	}
	if !time.Now().Before(*next) {
		if err := c.upkeep(ctx); err != nil {
			return err
		}
		*next = time.Now().Add(jitter(c.o.MinIdle / 3))
	} else if c.walking && !c.yield {
		if err := c.takeOver(ctx); err != nil && !isNoGroup(err) { // the read below makes the group again
			return err
		}
	}
	if c.o.Adopt > 0 && !time.Now().Before(c.adoptAt) {
		if err := c.adopt(ctx); err != nil && !isNoGroup(err) {
			return err
		}
		c.adoptAt = time.Now().Add(c.o.Adopt)
	}
	hold := c.held()
	if !hold {
		c.dispatchDue()
	}

	c.mu.Lock()
	free := c.o.Slots - c.running
	block := idleBlock
	if free > 0 && !hold { // else only a handler's end, or the time, changes anything
		if c.running > 0 {
			block = busyBlock
		}
		if len(c.parked) > 0 {
			block = min(block, time.Until(c.parked[0].due))
		}
	}
	c.mu.Unlock()
	if hold {
		block = holdBlock
	}
	block = min(block, time.Until(*next))
	if c.o.Adopt > 0 {
		block = min(block, time.Until(c.adoptAt))
	}
	block = max(block, time.Millisecond)
	if free <= 0 || hold {
		select {
		case <-ctx.Done():
		case <-c.freed:
		case <-time.After(block):
		}
		return nil
	}

	if c.walking { // Redis looks at short times to block only ten times a second, unless others wake it
		block = noBlock
	}
	c.yield = false
	msgs, err := c.read(ctx, free*c.o.Batch, block)
	if err != nil {
		return err
	}
	c.backlog = len(msgs) == free*c.o.Batch
	ds := make([]*Delivery, 0, len(msgs))
	for _, m := range msgs {
		if !c.knows(m.ID) { // else the group was made again: whoever has it in hand goes on
			ds = append(ds, c.delivery(m, 1))
		}
	}
	if ctx.Err() != nil { // read after a stop was asked for: not begun, but handed back
		c.remember(ds)
		return nil
	}
	c.dispatch(ds)
	return nil
}

// nearlyFull tells whether some slots are free, but less than an eighth.
func (c *Consumer) nearlyFull() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	free := c.o.Slots - c.running
	return free > 0 && free < c.o.Slots/8
}

func (c *Consumer) held() bool { return c.o.Hold != nil && c.o.Hold() }

func (c *Consumer) read(ctx context.Context, count int, block time.Duration) ([]redis.XMessage, error) {
	// The read must not be given up half way because of a stop: its entries would be pending with us, unseen.
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
	d := &Delivery{Stream: c.o.Stream, ID: m.ID, Values: make(map[string]string, len(m.Values)), Attempt: attempt}
	for k, v := range m.Values {
		d.Values[k], _ = v.(string)
	}
	return d
}

// dispatch starts handlers; the caller has made sure that there are slots.
func (c *Consumer) dispatch(ds []*Delivery) {
	for len(ds) > 0 {
		n := min(len(ds), c.o.Batch)
		batch := ds[:n:n]
		ds = ds[n:]
		c.mu.Lock()
		for _, d := range batch {
			d.Context, d.cancel = context.WithCancelCause(c.base)
			d.verdict, d.err = none, nil
			d.Progress()
			d.parked = false
			c.known[d.ID] = d
		}
		c.running++
		c.mu.Unlock()
		c.handlers.Go(func() {
			c.began(batch)
			c.o.Handle(batch)
			c.finish(batch)
		})
	}
}

// began removes the records of back-offs that are over: from now on, a crash counts. Where that fails, it does not.
func (c *Consumer) began(batch []*Delivery) {
	var ids []any
	for _, d := range batch {
		if d.failed {
			ids = append(ids, d.ID)
			d.failed = false
		}
	}
	if len(ids) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(c.base, time.Second)
	defer cancel()
	_ = c.o.Redis.ZRem(ctx, c.o.Backoff, ids...).Err()
}

// finish does what the handler has said of each delivery.
func (c *Consumer) finish(batch []*Delivery) {
	for _, d := range batch {
		lost := d.Context.Err() != nil
		d.cancel(nil)
		switch {
		case d.verdict == settled:
			c.forget(d)
		case lost:
			// Somebody else's now, or the drain is over: in both cases it is not ours to try again. What is still
			// pending with us is handed back, or adopted should we go on.
			c.forget(d)
		case d.verdict == later:
			if d.wait <= 0 {
				d.waits++
				d.wait = backoff(d.waits, minWait, maxWait)
			}
			c.park(d, d.wait)
		default:
			d.waits = 0
			c.again(d)
		}
	}
	c.mu.Lock()
	c.running--
	c.mu.Unlock()
	c.wake()
}

// again parks a failed delivery as its next attempt, and lets Redis know which that is, and when.
func (c *Consumer) again(d *Delivery) {
	wait := backoff(int(d.Attempt), minBackoff, maxBackoff)
	d.Attempt++
	ctx, cancel := context.WithTimeout(c.base, 5*time.Second)
	defer cancel()
	found, err := failScript.Run(ctx, c.o.Redis, []string{c.o.Stream, c.o.Backoff}, c.o.Group, c.o.Consumer, d.ID, d.Attempt,
		wait.Milliseconds(), backoffKeep.Milliseconds()).Int()
	if err == nil && found != isOurs {
		if found == isDeleted {
			c.reportDeleted(d.ID)
		}
		c.forget(d)
		return
	}
	d.failed = err == nil // else, after a restart, this was a crash: nothing worse
	c.park(d, wait)
}

// beginning is what Redis knows of an entry that is pending with us and that nobody here knows of.
type beginning struct {
	attempt int64
	failed  bool          // its last attempt has
	wait    time.Duration // what is left of its back-off then
	ours    bool
}

// begin takes up entries of ours, and adds to the counts of those that have failed, and of the others.
func (c *Consumer) begin(ctx context.Context, ids []string, ifFailed, otherwise int) (map[string]beginning, error) {
	all := make(map[string]beginning, len(ids))
	for part := range slices.Chunk(ids, 500) {
		found, err := beginScript.Run(ctx, c.o.Redis, []string{c.o.Stream, c.o.Backoff},
			arguments(part, c.o.Group, c.o.Consumer, ifFailed, otherwise)...).Int64Slice()
		if err != nil {
			return nil, err
		}
		for i, id := range part {
			count, wait := found[2*i], found[2*i+1]
			if count == isDeleted {
				c.reportDeleted(id)
			}
			all[id] = beginning{max(count, 1), wait >= 0, time.Duration(max(wait, 0)) * time.Millisecond, count != isDeleted && count != notOurs}
		}
	}
	return all, nil
}

func (c *Consumer) forget(d *Delivery) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known[d.ID] == d {
		delete(c.known, d.ID)
	}
}

// Load is what the consumer has in hand, for metrics: handlers running and deliveries parked.
func (c *Consumer) Load() (running, parked int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running, len(c.parked)
}

// backoff doubles from first up to limit; half of it is random, so that many entries do not come back at once.
func backoff(n int, first, limit time.Duration) time.Duration {
	d := limit
	if n < 20 {
		d = min(first<<max(n-1, 0), limit)
	}
	return d/2 + rand.N(d/2+1)
}

// jitter spreads d by a fifth, so that workers do not act in step.
func jitter(d time.Duration) time.Duration { return d - d/10 + rand.N(d/5+1) }

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func isNoGroup(err error) bool { return err != nil && strings.HasPrefix(err.Error(), "NOGROUP") }
