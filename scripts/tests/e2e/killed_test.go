package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/state"
)

// TestKilledAtAnyStepAProcessCostsNothing ends relocators and committers with SIGKILL at every step of a move, and of a view that
// moves nothing. It does so before the first and the last of each kind of operation on files, and before and after every Redis
// script and MySQL statement. The steps go from the delivery of the view event to the end of the release. Each step has an item of its own.
// For most items, more counts are posted while the process is away, which move them back and forth.
func TestKilledAtAnyStepAProcessCostsNothing(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	c := newCampaign(t, 4, 2, shortLease)
	recorded := c.record()
	// Most processes come back under another name. With one name, each crash would count for everything that the consumer
	// holds, and here there are hundreds of crashes. The others take over what the old name held.
	var lives atomic.Int64
	rename := func(v *stack.Service) {
		if n := lives.Add(1); n%4 > 0 {
			v.Settings["TIERFLOW_WORKER_ID"] = fmt.Sprintf("%s-life-%d", v.Name, n)
		}
	}
	c.deed = func(f *flow, a at) (verdict, bool) {
		if !c.d.kill(a, rename) {
			return gone, false // the process was ended for another step a moment ago
		}
		close(f.hit)
		return gone, true
	}
	defer c.readers(2)()
	c.everywhere(seed, recorded, true, 32, c.kill)
}

func (c *campaign) kill(f *flow) {
	c.add(f)
	c.postLevel(f, f.way.level)
	level := f.way.level
	hit, err := c.happens(f, level)
	if hit {
		for range f.bounces {
			level = f.other(level)
			c.postLevel(f, level)
		}
	}
	if err == nil {
		err = until(patience, func() error { return c.done(f, level) })
	}
	if err != nil {
		c.t.Errorf("item %s, %s: %v; %s; pending: %s", f.id, f.way.name, err, c.story(f), c.pending())
	}
}

// pending says what is pending in the streams, for how long, and with whom.
func (c *campaign) pending() string {
	ctx := context.Background()
	var all []string
	for stream, group := range map[string]string{c.w.Keys.Views(): state.GroupRelocator, c.w.Keys.Relocated(): state.GroupCommitter,
		c.w.Keys.Committed(): state.GroupReleaser} {
		entries, err := c.w.Redis.XPendingExt(ctx, &redis.XPendingExtArgs{Stream: stream, Group: group, Start: "-", End: "+", Count: 5}).Result()
		groups, gerr := c.w.Redis.XInfoGroups(ctx, stream).Result()
		all = append(all, fmt.Sprintf("%s: %+v, %+v, %v", stream, entries, groups, errors.Join(err, gerr)))
	}
	return strings.Join(all, "; ")
}

// other returns the level that the item moves to next from this one.
func (f *flow) other(level string) string {
	if level == "bronze" {
		return f.way.level
	}
	return "bronze"
}

// postLevel posts a count that needs the level. Where the item never moves, each count is another one.
func (c *campaign) postLevel(f *flow, level string) {
	switch {
	case f.way.level == "bronze":
		c.post(f, f.last+1)
	case level == "bronze":
		c.post(f, 0)
	default:
		c.post(f, f.way.count)
	}
}

// TestStoppedAtAnyStepAProcessThatWakesUpLateChangesNothing stops relocators and committers with SIGSTOP at the same steps.
// While they are stopped, leases end, others take over, and the item moves back and forth. Then the stopped processes go on
// where they were.
func TestStoppedAtAnyStepAProcessThatWakesUpLateChangesNothing(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	c := newCampaign(t, 8, 3, shortLease)
	recorded := c.record()
	s := sleepers{c: c, of: map[string]int{}, most: map[string]int{stack.Relocator: 6, stack.Committer: 2}, asleep: map[*stack.Service]bool{}}
	c.deed = s.stop
	defer c.readers(2)()
	c.everywhere(seed, recorded, false, 8, s.run)
	t.Logf("while it slept, others moved the item %d times", s.moved.Load())
	if s.moved.Load() == 0 {
		t.Error("no other process has moved anything meanwhile")
	}
}

// sleepers are the processes that are stopped now. Some processes of each role must keep running.
type sleepers struct {
	c     *campaign
	most  map[string]int // max number, by role
	moved atomic.Int64

	mu     sync.Mutex
	of     map[string]int // number, by role
	asleep map[*stack.Service]bool
}

func (s *sleepers) stop(f *flow, a at) (verdict, bool) {
	s.mu.Lock()
	kind := role(a.service)
	if s.asleep[a.service] || s.of[kind] == s.most[kind] {
		s.mu.Unlock()
		return goOn, false
	}
	s.asleep[a.service] = true
	s.of[kind]++
	s.mu.Unlock()
	if ok := s.c.d.pause(a); !ok {
		s.c.t.Errorf("%s was not stopped", a.service.Name)
	}
	close(f.hit)
	<-f.leave
	s.mu.Lock()
	delete(s.asleep, a.service)
	s.of[kind]--
	s.mu.Unlock()
	return goOn, true
}

func (s *sleepers) run(f *flow) {
	c := s.c
	c.add(f)
	level := f.way.level
	c.postLevel(f, level)
	hit, err := c.happens(f, level)
	if hit {
		// A process that is stopped within a transaction keeps its rows locked: nobody else can change them.
		limit := 10 * time.Second
		if strings.Contains(f.met.step, "mysql") {
			limit = 2 * time.Second
		}
		for n := range f.bounces {
			if until(limit, func() error { return c.on(f, level) }) != nil {
				break
			}
			s.moved.Add(1)
			if n < f.bounces-1 {
				level = f.other(level)
				c.postLevel(f, level)
			}
		}
		c.d.resume(*f.met)
		close(f.leave)
	}
	if err == nil {
		err = until(patience, func() error { return c.done(f, level) })
	}
	if err != nil {
		c.t.Errorf("item %s, %s: %v; %s", f.id, f.way.name, err, c.story(f))
	}
}
