// Package live follows the streams as a reader without a group: for the caches that a commit makes stale, for those
// who wait for a commit, and for those who watch.
package live

import (
	"context"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/content"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/state"
)

const (
	// block is how long one read waits in Redis: a stop takes as long, because nothing interrupts a blocked read.
	block = time.Second
	// page is how many entries one read takes.
	page = 1000
	// retryAfter is the pause after a failed read.
	retryAfter = 500 * time.Millisecond
)

// Commits tells of every entry of `committed`.
type Commits struct {
	rdb  redis.UniversalClient
	key  string
	log  *zap.Logger
	tell func(content.ID)

	mu      sync.Mutex
	waiting map[content.ID]map[chan struct{}]bool
}

// NewCommits makes a Commits, which calls tell with the content of each entry. Run must be started.
func NewCommits(rdb redis.UniversalClient, keys state.Keys, tell func(content.ID), log *zap.Logger) *Commits {
	return &Commits{rdb: rdb, key: keys.Committed(), tell: tell, log: log, waiting: map[content.ID]map[chan struct{}]bool{}}
}

// Next returns a channel that gets a value at each news of a content, and what to call when nobody listens any more.
func (c *Commits) Next(id content.ID) (news <-chan struct{}, stop func()) {
	ch := make(chan struct{}, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting[id] == nil {
		c.waiting[id] = map[chan struct{}]bool{}
	}
	c.waiting[id][ch] = true
	return ch, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.waiting[id], ch)
		if len(c.waiting[id]) == 0 {
			delete(c.waiting, id)
		}
	}
}

// Run reads from the stream's present end until ctx ends. What it misses while Redis is away it reads afterwards;
// what has been trimmed meanwhile it misses for good, which is why caches expire by themselves as well.
func (c *Commits) Run(ctx context.Context) {
	after := ""
	for ctx.Err() == nil {
		if err := c.read(ctx, &after); err != nil {
			c.log.Debug("the stream of commits cannot be read", zap.Error(err))
			pause(ctx, retryAfter)
		}
	}
}

func (c *Commits) read(ctx context.Context, after *string) error {
	if *after == "" {
		last, err := lastID(ctx, c.rdb, c.key)
		if err != nil {
			return err
		}
		*after = last
	}
	streams, err := c.rdb.XRead(ctx, &redis.XReadArgs{Streams: []string{c.key, *after}, Count: page, Block: block}).Result()
	if err == redis.Nil {
		return nil
	}
	if err != nil {
		return err
	}
	for _, m := range streams[0].Messages {
		*after = m.ID
		e, err := event.ParseCommitted(values(m.Values))
		if err != nil {
			c.log.Warn("an entry of committed cannot be read", zap.String("entry", m.ID), zap.Error(err))
			continue
		}
		c.tell(e.ID)
		c.mu.Lock()
		for ch := range c.waiting[e.ID] {
			select {
			case ch <- struct{}{}:
			default:
			}
		}
		c.mu.Unlock()
	}
	return nil
}

// lastID is where a stream ends now: "$" itself would be another place at each read.
func lastID(ctx context.Context, rdb redis.UniversalClient, key string) (string, error) {
	ms, err := rdb.XRevRangeN(ctx, key, "+", "-", 1).Result()
	if err != nil || len(ms) == 0 {
		return "0-0", err
	}
	return ms[0].ID, nil
}

// values are an entry's fields as package event takes them.
func values(m map[string]any) map[string]string {
	vs := make(map[string]string, len(m))
	for k, v := range m {
		vs[k], _ = v.(string)
	}
	return vs
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
