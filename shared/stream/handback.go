package stream

import (
	"context"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
)

// handBack gives what is still ours, and in nobody's hands here, to the others at once; it removes the consumer where
// nothing is left.
func (c *Consumer) handBack() {
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
			err = c.release(ctx, part)
		}
	}
	if err == nil {
		err = forgetScript.Run(ctx, c.o.Redis, []string{c.o.Stream}, c.o.Group, c.o.Consumer).Err()
	}
	if err != nil {
		c.o.Log.Warn("could not hand back entries; they are taken over when they have been idle", zap.Error(err))
	}
}

// release makes entries that are still ours look idle, so that others take them over at once.
func (c *Consumer) release(ctx context.Context, ids []string) error {
	deleted, err := releaseScript.Run(ctx, c.o.Redis, []string{c.o.Stream, c.o.Backoff},
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
