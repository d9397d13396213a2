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
	full := len(c.parked) >= maxParked
	if full {
		delete(c.known, d.ID)
	} else {
		c.known[d.ID], d.parked = d, true
		heap.Push(&c.parked, parkedDelivery{d, time.Now().Add(wait)})
	}
	c.mu.Unlock()
	if full {
		// The take-over will count as an attempt, so this takes one off the delivery count. Where it fails, one attempt is lost.
		ctx, cancel := context.WithTimeout(c.base, 5*time.Second)
		defer cancel()
		_, _ = c.begin(ctx, []string{d.ID}, 0, -1)
	}
}

// remember parks deliveries that were read and not begun.
func (c *Consumer) remember(ds []*Delivery) {
	for _, d := range ds {
		c.park(d, 0)
	}
}
