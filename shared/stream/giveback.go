package stream

import (
	"context"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
)

// giveBack lets others take over at once the entries of this consumer that no handler has. Where none is left, it removes
// the consumer from the group.
func (c *Consumer) giveBack() {
	c.mu.Lock()
	for _, p := range c.parked {
		if c.known[p.d.ID] == p.d {
			delete(c.known, p.d.ID)
		}
	}
	c.parked = nil
	c.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	pending, err := c.o.Redis.XPendingExt(ctx, &redis.XPendingExtArgs{
		Stream: c.o.Stream, Group: c.o.Group, Start: "-", End: "+", Count: maxParked, Consumer: c.o.Consumer,
	}).Result()
	var ids []string
	for _, p := range pending {
		if !c.knows(p.ID) {
			ids = append(ids, p.ID)
		}
	}
	for part := range slices.Chunk(ids, 500) {
		if err == nil {
			err = c.makeIdle(ctx, part)
		}
	}
	if err == nil {
		err = forgetScript.Run(ctx, c.o.Redis, []string{c.o.Stream}, c.o.Group, c.o.Consumer).Err()
	}
	if err != nil {
		c.o.Log.Warn("could not give back entries; others take them over after MinIdle", zap.Error(err))
	}
}

// makeIdle makes this consumer's entries look idle, so that others take them over at once.
func (c *Consumer) makeIdle(ctx context.Context, ids []string) error {
	deleted, err := makeIdleScript.Run(ctx, c.o.Redis, []string{c.o.Stream, c.o.Backoff},
		arguments(ids, c.o.Group, c.o.Consumer, c.o.MinIdle.Milliseconds())...).StringSlice()
	for _, id := range deleted {
		c.reportDeleted(id)
	}
	return err
}

func arguments(ids []string, first ...any) []any {
	for _, id := range ids {
		first = append(first, id)
	}
	return first
}
