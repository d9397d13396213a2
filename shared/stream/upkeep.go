package stream

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
)

// upkeep is what is done now and then, by the reading goroutine: make sure that the group is there, adopt pending
// entries of ours that we do not know of, take over those of the dead, trim, forget consumers that are gone.
func (c *Consumer) upkeep(ctx context.Context) error {
	if err := c.createGroup(ctx); err != nil {
		return err
	}
	if err := c.adopt(ctx); err != nil {
		return err
	}
	c.walking = true
	if err := c.takeOver(ctx); err != nil {
		return err
	}
	if err := c.trim(ctx); err != nil {
		return err
	}
	return c.forgetConsumers(ctx)
}

// createGroup makes the group where it is missing: at 0, or where a group that has vanished had settled everything.
// Never at $, which would skip what was added meanwhile.
func (c *Consumer) createGroup(ctx context.Context) error {
	start := "0"
	if c.settledTo != "" {
		// Only while this is the same stream: after a wipe, ids may begin anywhere.
		info, err := c.o.Redis.XInfoStream(ctx, c.o.Stream).Result()
		if err == nil && !Newer(c.settledTo, info.LastGeneratedID) {
			start = c.settledTo
		}
	}
	err := c.o.Redis.XGroupCreateMkStream(ctx, c.o.Stream, c.o.Group, start).Err()
	if err != nil && strings.HasPrefix(err.Error(), "BUSYGROUP") {
		return nil
	}
	if err == nil && start != "0" {
		// A wipe between the two commands would leave the group behind the stream's end, where nothing is ever new.
		info, ierr := c.o.Redis.XInfoStream(ctx, c.o.Stream).Result()
		if ierr == nil && Newer(start, info.LastGeneratedID) {
			ierr = c.o.Redis.XGroupSetID(ctx, c.o.Stream, c.o.Group, "0").Err()
		}
		err = ierr
	}
	if err == nil && c.settledTo != "" {
		c.o.Log.Error("the consumer group had vanished; it was made again", zap.String("start", start))
	}
	return err
}

// adopt begins pending entries of ours that nobody here has in hand: their delivery was lost on its way, or they
// are from before a restart.
//
// What has failed waits for what is left of its back-off, whoever takes it up, and that it waits is no attempt. What a crash
// has left has lost an attempt: unless that counts, an entry that kills its worker does so for ever. It waits, too, so that
// such an entry leaves others some time, but never longer than it takes another consumer to take it over: most of what was
// in hand at a crash has nothing to do with it.
func (c *Consumer) adopt(ctx context.Context) error {
	before := c.ids()
	from := "-"
	for {
		page, err := c.o.Redis.XPendingExt(ctx, &redis.XPendingExtArgs{
			Stream: c.o.Stream, Group: c.o.Group, Start: from, End: "+", Count: 1000, Consumer: c.o.Consumer,
		}).Result()
		if err != nil {
			return err
		}
		var ids []string
		idle := map[string]time.Duration{}
		for _, p := range page {
			if _, ok := before[p.ID]; !ok && !c.knows(p.ID) {
				ids, idle[p.ID] = append(ids, p.ID), p.Idle
			}
		}
		_, parked := c.Load()
		room := max(maxParked-parked, 0)
		full := len(ids) > room // what is too much would be let go of at once
		ids = ids[:min(len(ids), room)]
		crash := 0
		if !c.begun {
			crash = 1
		}
		found, err := c.begin(ctx, ids, 0, crash)
		if err != nil {
			return err
		}
		for _, id := range ids {
			f := found[id]
			if !f.ours {
				continue
			}
			msgs, err := c.o.Redis.XRange(ctx, c.o.Stream, id, id).Result()
			if err != nil {
				return err
			}
			if len(msgs) == 0 {
				c.deleted(ctx, id)
				continue
			}
			d := c.delivery(msgs[0], f.attempt)
			d.failed = f.failed
			wait := f.wait
			if crash > 0 && !f.failed { // else its delivery was lost, or another consumer has reassigned it: nothing has failed
				wait = min(backoff(int(f.attempt)-1, minBackoff, maxBackoff), c.o.MinIdle) - idle[id]
			}
			c.park(d, wait)
		}
		if full || len(page) < 1000 {
			c.begun = true
			return nil
		}
		from = "(" + page[len(page)-1].ID
	}
}

// takeOver claims what others have left idle, as far as there are slots for it: one step of the walk through the pending
// list. The next turn goes on from there, or the one after it where something was claimed: new entries are read meanwhile,
// however long the list is, and however much of it comes back.
func (c *Consumer) takeOver(ctx context.Context) error {
	var count int
	for looked := 0; looked < walkStep && ctx.Err() == nil; looked += 10 * count {
		c.mu.Lock()
		room := (c.o.Slots - c.running) * c.o.Batch
		c.mu.Unlock()
		if room <= 0 || c.held() {
			return nil
		}
		count = min(room, walkStep/10)
		msgs, cursor, deleted, err := c.o.Redis.XAutoClaimWithDeleted(ctx, &redis.XAutoClaimArgs{
			Stream: c.o.Stream, Group: c.o.Group, Consumer: c.o.Consumer, MinIdle: c.o.MinIdle,
			Start: c.claimed, Count: int64(count),
		}).Result()
		if err != nil {
			return err
		}
		c.claimed, c.walking = cursor, cursor != "0-0"
		for _, id := range deleted {
			c.reportDeleted(id)
		}
		var ids, stalled []string
		for _, m := range msgs {
			if known, idle := c.has(m.ID); !known {
				ids = append(ids, m.ID)
			} else if idle { // ours all along: its heartbeat was late, or its handler stalls
				stalled = append(stalled, m.ID)
			}
		}
		found, err := c.begin(ctx, ids, -1, 0) // claiming has counted an attempt
		if err != nil {
			return err // adopted next time
		}
		var ds []*Delivery
		for _, m := range msgs {
			f := found[m.ID]
			if !f.ours {
				continue
			}
			d := c.delivery(m, f.attempt)
			if d.failed = f.failed; f.wait > 0 {
				c.park(d, f.wait)
			} else {
				ds = append(ds, d)
			}
		}
		if len(ds) > 0 {
			c.o.Log.Info("took over entries that nobody had renewed", zap.Int("entries", len(ds)), zap.String("first", ds[0].ID))
		}
		c.dispatch(ds)
		c.yield = c.yield || len(ds) > 0
		if len(stalled) > 0 { // left for the others
			if err := c.release(ctx, stalled); err != nil {
				return err
			}
		}
		if !c.walking {
			return nil
		}
	}
	return nil
}

// deleted settles a pending entry that is not in the stream any more: there is nothing left to do for it.
func (c *Consumer) deleted(ctx context.Context, id string) {
	if err := c.o.Redis.XAck(ctx, c.o.Stream, c.o.Group, id).Err(); err != nil {
		return // again at the next upkeep
	}
	c.reportDeleted(id)
}

func (c *Consumer) reportDeleted(id string) {
	c.o.Log.Error("an entry was deleted from the stream while it was pending: what it asked for was not done",
		zap.String("entry", id))
	if c.o.Lost != nil {
		c.o.Lost(id)
	}
}

// sample remembers how many entries a stream had been given when id was its newest.
type sample struct {
	id    string
	added int64
}

// trim removes settled entries, but leaves the newest Keep of the stream.
func (c *Consumer) trim(ctx context.Context) error {
	info, err := c.o.Redis.XInfoStream(ctx, c.o.Stream).Result()
	if err != nil {
		return err
	}
	if err := c.low(ctx); err != nil {
		return err
	}
	// The id below which there are at least Keep newer entries is known from earlier rounds: asking Redis for it
	// would cost as much as reading them.
	if n := len(c.samples); n == 0 || c.samples[n-1].id != info.LastGeneratedID {
		c.samples = append(c.samples, sample{info.LastGeneratedID, info.EntriesAdded})
	}
	old := -1
	for i, s := range c.samples {
		if info.EntriesAdded-s.added >= c.o.Keep {
			old = i
		}
	}
	if old < 0 {
		if len(c.samples) > 1000 { // half as many, twice as far apart
			for i := range len(c.samples) / 2 {
				c.samples[i] = c.samples[2*i]
			}
			c.samples = c.samples[:len(c.samples)/2]
		}
		return nil
	}
	id := c.samples[old].id
	c.samples = c.samples[old:]
	return trimScript.Run(ctx, c.o.Redis, []string{c.o.Stream}, id).Err()
}

// low remembers up to where this group has settled everything.
func (c *Consumer) low(ctx context.Context) error {
	groups, err := c.o.Redis.XInfoGroups(ctx, c.o.Stream).Result()
	if err != nil {
		return err
	}
	pending, err := c.o.Redis.XPending(ctx, c.o.Stream, c.o.Group).Result()
	if err != nil {
		return err
	}
	for _, g := range groups {
		if g.Name != c.o.Group {
			continue
		}
		to := g.LastDeliveredID
		if pending.Count > 0 && !Newer(pending.Lower, to) {
			to = before(pending.Lower)
		}
		c.settledTo = to
	}
	return nil
}

// forgetConsumers removes consumers that are gone, so that XINFO CONSUMERS stays readable.
func (c *Consumer) forgetConsumers(ctx context.Context) error {
	consumers, err := c.o.Redis.XInfoConsumers(ctx, c.o.Stream, c.o.Group).Result()
	if err != nil {
		return err
	}
	for _, o := range consumers {
		if o.Name == c.o.Consumer || o.Pending > 0 || o.Idle < forgetAfter {
			continue
		}
		if err := forgetScript.Run(ctx, c.o.Redis, []string{c.o.Stream}, c.o.Group, o.Name).Err(); err != nil {
			return err
		}
	}
	return nil
}

// heartbeat renews what is in hand and shows progress, and what is parked. What shows none is only looked at: somebody
// else may have taken it over.
func (c *Consumer) heartbeat(ctx context.Context) {
	for {
		pause(ctx, jitter(c.o.MinIdle/3))
		if ctx.Err() != nil {
			return
		}
		alive, stalled := c.inHand()
		for part := range slices.Chunk(alive, 500) {
			c.renew(ctx, part, true)
		}
		for part := range slices.Chunk(stalled, 500) {
			c.renew(ctx, part, false)
		}
	}
}

func (c *Consumer) renew(ctx context.Context, ids []string, renew bool) {
	found, err := renewScript.Run(ctx, c.o.Redis, []string{c.o.Stream},
		arguments(ids, c.o.Group, c.o.Consumer, renew)...).Int64Slice()
	if err != nil && !strings.Contains(err.Error(), "NOGROUP") { // without its group, nothing is ours
		if ctx.Err() == nil {
			c.o.Log.Warn("heartbeat failed", zap.Error(err))
		}
		return
	}
	for i, id := range ids {
		if err == nil && found[i] == isOurs {
			continue
		}
		if err == nil && found[i] == isDeleted {
			c.reportDeleted(id)
		}
		// Settled a moment ago, or taken over because we were paused.
		c.mu.Lock()
		if d := c.known[id]; d != nil {
			delete(c.known, id)
			if d.cancel != nil {
				d.cancel(errNotOurs)
			}
		}
		c.mu.Unlock()
	}
}

var errNotOurs = errors.New("the entry is not ours any more")

// inHand lists what is known, split into what is parked or in the hands of a handler that gets on, and the rest.
func (c *Consumer) inHand() (alive, stalled []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, d := range c.known {
		if d.parked || !d.Stalled(c.o.MinIdle) {
			alive = append(alive, id)
		} else {
			stalled = append(stalled, id)
		}
	}
	return alive, stalled
}

// has tells whether an entry is in hand or parked here, and whether its handler shows no sign of life.
func (c *Consumer) has(id string) (known, stalled bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.known[id]
	return d != nil, d != nil && !d.parked && d.Stalled(c.o.MinIdle)
}

// ids copies what is known, so that nobody holds the lock while talking to Redis.
func (c *Consumer) ids() map[string]*Delivery {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.known)
}

func (c *Consumer) knows(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.known[id] != nil
}

// before is the id right before a stream id.
func before(id string) string {
	ms, seq, _ := strings.Cut(id, "-")
	if n, err := strconv.ParseUint(seq, 10, 64); err == nil && n > 0 {
		return ms + "-" + strconv.FormatUint(n-1, 10)
	}
	if n, err := strconv.ParseUint(ms, 10, 64); err == nil && n > 0 {
		return strconv.FormatUint(n-1, 10) + "-18446744073709551615"
	}
	return "0"
}
