package stream

import (
	"context"
	"math/rand/v2"
	"time"
)

// One consumer of a group at a time walks through the pending list with XAUTOCLAIM. It has a lease, which it renews while it
// walks. When it has come to the end, or has no slot left, others may walk: half an interval later, or at once. Each consumer
// asks again within a quarter of an interval after the lease has ended. So the next walk begins within an interval, also where
// the walker has died. A consumer that gives entries back ends the lease, so one that starts then walks at once. The lease only
// saves work: two walkers at once do no harm.

// walkEvery is the interval: how often a consumer that is alone walks.
func (c *Consumer) walkEvery() time.Duration { return c.o.MinIdle / 3 }

// walks reports whether this consumer walks, or is to ask whether it may.
func (c *Consumer) walks() bool {
	if !c.walkAt.IsZero() && !time.Now().Before(c.walkAt) {
		c.walking, c.walkAt = true, time.Time{}
	}
	return c.walking
}

// mayWalk reports whether no other consumer walks, and keeps others from it.
func (c *Consumer) mayWalk(ctx context.Context) (bool, error) {
	if time.Now().Before(c.walkUntil) {
		return true, nil
	}
	hold := c.walkEvery() / 4
	now := time.Now()
	left, err := walkScript.Run(ctx, c.o.Redis, []string{c.o.Walker}, c.o.Consumer, max(hold.Milliseconds(), 1), c.walkEvery().Milliseconds()).Int64()
	if err != nil {
		return false, err
	}
	if left > 0 {
		c.walking, c.walkUntil = false, time.Time{}
		c.walkAt = now.Add(time.Duration(left)*time.Millisecond + rand.N(hold+1))
		return false, nil
	}
	c.walkUntil = now.Add(hold / 2)
	return true, nil
}

// leaveWalk lets others walk at once.
func (c *Consumer) leaveWalk(ctx context.Context) error {
	if c.walkUntil.IsZero() {
		return nil
	}
	return c.leaseWalk(ctx, 0)
}

// leaseWalk lets anybody walk after a while, where this consumer has the lease.
func (c *Consumer) leaseWalk(ctx context.Context, after time.Duration) error {
	c.walkUntil = time.Time{}
	return leaveWalkScript.Run(ctx, c.o.Redis, []string{c.o.Walker}, c.o.Consumer, after.Milliseconds()).Err()
}
