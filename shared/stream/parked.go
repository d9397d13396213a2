package stream

import (
	"container/heap"
	"context"
	"slices"
	"time"
)

// parking is a heap of deliveries that wait until they are due, the next one on top.
type parking []*Delivery

func (p parking) Len() int           { return len(p) }
func (p parking) Less(i, j int) bool { return p[i].due.Before(p[j].due) }
func (p parking) Swap(i, j int)      { p[i], p[j] = p[j], p[i]; p[i].at, p[j].at = i+1, j+1 }
func (p *parking) Push(x any)        { *p = append(*p, x.(*Delivery)); x.(*Delivery).at = len(*p) }
func (p *parking) Pop() any {
	old := *p
	d := old[len(old)-1]
	old[len(old)-1] = nil
	*p, d.at = old[:len(old)-1], 0
	return d
}

// due takes up to most deliveries out that are due.
func (p *parking) due(most int) (ds []*Delivery) {
	for now := time.Now(); len(ds) < most && len(*p) > 0 && !(*p)[0].due.After(now); {
		ds = append(ds, heap.Pop(p).(*Delivery))
	}
	return ds
}

// due takes out the parked entries that are due, as long as there are slots, for dispatch. Those that get a handler alone begin.
func (c *Consumer) due() []*Delivery {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lone = append(c.lone, slices.DeleteFunc(c.parkedLone.due(len(c.parkedLone)), c.isLost)...)
	c.startLone()
	return c.parked.due((c.o.Slots - c.running) * c.o.Batch)
}

// isLost reports whether another consumer has an entry that was parked here: the heartbeat has removed it from known. The caller
// has the lock.
func (c *Consumer) isLost(d *Delivery) bool { return d.parked && c.known[d.ID] != d }

// push makes an entry wait until it is due. The caller has the lock.
func (c *Consumer) push(d *Delivery, due time.Time) {
	d.due = due
	heap.Push(c.heapOf(d), d)
}

func (c *Consumer) heapOf(d *Delivery) *parking {
	if d.Single {
		return &c.parkedLone
	}
	return &c.parked
}

// hurry makes an entry due that waits after Later.
func (c *Consumer) hurry(d *Delivery) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d.at > 0 && d.verdict == later {
		d.due = time.Now()
		heap.Fix(c.heapOf(d), d.at-1)
		c.wake()
	}
}

// acked forgets an entry that waits after Later.
func (c *Consumer) acked(d *Delivery) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d.at > 0 && d.verdict == later {
		heap.Remove(c.heapOf(d), d.at-1)
		if c.known[d.ID] == d {
			delete(c.known, d.ID)
		}
	}
}

func (c *Consumer) park(d *Delivery, wait time.Duration) {
	c.mu.Lock()
	due := time.Now().Add(wait)
	full := c.isFull(d, due)
	if !full {
		c.push(d, due)
	}
	full = full && !d.uncounted
	c.mu.Unlock()
	if full {
		// The take-over will count as an attempt, so this takes one off the delivery count. Where it fails, one attempt is lost.
		ctx, cancel := context.WithTimeout(c.base, 5*time.Second)
		defer cancel()
		_, _ = c.begin(ctx, []string{d.ID}, 0, -1)
	}
}

// isFull reports whether no entry can be parked any more, and forgets this one then. Else the entry counts as parked until it is
// due, or until Wake where due is zero. The caller has the lock.
func (c *Consumer) isFull(d *Delivery, due time.Time) bool {
	if c.waiting() >= maxParked {
		delete(c.known, d.ID)
		return true
	}
	c.known[d.ID], d.parked = d, true
	d.show(d.Reason, d.Cause, due)
	return false
}

// parkUntilWake parks an entry until Wake is called. Its take-over counts no attempt already.
func (c *Consumer) parkUntilWake(d *Delivery) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isFull(d, time.Time{}) {
		return
	}
	if d.woken {
		c.push(d, time.Now())
		return
	}
	d.awaits = true
	c.awaiting++
	if d.turn {
		c.ahead++
	}
}

// awake makes an entry due that waits for Wake. false: this consumer has lost the entry.
func (c *Consumer) awake(d *Delivery) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known[d.ID] != d {
		return false
	}
	d.woken = true
	if d.awaits {
		c.waitsNoMore(d)
		c.push(d, time.Now())
		c.wake()
	}
	return true
}

// waitsNoMore takes an entry out of those that wait for Wake. The caller has the lock.
func (c *Consumer) waitsNoMore(d *Delivery) {
	if !d.awaits {
		return
	}
	d.awaits = false
	c.awaiting--
	if d.turn {
		c.ahead--
	}
}

// waiting is how many entries are parked. The caller has the lock.
func (c *Consumer) waiting() int { return len(c.parked) + len(c.parkedLone) + len(c.lone) + c.awaiting }

// Waiting returns how many entries are parked, by their Reason.
func (c *Consumer) Waiting() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := map[string]int{}
	for _, d := range c.known {
		if d.parked {
			all[d.Reason]++
		}
	}
	return all
}

// remember parks deliveries that were read and not begun.
func (c *Consumer) remember(ds []*Delivery) {
	for _, d := range ds {
		c.park(d, 0)
	}
}
