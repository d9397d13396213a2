package stream

import "time"

// Wait is an entry that has waited at a consumer, and has not been settled.
type Wait struct {
	ID       string
	Stream   string
	Values   map[string]string
	Reason   string // as the handler gave it, and what Waiting counts; "" for the next attempt, "hangs" for a handler that hangs
	Cause    error  // the last error; may be nil
	Since    time.Time
	Attempts int64     // those that have failed
	Next     time.Time // when it is tried again; zero: when it is woken
}

// busyShown is for how long an entry with an error still counts as waiting after its handler has begun. Entries that are tried
// again and again would come and go otherwise.
const busyShown = 15 * time.Second

// shown is what Waits tells of an entry.
type shown struct {
	reason   string
	cause    error
	attempts int64
	since    time.Time // zero: it has not waited yet
	next     time.Time
	began    time.Time // of its last handler
}

// show notes that the entry waits. The caller has the lock.
func (d *Delivery) show(reason string, cause error, next time.Time) {
	s := &d.shown
	s.reason, s.cause, s.attempts, s.next = reason, cause, max(d.Attempt-1, 0), next
	if s.since.IsZero() {
		s.since = time.Now()
	}
}

// Waits lists the entries that have waited for at least that long, in no order.
func (c *Consumer) Waits(longer time.Duration) []Wait {
	var all []Wait
	now := time.Now()
	c.mu.Lock()
	for _, d := range c.known {
		s := d.shown
		waits := d.parked || d.handling != nil && d.handling.hangs || s.cause != nil && now.Sub(s.began) < busyShown
		if !s.since.IsZero() && waits && now.Sub(s.since) >= longer {
			all = append(all, Wait{d.ID, d.Stream, d.Values, s.reason, s.cause, s.since, s.attempts, s.next})
		}
	}
	c.mu.Unlock()
	return all
}
