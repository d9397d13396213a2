package stream

import "time"

// TimeScript reads the time of the server, RenewScript renews entries in hand.
var TimeScript, RenewScript = timeScript, renewScript

// NextDue is how long the first of the parked entries still waits. There must be one.
func NextDue(c *Consumer) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Until(c.parked[0].due)
}
