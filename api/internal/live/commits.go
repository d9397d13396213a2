// Package live follows the streams as a reader without a group: for the caches that a commit makes stale, for those
// who wait for a commit, and for those who watch.
package live

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
)

const (
	// block is how long one read waits in Redis: a stop takes as long, because nothing interrupts a blocked read.
	block = time.Second
	// turn is the pause between two rounds over many partitions that brought nothing.
	turn = 100 * time.Millisecond
	// page is how many entries one read takes.
	page = 1000
	// retryAfter is the pause after a failed read.
	retryAfter = 500 * time.Millisecond
)

// Commits tells of every entry of `committed`.
type Commits struct {
	rdb  redis.UniversalClient
	keys []string // of every partition
	log  *zap.Logger
	tell func(item.ID)

	mu      sync.Mutex
	waiting map[item.ID]map[chan struct{}]bool
}

// NewCommits makes a Commits, which calls tell with the content of each entry. Run must be started.
func NewCommits(rdb redis.UniversalClient, keys state.Keys, tell func(item.ID), log *zap.Logger) *Commits {
	c := &Commits{rdb: rdb, tell: tell, log: log, waiting: map[item.ID]map[chan struct{}]bool{}}
	for _, k := range keys.Each() {
		c.keys = append(c.keys, k.Committed())
	}
	return c
}

// Next returns a channel that gets a value at each news of a content, and what to call when nobody listens any more.
func (c *Commits) Next(id item.ID) (news <-chan struct{}, stop func()) {
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

// Run reads from the streams' present ends until ctx ends. What it misses while Redis is away it reads afterwards;
// what has been trimmed meanwhile it misses for good, which is why caches expire by themselves as well.
func (c *Commits) Run(ctx context.Context) {
	after := make([]string, len(c.keys))
	for ctx.Err() == nil {
		if err := c.read(ctx, after); err != nil {
			c.log.Debug("the stream of commits cannot be read", zap.Error(err))
			pause(ctx, retryAfter)
		}
	}
}

// read reads once from every partition; one that does not answer does not keep back the others.
func (c *Commits) read(ctx context.Context, after []string) error {
	var first error
	for i, key := range c.keys {
		if after[i] != "" {
			continue
		}
		last, err := lastID(ctx, c.rdb, key)
		if err != nil {
			first = err
			continue
		}
		after[i] = last
	}
	known := make([]int, 0, len(c.keys))
	for i := range c.keys {
		if after[i] != "" {
			known = append(known, i)
		}
	}
	err := readStreams(ctx, c.rdb, c.keys, after, known, func(_ int, m redis.XMessage) {
		e, err := event.ParseCommitted(values(m.Values))
		if err != nil {
			c.log.Warn("an entry of committed cannot be read", zap.String("entry", m.ID), zap.Error(err))
			return
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
	})
	return cmp.Or(first, err)
}

// readStreams reads once what comes after the ids from those streams of the keys that are named by index, hands it over
// and moves the ids on. From one partition it waits a while for something to come. Several it asks in turns, because one
// command cannot wait for streams in different slots, and a connection for each would be many. An error is that of the
// first partition that did not answer; the others were read.
func readStreams(ctx context.Context, rdb redis.UniversalClient, keys, after []string, which []int, take func(i int, m redis.XMessage)) error {
	if len(which) == 0 {
		return nil
	}
	groups := [][]int{which}
	wait := block
	if tag(keys[which[0]]) != "" {
		groups, wait = nil, -1
		for n, i := range which { // those of one partition stand together
			if n == 0 || tag(keys[i]) != tag(keys[which[n-1]]) {
				groups = append(groups, nil)
			}
			groups[len(groups)-1] = append(groups[len(groups)-1], i)
		}
	}
	cmds := make([]*redis.XStreamSliceCmd, len(groups))
	send := func(rdb redis.Cmdable) {
		for n, group := range groups {
			args := make([]string, 0, 2*len(group))
			for _, i := range group {
				args = append(args, keys[i])
			}
			for _, i := range group {
				args = append(args, after[i])
			}
			cmds[n] = rdb.XRead(ctx, &redis.XReadArgs{Streams: args, Count: page, Block: wait})
		}
	}
	if len(groups) == 1 {
		send(rdb)
	} else {
		// The pipeline's error is that of its first failed command; each command has its own.
		_, _ = rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
			send(pipe)
			return nil
		})
	}
	var first error
	none := true
	for n, group := range groups {
		streams, err := cmds[n].Result()
		if err == redis.Nil {
			continue
		}
		if err != nil {
			first = cmp.Or(first, err)
			continue
		}
		for _, s := range streams {
			i := group[slices.IndexFunc(group, func(i int) bool { return keys[i] == s.Stream })]
			for _, m := range s.Messages {
				after[i] = m.ID
				take(i, m)
			}
			none = none && len(s.Messages) == 0
		}
	}
	if wait < 0 && none && first == nil {
		pause(ctx, turn)
	}
	return first
}

// tag is the hash tag of a key, "" where it has none.
func tag(key string) string {
	_, rest, _ := strings.Cut(key, "{")
	t, _, _ := strings.Cut(rest, "}")
	return t
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
