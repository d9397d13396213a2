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

	"github.com/tierflow/tierflow/shared/entryid"
)

// upkeep makes sure that the group exists, and adopts pending entries of this consumer that it does not know. Then it takes
// over entries of dead consumers, trims the stream, and removes consumers that are gone. The goroutine of Run calls it.
func (c *Consumer) upkeep(ctx context.Context) error {
	if err := c.createGroup(ctx); err != nil {
		return err
	}
	if err := c.adopt(ctx); err != nil {
		return err
	}
	if err := c.checkClock(ctx); err != nil {
		return err
	}
	c.walking, c.walkAt = true, time.Time{}
	if err := c.takeOver(ctx); err != nil {
		return err
	}
	if err := c.trim(ctx); err != nil {
		return err
	}
	return c.forgetConsumers(ctx)
}

// createGroup makes the group where it is missing. The group begins at 0 or, where it had vanished, at the entry up to which
// it had settled everything. It never begins at $, which would skip entries that were added meanwhile.
func (c *Consumer) createGroup(ctx context.Context) error {
	start := "0"
	if c.settledTo != "" {
		// settledTo is of use only in the same stream: after a wipe, ids may begin anywhere.
		info, err := c.o.Redis.XInfoStream(ctx, c.o.Stream).Result()
		if err == nil && !entryid.Newer(c.settledTo, info.LastGeneratedID) {
			start = c.settledTo
		}
	}
	err := CreateGroup(ctx, c.o.Redis, c.o.Stream, c.o.Group, start)
	if err != nil && strings.HasPrefix(err.Error(), "BUSYGROUP") {
		return nil
	}
	if err == nil && start != "0" {
		// A wipe between the two commands would leave the group behind the stream's end, where no entry is new.
		info, ierr := c.o.Redis.XInfoStream(ctx, c.o.Stream).Result()
		if ierr == nil && entryid.Newer(start, info.LastGeneratedID) {
			ierr = c.o.Redis.XGroupSetID(ctx, c.o.Stream, c.o.Group, "0").Err()
		}
		err = ierr
	}
	if err == nil && c.settledTo != "" {
		c.o.Log.Error("the consumer group had vanished; it was made again", zap.String("start", start))
	}
	return err
}

// adopt parks pending entries of this consumer that it does not know: the reply with them was lost, another consumer has
// reassigned them, or they are from before a restart.
//
// An entry that has failed waits for the rest of its back-off, and this is no attempt. An entry that a crash has left has
// made an attempt: without that, an entry that crashes its worker would do so for ever. It also waits, so that other entries
// get time between two crashes. It waits no longer than a take-over takes, because most entries that were in hand at a crash
// did not cause it.
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
		full := len(ids) > room // park would forget entries beyond that at once
		ids = ids[:min(len(ids), room)]
		found, err := c.begin(ctx, ids, 0, 0)
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
			d := c.delivery(msgs[0], max(f.attempt, 1))
			d.failed = f.failed
			wait := f.wait
			if !c.begun && !f.failed { // an entry of a lost reply, or a reassigned one, begins at once
				d.Attempt, d.uncounted = f.attempt+1, true
				wait = min(backoff(int(f.attempt), minBackoff, maxBackoff), c.o.MinIdle) - idle[id]
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

// takeOver claims idle entries of other consumers while there are slots. It is one step of the walk through the pending list,
// and the next turn makes the next step. Where a step has claimed entries, the next turn reads new entries instead. So new
// entries are read however long the list is.
func (c *Consumer) takeOver(ctx context.Context) error {
	var count int
	for looked := 0; looked < walkStep && ctx.Err() == nil; looked += 10 * count {
		c.mu.Lock()
		room := (c.o.Slots - c.running) * c.o.Batch
		c.mu.Unlock()
		if room <= 0 || c.held() {
			return c.leaveWalk(ctx) // others may have slots
		}
		if mine, err := c.mayWalk(ctx); err != nil || !mine {
			return err
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
			} else if idle { // it is this consumer's own: its heartbeat was late, or its handler stalls
				stalled = append(stalled, m.ID)
			}
		}
		found, err := c.begin(ctx, ids, -1, 0) // XAUTOCLAIM has counted an attempt
		if err != nil {
			return err // the next upkeep adopts them
		}
		var ds []*Delivery
		for _, m := range msgs {
			f := found[m.ID]
			if !f.ours {
				continue
			}
			d := c.delivery(m, max(f.attempt, 1))
			if d.failed = f.failed; f.wait > 0 {
				c.park(d, f.wait)
			} else {
				ds = append(ds, d)
			}
		}
		if len(ds) > 0 {
			c.o.Log.Info("took over entries that their consumers had not renewed", zap.Int("entries", len(ds)), zap.String("first", ds[0].ID))
		}
		c.dispatch(ds)
		c.yield = c.yield || len(ds) > 0
		if len(stalled) > 0 { // others may take these over
			if err := c.makeIdle(ctx, stalled, 1); err != nil {
				return err
			}
		}
		if !c.walking {
			return c.leaseWalk(ctx, c.walkEvery()/2)
		}
	}
	return nil
}

// deleted settles a pending entry that is not in the stream any more.
func (c *Consumer) deleted(ctx context.Context, id string) {
	if err := c.o.Redis.XAck(ctx, c.o.Stream, c.o.Group, id).Err(); err != nil {
		return // the next upkeep tries again
	}
	c.reportDeleted(id)
}

func (c *Consumer) reportDeleted(id string) {
	c.o.Log.Error("an entry was deleted from the stream while it was pending: its work was not done",
		zap.String("entry", id))
	if c.o.Lost != nil {
		c.o.Lost(id)
	}
}

// sample records how many entries had been added to the stream when id was its newest.
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
	all, err := c.low(ctx)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.others.look(all, c.o.Group, info.LastGeneratedID, time.Now(), c.o.MinIdle/3)
	c.mu.Unlock()
	// The samples of earlier rounds give an id that has at least Keep newer entries. Redis would have to read those entries
	// to find such an id.
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
		if len(c.samples) > 1000 { // keep every second one
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

// low sets settledTo. It returns the groups of the stream.
func (c *Consumer) low(ctx context.Context) ([]redis.XInfoGroup, error) {
	groups, err := c.o.Redis.XInfoGroups(ctx, c.o.Stream).Result()
	if err != nil {
		return nil, err
	}
	pending, err := c.o.Redis.XPending(ctx, c.o.Stream, c.o.Group).Result()
	if err != nil {
		return nil, err
	}
	for _, g := range groups {
		if g.Name != c.o.Group {
			continue
		}
		to := g.LastDeliveredID
		if pending.Count > 0 && !entryid.Newer(pending.Lower, to) {
			to = before(pending.Lower)
		}
		c.settledTo = to
	}
	return groups, nil
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

// heartbeat renews the entries that are parked or whose handlers make progress. Of the others it only checks whether this
// consumer still has them.
func (c *Consumer) heartbeat(ctx context.Context) {
	for {
		pause(ctx, jitter(c.o.MinIdle/3))
		if ctx.Err() != nil {
			return
		}
		alive, stalled := c.inHand()
		for part := range slices.Chunk(alive, maxClaimed) {
			c.renew(ctx, part, true)
		}
		for part := range slices.Chunk(stalled, maxClaimed) {
			c.renew(ctx, part, false)
		}
	}
}

func (c *Consumer) renew(ctx context.Context, ids []string, renew bool) {
	found, err := renewScript.Run(ctx, c.o.Redis, []string{c.o.Stream},
		arguments(ids, c.o.Group, c.o.Consumer, renew)...).Int64Slice()
	if err != nil && !strings.Contains(err.Error(), "NOGROUP") { // without its group, this consumer has no entries
		if ctx.Err() == nil {
			c.renewals.Failed(err)
		}
		return
	}
	c.renewals.Succeeded()
	for i, id := range ids {
		if err == nil && found[i] == isOurs {
			continue
		}
		if err == nil && found[i] == isDeleted {
			c.reportDeleted(id)
		}
		// The entry was settled a moment ago, or taken over because this process was paused.
		c.mu.Lock()
		if d := c.known[id]; d != nil {
			delete(c.known, id)
			c.waitsNoMore(d)
			if d.cancel != nil {
				d.cancel(errNotOurs)
			}
		}
		c.mu.Unlock()
	}
}

var errNotOurs = errors.New("this consumer has lost the entry")

// inHand lists the known entries. alive are those that are parked or whose handlers make progress.
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

// has reports whether an entry is in hand or parked here, and whether its handler has stalled.
func (c *Consumer) has(id string) (known, stalled bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.known[id]
	return d != nil, d != nil && !d.parked && d.Stalled(c.o.MinIdle)
}

// ids returns a copy of known, so that no caller holds the lock during a call of Redis.
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

// before returns the id right before an entry id.
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
