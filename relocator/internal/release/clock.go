package release

import (
	"context"
	"sync"
	"time"

	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
)

// offsetAge is how long a measured offset is used.
const offsetAge = 10 * time.Second

// redisClock knows how far the clocks of the Redis servers are from ours. An entry's id has the time of its server, and the
// grace must not shrink because two clocks differ. In a cluster the server of each partition has a clock of its own.
type redisClock struct {
	store    *state.Store
	mu       sync.Mutex
	byStream map[string]*offset
}

type offset struct {
	mu       sync.Mutex // held while Redis is read: a server that is away holds up only the entries of its streams
	offset   time.Duration
	measured time.Time
}

func (c *redisClock) of(key string) *offset {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.byStream[key]
	if o == nil {
		o = &offset{}
		c.byStream[key] = o
	}
	return o
}

// age is the time since an entry was added to the stream with this key.
func (c *redisClock) age(ctx context.Context, key, entryID string) (time.Duration, error) {
	o := c.of(key)
	o.mu.Lock()
	defer o.mu.Unlock()
	if time.Since(o.measured) > offsetAge {
		now, err := c.store.Now(ctx, key)
		if err != nil {
			return 0, err
		}
		o.offset, o.measured = time.Until(now), time.Now()
	}
	added, err := stream.Added(entryID)
	if err != nil {
		return 0, fault.New(fault.Malformed, "read entry id", entryID, err)
	}
	return time.Since(added) + o.offset, nil
}
