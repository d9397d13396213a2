package release

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
)

// readAgain is how long a reading of a server's clock is used for entries whose grace it does not end.
const readAgain = 250 * time.Millisecond

// serverClocks knows how old entries are. An entry's id has the time of its server. So the age is the difference of two times of
// that server alone: clocks of two machines differ. In a cluster the server of each partition has a clock of its own.
//
// A clock can be set at any moment, and the grace must neither shrink nor last for ever by that. An entry counts as no older than
// the server's clock was seen to go on evenly. An entry whose id is of the future was added before the clock went back, or
// after that, when Redis goes on with the last id: it counts from when this worker first saw it.
type serverClocks struct {
	store    *state.Store
	log      *zap.Logger
	seen     firstSeen // entries with ids of the future
	mu       sync.Mutex
	byStream map[string]*serverClock
}

type serverClock struct {
	mu sync.Mutex // held while Redis is read: a server that is away holds up only the entries of its streams
	stream.Clock
}

func newServerClocks(store *state.Store, grace time.Duration, log *zap.Logger) serverClocks {
	return serverClocks{store: store, log: log, seen: newFirstSeen(grace), byStream: map[string]*serverClock{}}
}

func (c *serverClocks) of(key string) *serverClock {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.byStream[key]
	if o == nil {
		o = &serverClock{}
		c.byStream[key] = o
	}
	return o
}

// age is a time for which the entry certainly has been in its stream. enough is the age that the caller waits for.
func (c *serverClocks) age(ctx context.Context, d *stream.Delivery, enough time.Duration) (time.Duration, error) {
	added, err := stream.Added(d.ID)
	if err != nil {
		return 0, fault.New(fault.Malformed, "read entry id", d.ID, err)
	}
	o := c.of(d.Stream)
	o.mu.Lock()
	defer o.mu.Unlock()
	age := func() time.Duration {
		now, _ := o.Last()
		return min(now.Sub(added), o.Steady())
	}
	if _, read := o.Last(); read.IsZero() || age() < enough && time.Since(read) > readAgain {
		asked := time.Now()
		now, err := c.store.Now(ctx, d.Stream)
		if err != nil {
			return 0, err
		}
		if set := o.Read(now, asked, time.Now()); set != 0 {
			c.log.Warn("the clock of Redis was set: old copies stay for the whole grace from now on", zap.String("stream", d.Stream),
				zap.Duration("by", set))
		}
	}
	if a := age(); a >= 0 {
		return a, nil
	}
	return c.seen.since(d, "", time.Time{}), nil
}
