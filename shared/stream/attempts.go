package stream

import (
	"context"
	"slices"
	"time"
)

const (
	// maxCounts bounds how many counts one script sets.
	maxCounts = maxClaimed
	// A wait of up to longWait, the first fewWaits times in a row, costs Redis nothing. A crash in it counts as an attempt,
	// and few crashes fit into it.
	longWait = 10 * time.Second
	fewWaits = 3
)

// handling is the run of a handler. It is guarded by the consumer's lock.
type handling struct{ hangs, single bool }

// dispatch starts handlers. The caller has made sure that there are slots.
func (c *Consumer) dispatch(ds []*Delivery) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for batch := range slices.Chunk(slices.DeleteFunc(ds, c.isLost), c.o.Batch) {
		c.start(batch, &handling{})
	}
}

// start starts a handler. The caller has the lock.
func (c *Consumer) start(batch []*Delivery, h *handling) {
	for _, d := range batch {
		d.Context, d.cancel = context.WithCancelCause(c.base)
		d.verdict, d.Cause, d.Reason = none, nil, ""
		d.shown.began = time.Now()
		d.Progress()
		d.parked, d.woken, d.handling = false, false, h
		c.known[d.ID] = d
	}
	*c.slots(h)++
	go func() {
		c.began(batch)
		c.o.Handle(batch)
		c.finish(batch, h)
	}()
}

// slots is the number of handlers among which this one counts.
func (c *Consumer) slots(h *handling) *int {
	if h.single {
		return &c.singles
	}
	return &c.running
}

// setApart gives an entry that a handler has in hand to a handler of its own.
func (c *Consumer) setApart(d *Delivery) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known[d.ID] != d || d.Context.Err() != nil {
		return // the end of its handler forgets it
	}
	d.cancel(nil)
	d.Single, d.handling, d.parked, d.Reason = true, nil, true, "slot"
	c.lone = append(c.lone, d)
	c.startLone()
	if d.parked {
		d.show(d.Reason, nil, time.Time{})
	}
}

// startLone starts handlers for entries that get one alone, as long as there are slots. The caller has the lock.
func (c *Consumer) startLone() {
	for len(c.lone) > 0 && c.singles < c.o.Alone && !c.holding && !c.retired {
		d := c.lone[0]
		c.lone = c.lone[1:]
		if c.known[d.ID] == d { // else the heartbeat has found that another consumer has it
			c.start([]*Delivery{d}, &handling{single: true})
		}
	}
}

// uncountLone uncounts the entries of a batch that wait for a handler alone, because their wait may be long. If one is
// begun meanwhile, a crash just after that counts no attempt either.
func (c *Consumer) uncountLone(batch []*Delivery) {
	var counts []count
	c.mu.Lock()
	for _, d := range batch {
		if d.Single && d.handling == nil && d.parked && !d.uncounted && !d.failed {
			d.uncounted = true
			counts = append(counts, count{d.ID, d.Attempt - 1})
		}
	}
	c.mu.Unlock()
	c.setCount(counts)
}

// began makes a crash count as an attempt from now on: it removes the records of back-offs that are over, and raises the
// counts of entries that have waited. Where Redis does not answer, a crash does not count.
func (c *Consumer) began(batch []*Delivery) {
	var ids []any
	var counts []count
	for _, d := range batch {
		if d.failed {
			ids = append(ids, d.ID)
			d.failed = false
		}
		if d.uncounted {
			d.uncounted = false
			counts = append(counts, count{d.ID, d.Attempt})
		}
	}
	c.setCount(counts)
	if len(ids) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(c.base, time.Second)
	defer cancel()
	_ = c.o.Redis.ZRem(ctx, c.o.Backoff, ids...).Err()
}

// finish carries out the handler's verdict on each delivery.
func (c *Consumer) finish(batch []*Delivery, h *handling) {
	c.uncountLone(batch)
	c.mu.Lock()
	batch = slices.DeleteFunc(slices.Clone(batch), func(d *Delivery) bool { return d.handling != h }) // was set apart
	c.mu.Unlock()
	c.uncountWaiting(batch)
	for _, d := range batch {
		lost := d.Context.Err() != nil
		d.cancel(nil)
		switch {
		case d.verdict == settled:
			c.forget(d)
		case lost:
			// Another consumer has the entry now, or the drain time is over: this consumer must not try again. If the entry is
			// still pending here, Run gives it back at its end, or adopts it at the next upkeep.
			c.forget(d)
		case d.verdict == later:
			c.park(d, d.wait)
		case d.verdict == await:
			c.parkUntilWake(d)
		default:
			d.waits = 0
			c.again(d)
		}
	}
	c.mu.Lock()
	if !h.hangs {
		*c.slots(h)--
		c.startLone()
	}
	c.mu.Unlock()
	c.wake()
}

// hangs gives the slot of a handler to others.
func (c *Consumer) hangs(d *Delivery) {
	c.mu.Lock()
	h := d.handling
	first := h != nil && !h.hangs && !d.parked && c.known[d.ID] == d
	if first {
		h.hangs = true
		d.show("hangs", nil, time.Time{})
		*c.slots(h)--
		c.startLone()
	}
	c.mu.Unlock()
	if first {
		c.wake()
		go c.uncount(d) // Redis may be slow, and the caller has other entries
	}
}

// count is the delivery count that an entry of the consumer gets.
type count struct {
	id string
	n  int64
}

// uncountWaiting chooses how long the deliveries of a handler wait that it has left for later, and uncounts those that wait for
// long.
func (c *Consumer) uncountWaiting(batch []*Delivery) {
	var waiting []*Delivery
	for _, d := range batch {
		if d.verdict == later {
			d.waits++
			if d.wait <= 0 {
				d.wait = backoff(d.waits, minWait, maxWait)
			}
		}
		long := d.verdict == await || d.verdict == later && (d.wait > longWait || d.waits > fewWaits)
		if long && d.Context.Err() == nil {
			waiting = append(waiting, d)
		}
	}
	c.uncount(waiting...)
}

// uncount makes a take-over count no attempt: it takes one off the delivery count, and the take-over adds one. The count
// has no limit of time, as the record of a back-off has. Where Redis does not answer, a take-over counts.
func (c *Consumer) uncount(ds ...*Delivery) {
	var counts []count
	c.mu.Lock()
	for _, d := range ds {
		if !d.uncounted && !d.failed {
			d.uncounted = true
			counts = append(counts, count{d.ID, d.Attempt - 1})
		}
	}
	c.mu.Unlock()
	c.setCount(counts)
}

func (c *Consumer) setCount(counts []count) {
	if len(counts) > 0 {
		_, _ = c.counts.Do(c.base, counts)
	}
}

// setCounts carries out the calls of setCount that are made at the same time.
func (c *Consumer) setCounts(calls [][]count) []struct{} {
	ctx, cancel := context.WithTimeout(c.base, 5*time.Second)
	defer cancel()
	for part := range slices.Chunk(slices.Concat(calls...), maxCounts) {
		args := []any{c.o.Group, c.o.Consumer}
		for _, one := range part {
			args = append(args, one.id, max(one.n, 0))
		}
		_ = countScript.Run(ctx, c.o.Redis, []string{c.o.Stream}, args...).Err()
	}
	return make([]struct{}, len(calls))
}

// again parks a failed delivery until its next attempt, and records in Redis the number of that attempt and when it is due.
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
	c.mu.Lock()
	d.uncounted = d.uncounted && err != nil
	c.mu.Unlock()
	d.failed = err == nil // without the record, a restart counts this failure as a crash, which does no harm
	c.park(d, wait)
}

// beginning is what Redis knows of an entry that is pending with this consumer and that the consumer does not know.
type beginning struct {
	attempt int64         // the delivery count, as begin has left it
	failed  bool          // its last attempt failed
	wait    time.Duration // the rest of its back-off in that case
	ours    bool
}

// begin renews entries of this consumer and reads what Redis knows of them. It adds ifFailed to the delivery counts of those
// whose last attempt failed, and otherwise to the others.
func (c *Consumer) begin(ctx context.Context, ids []string, ifFailed, otherwise int) (map[string]beginning, error) {
	all := make(map[string]beginning, len(ids))
	for part := range slices.Chunk(ids, maxClaimed) {
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
			all[id] = beginning{max(count, 0), wait >= 0, min(time.Duration(max(wait, 0))*time.Millisecond, maxBackoff), count != isDeleted && count != notOurs}
		}
	}
	return all, nil
}
