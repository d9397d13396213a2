package stream

import (
	"container/heap"
	"context"
	"time"
)

// parking is a heap of deliveries that wait until they are due, the next one on top.
type parking []parkedDelivery

type parkedDelivery struct {
	d   *Delivery
	due time.Time
}

func (p parking) Len() int           { return len(p) }
func (p parking) Less(i, j int) bool { return p[i].due.Before(p[j].due) }
func (p parking) Swap(i, j int)      { p[i], p[j] = p[j], p[i] }
func (p *parking) Push(x any)        { *p = append(*p, x.(parkedDelivery)) }
func (p *parking) Pop() any {
	old := *p
	x := old[len(old)-1]
	old[len(old)-1] = parkedDelivery{}
	*p = old[:len(old)-1]
	return x
}

// dispatchDue starts handlers for parked entries that are due, as long as there are slots.
func (c *Consumer) dispatchDue() {
	c.mu.Lock()
	room := (c.o.Slots - c.running) * c.o.Batch
	var ds []*Delivery
	for now := time.Now(); len(ds) < room && len(c.parked) > 0 && !c.parked[0].due.After(now); {
		p := heap.Pop(&c.parked).(parkedDelivery)
		if c.known[p.d.ID] == p.d { // else the heartbeat has found that another consumer has it
			ds = append(ds, p.d)
		}
	}
	c.mu.Unlock()
	c.dispatch(ds)
}

func (c *Consumer) park(d *Delivery, wait time.Duration) {
	c.mu.Lock()
	full := c.isFull(d)
	if !full {
		heap.Push(&c.parked, parkedDelivery{d, time.Now().Add(wait)})
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

// isFull reports whether no entry can be parked any more, and forgets this one then. Else the entry counts as parked. The caller
// has the lock.
func (c *Consumer) isFull(d *Delivery) bool {
	if len(c.parked)+c.awaiting >= maxParked {
		delete(c.known, d.ID)
		return true
	}
	c.known[d.ID], d.parked = d, true
	return false
}

// parkUntilWake parks an entry until Wake is called. Its take-over counts no attempt already.
func (c *Consumer) parkUntilWake(d *Delivery) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isFull(d) {
		return
	}
	if d.woken {
		heap.Push(&c.parked, parkedDelivery{d, time.Now()})
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
		heap.Push(&c.parked, parkedDelivery{d, time.Now()})
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
