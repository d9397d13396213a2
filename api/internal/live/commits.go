// Package live follows the streams as a reader without a consumer group. Commits tells caches and callers about
// commits; Hub feeds the live view.
package live

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/outage"
	"github.com/tierflow/tierflow/shared/state"
)

// retryAfter is the pause after a failed read.
const retryAfter = 500 * time.Millisecond

// Commits reports every entry of `committed`.
type Commits struct {
	store   *state.Store
	streams []string // of every partition
	log     *zap.Logger
	notify  func(item.ID)

	mu      sync.Mutex
	waiting map[item.ID]map[chan struct{}]bool
}

// NewCommits makes a Commits, which calls notify with the item of each entry. Run starts it.
func NewCommits(store *state.Store, notify func(item.ID), log *zap.Logger) *Commits {
	c := &Commits{store: store, notify: notify, log: log, waiting: map[item.ID]map[chan struct{}]bool{}}
	for _, k := range store.Keys().Each() {
		c.streams = append(c.streams, k.Committed())
	}
	return c
}

// Next returns a channel that gets a value when entries of the item have arrived. The caller calls stop afterwards.
func (c *Commits) Next(id item.ID) (committed <-chan struct{}, stop func()) {
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

// Run reads from the present ends of the streams until ctx ends. After an outage of Redis it reads the entries that it has
// missed. It never sees those that were trimmed meanwhile, so caches also expire by time.
func (c *Commits) Run(ctx context.Context) {
	after := make([]string, len(c.streams))
	reads := outage.New("reads of commits", c.log)
	for ctx.Err() == nil {
		err := c.read(ctx, after)
		if ctx.Err() != nil {
			return
		}
		reads.Note(err)
		if err != nil {
			pause(ctx, retryAfter)
		}
	}
}

// read reads once from every partition. A partition that does not answer delays no other.
func (c *Commits) read(ctx context.Context, after []string) error {
	err := beginAtEnd(ctx, c.store, c.streams, after)
	return cmp.Or(err, c.store.ReadNew(ctx, c.streams, after, func(_ int, entry state.Entry) {
		e, err := event.ParseCommitted(entry.Fields)
		if err != nil {
			c.log.Warn("an entry of committed cannot be read", zap.String("entry", entry.ID), zap.Error(err))
			return
		}
		c.notify(e.ID)
		c.mu.Lock()
		for ch := range c.waiting[e.ID] {
			select {
			case ch <- struct{}{}:
			default:
			}
		}
		c.mu.Unlock()
	}))
}

// beginAtEnd sets each id that is "" to the present end of its stream, where its partition answers.
func beginAtEnd(ctx context.Context, store *state.Store, streams, after []string) error {
	if !slices.Contains(after, "") {
		return nil
	}
	ends, err := store.LastIDs(ctx, streams)
	for i := range after {
		after[i] = cmp.Or(after[i], ends[i])
	}
	return err
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
