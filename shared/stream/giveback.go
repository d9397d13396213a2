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
	uncounted := map[string]bool{}
	c.mu.Lock()
	for id, d := range c.known {
		if d.parked {
			uncounted[id] = d.uncounted
			c.waitsNoMore(d)
			delete(c.known, id)
		}
	}
	for _, d := range slices.Concat(c.parked, c.parkedLone) {
		d.at = 0
	}
	c.parked, c.parkedLone, c.lone = nil, nil, nil
	c.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	pending, err := c.o.Redis.XPendingExt(ctx, &redis.XPendingExtArgs{
		Stream: c.o.Stream, Group: c.o.Group, Start: "-", End: "+", Count: maxParked, Consumer: c.o.Consumer,
	}).Result()
	ids := map[bool][]string{} // by whether the count is one less already
	for _, p := range pending {
		if !c.knows(p.ID) {
			ids[uncounted[p.ID]] = append(ids[uncounted[p.ID]], p.ID)
		}
	}
	for less, all := range ids {
		for part := range slices.Chunk(all, maxClaimed) {
			if err == nil {
				err = c.makeIdle(ctx, part, map[bool]int{false: 1}[less])
			}
		}
	}
	if err == nil && len(ids) > 0 {
		err = c.o.Redis.Del(ctx, c.o.Walker).Err() // a consumer that starts now, as after a restart, need not wait for its turn to walk
	}
	if err == nil {
		err = forgetScript.Run(ctx, c.o.Redis, []string{c.o.Stream}, c.o.Group, c.o.Consumer).Err()
	}
	if err != nil {
		c.o.Log.Warn("could not give back entries; others take them over after MinIdle", zap.Error(err))
	}
}

// makeIdle makes this consumer's entries look idle, so that others take them over at once. It takes less off their counts.
func (c *Consumer) makeIdle(ctx context.Context, ids []string, less int) error {
	deleted, err := makeIdleScript.Run(ctx, c.o.Redis, []string{c.o.Stream, c.o.Backoff},
		arguments(ids, c.o.Group, c.o.Consumer, c.o.MinIdle.Milliseconds(), less)...).StringSlice()
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
