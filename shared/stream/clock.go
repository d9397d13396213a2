package stream

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
)

// timeScript reads the time of the server that has a stream. In a cluster, TIME alone would go to any node.
//
//	KEYS  stream
//	->    seconds and microseconds
var timeScript = redis.NewScript(`
local t = redis.call('TIME')
return {tonumber(t[1]), tonumber(t[2])}`)

// Now returns the time of the server that has a stream. The ids of the stream's entries are times of this clock.
func Now(ctx context.Context, rdb redis.UniversalClient, stream string) (time.Time, error) {
	r, err := timeScript.Run(ctx, rdb, []string{stream}).Int64Slice()
	if err == nil && len(r) != 2 {
		err = errors.New("TIME has not two values")
	}
	if err != nil {
		return time.Time{}, err
	}
	return time.Unix(r[0], r[1]*1000), nil
}

// Clock notices when the clock of a server is set. It compares each reading with the time that has passed here, which goes on
// evenly. When the server has read its clock is known only within the call: this process may be paused before it has the answer.
// The zero value is ready. It is not safe for concurrent use.
type Clock struct {
	now             time.Time // the last reading
	asked, answered time.Time // its call
	steady          time.Time // since when the server's clock has gone on evenly
}

// driftOf is by how much two clocks may differ after this time: a network that is slow for a moment, and clocks that are slewed.
func driftOf(d time.Duration) time.Duration { return 2*time.Second + d/500 }

// Read takes a reading of the server's clock, and when this machine has asked for it and had the answer. It returns by how much
// the clock was set since the last reading, at least: 0 where it may have gone on evenly, and at the first reading.
func (c *Clock) Read(now, asked, answered time.Time) (set time.Duration) {
	first := c.answered.IsZero()
	if !first {
		went, least, most := now.Sub(c.now), asked.Sub(c.answered), answered.Sub(c.asked)
		switch {
		case went > most+driftOf(most):
			set = went - most
		case went < least-driftOf(least):
			set = went - least
		}
	}
	if set != 0 || first {
		c.steady = answered
	}
	c.now, c.asked, c.answered = now, asked, answered
	return set
}

// Last returns the last reading and when its answer came, zero where there is none.
func (c *Clock) Last() (now, at time.Time) { return c.now, c.answered }

// Steady is for how long the clock has gone on evenly at least, up to the last reading.
func (c *Clock) Steady() time.Duration { return max(c.asked.Sub(c.steady), 0) }

// ofFutureScript makes entries whose last delivery is in the future look as if they had been delivered now. Such an entry was
// delivered before the server's clock went back. Redis says that it is idle for 0 ms, and XAUTOCLAIM would leave it alone for
// as long as the clock went back. For an entry that is really idle for 0 ms, this changes nothing.
//
//	KEYS  stream
//	ARGV  group, where to begin
//	->    the last id of the page ('': the end), and the ids that were deleted from the stream
var ofFutureScript = Script(`
local page = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], '+', 1000)
local found = {''}
for _, p in ipairs(page) do
  if p[3] == 0 and #redis.call('XCLAIM', KEYS[1], ARGV[1], p[2], 0, p[1], 'JUSTID') == 0 then found[#found+1] = p[1] end
end
if #page == 1000 then found[1] = page[1000][1] end
return found`)

// checkClock looks at the server's clock. At the first look, and when the clock has gone back, it sees to it that entries of dead
// consumers can be taken over.
func (c *Consumer) checkClock(ctx context.Context) error {
	asked := time.Now()
	now, err := Now(ctx, c.o.Redis, c.o.Stream)
	if err != nil {
		return err
	}
	_, before := c.clock.Last()
	set := c.clock.Read(now, asked, time.Now())
	if set != 0 {
		c.o.Log.Warn("the clock of Redis was set", zap.Duration("by", set))
	}
	if set >= 0 && !before.IsZero() {
		return nil
	}
	for from := "-"; ; {
		found, err := ofFutureScript.Run(ctx, c.o.Redis, []string{c.o.Stream}, c.o.Group, from).StringSlice()
		if err != nil {
			c.clock = Clock{} // the next look does it
			return err
		}
		for _, id := range found[1:] {
			c.reportDeleted(id)
		}
		if found[0] == "" {
			return nil
		}
		from = "(" + found[0]
	}
}
