package stream

import "time"

// NextDue is how long the first of the parked entries still waits. There must be one.
func NextDue(c *Consumer) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Until(c.parked[0].due)
}
