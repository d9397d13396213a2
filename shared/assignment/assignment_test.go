package assignment_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/tierflow/tierflow/shared/assignment"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m) }

func workers(n int) (ids []string) {
	for i := range n {
		ids = append(ids, fmt.Sprintf("host-%d", i+1))
	}
	return ids
}

func TestPartitionsAreSpreadEvenlyAndNoneIsLeftOut(t *testing.T) {
	for _, c := range []struct{ workers, partitions int }{{1, 1}, {1, 16}, {3, 16}, {4, 16}, {5, 4}, {16, 16}, {7, 64}, {64, 7}, {300, 64}, {5, 1}} {
		workersOf := make([]int, c.partitions)
		minEach, maxEach := c.partitions, 0
		for _, own := range assignment.Compute(workers(c.workers), c.partitions) {
			minEach, maxEach = min(minEach, len(own)), max(maxEach, len(own))
			for _, p := range own {
				workersOf[p]++
			}
		}
		if slices.Min(workersOf) < 1 || slices.Max(workersOf)-slices.Min(workersOf) > 1 {
			t.Errorf("%d workers, %d partitions: workers of each partition %v", c.workers, c.partitions, workersOf)
		}
		if maxEach-minEach > 1 || c.workers >= c.partitions && maxEach != 1 || c.workers <= c.partitions && slices.Max(workersOf) != 1 {
			t.Errorf("%d workers, %d partitions: from %d to %d partitions each", c.workers, c.partitions, minEach, maxEach)
		}
	}
	if got := assignment.Compute(nil, 16); len(got) != 0 {
		t.Errorf("without workers: %v", got)
	}
}

func TestTheOrderOfTheListDoesNotMatterAndFewPartitionsMove(t *testing.T) {
	ids := workers(8)
	reversed := slices.Clone(ids)
	slices.Reverse(reversed)
	all, again, fewer := assignment.Compute(ids, 64), assignment.Compute(reversed, 64), assignment.Compute(ids[:7], 64)
	moved := 0
	for i, id := range ids[:7] {
		if !slices.Equal(all[i], again[len(ids)-1-i]) {
			t.Errorf("%s: another order, other partitions", id)
		}
		for _, p := range fewer[i] {
			if !slices.Contains(all[i], p) {
				moved++
			}
		}
	}
	// The worker that left had eight. A new assignment from nothing would move 56.
	if moved < 8 || moved > 28 {
		t.Errorf("%d partitions have moved", moved)
	}
}

// idleConsumer is a consumer that does nothing until it is retired.
type idleConsumer struct {
	mu      sync.Mutex
	retired chan struct{}
	ended   bool
}

func (a *idleConsumer) Run(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-a.retired:
	}
	a.mu.Lock()
	a.ended = true
	a.mu.Unlock()
}

func (a *idleConsumer) Retire() { close(a.retired) }

func (a *idleConsumer) Resume() bool { return false }

func (a *idleConsumer) Waiting() map[string]int { return nil }

func (a *idleConsumer) Waits(time.Duration) []stream.Wait { return nil }

func (a *idleConsumer) Unconsumed() []stream.Group { return nil }

const minIdle = 1200 * time.Millisecond

type member struct {
	*assignment.Assignment
	stop func()
}

func join(t *testing.T, store *state.Store, me state.Worker) *member {
	t.Helper()
	return joinWith(t, store, me, func() assignment.Consumer { return &idleConsumer{retired: make(chan struct{})} })
}

func joinWith(t *testing.T, store *state.Store, me state.Worker, consumer func() assignment.Consumer) *member {
	t.Helper()
	s := assignment.New(assignment.Options{Store: store, Group: "g", Self: me, MinIdle: minIdle, Log: zap.NewNop(),
		Consumers: func(state.Keys) []assignment.Consumer { return []assignment.Consumer{consumer()} }})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		s.Run(ctx)
		close(done)
	}()
	stop := sync.OnceFunc(func() {
		cancel()
		<-done
	})
	t.Cleanup(stop)
	return &member{s, stop}
}

func newStore(t *testing.T, partitions int) *state.Store {
	t.Helper()
	rdb, err := state.Connect(testserver.Redis(t), 3)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rdb.Close() })
	return state.NewStore(state.Options{Redis: rdb, Keys: state.NewKeys(testserver.Prefix(t)).Partitioned(partitions), TTL: time.Hour, Lease: time.Minute})
}

// eventually waits until the members have these numbers of partitions, and every partition has as many members as the others.
func eventually(t *testing.T, what string, partitions int, members []*member, want ...int) {
	t.Helper()
	testserver.Eventually(t, what, 20*time.Second, func() error {
		seen := make([]int, partitions)
		for i, m := range members {
			mine := m.Partitions()
			if len(mine) != want[i] {
				return fmt.Errorf("member %d has %v, want %d", i, mine, want[i])
			}
			for _, p := range mine {
				seen[p]++
			}
		}
		if slices.Min(seen) != slices.Max(seen) {
			return fmt.Errorf("members of each partition: %v", seen)
		}
		return nil
	})
}

func TestWorkersDivideThePartitionsAndTakeOverThoseOfAWorkerThatLeaves(t *testing.T) {
	store := newStore(t, 8)
	a := join(t, store, state.Worker{ID: "a"})
	eventually(t, "one has all", 8, []*member{a}, 8)
	b := join(t, store, state.Worker{ID: "b"})
	eventually(t, "two have half each", 8, []*member{a, b}, 4, 4)
	b.stop()
	eventually(t, "one has all again", 8, []*member{a}, 8)
}

func TestTheOthersTakeOverThePartitionsOfAWorkerThatDies(t *testing.T) {
	store := newStore(t, 8)
	a := join(t, store, state.Worker{ID: "a"})
	eventually(t, "one has all", 8, []*member{a}, 8)
	// Another worker sends one heartbeat and no more.
	if _, err := store.Heartbeat(t.Context(), "g", state.Worker{ID: "dead"}, minIdle*2/3); err != nil {
		t.Fatal(err)
	}
	testserver.Eventually(t, "the other worker counts", 20*time.Second, func() error {
		if n := len(a.Partitions()); n != 4 {
			return fmt.Errorf("the first worker still has %d", n)
		}
		return nil
	})
	eventually(t, "the other worker is dead", 8, []*member{a}, 8)
}

// failing counts the commands of a client that fail.
type failing struct {
	sent
	n atomic.Int64
}

func (f *failing) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if err != nil {
			f.n.Add(1)
		}
		return err
	}
}

func TestHeartbeatsThatFailAreLoggedWhenItBeginsAndWhenItEnds(t *testing.T) {
	gate, url := testserver.RedisGate(t, testserver.Redis(t))
	rdb, err := state.Connect(url, -1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rdb.Close() })
	f := &failing{}
	rdb.AddHook(f)
	store := state.NewStore(state.Options{Redis: rdb, Keys: state.NewKeys(testserver.Prefix(t)), TTL: time.Hour, Lease: time.Minute})
	core, logs := observer.New(zap.InfoLevel)
	a := assignment.New(assignment.Options{Store: store, Group: "g", Self: state.Worker{ID: "a"}, MinIdle: minIdle, Log: zap.New(core),
		Consumers: func(state.Keys) []assignment.Consumer {
			return []assignment.Consumer{&idleConsumer{retired: make(chan struct{})}}
		}})
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() { a.Run(ctx) })
	defer func() { cancel(); run.Wait() }()
	if err := a.CheckHeartbeat(t.Context()); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	gate.Close()
	testserver.Eventually(t, "heartbeats have failed", time.Minute, func() error {
		if n := f.n.Load(); n < 5 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	const begins, ends = "heartbeats fail: this worker keeps its partitions and takes no new ones", "heartbeats are sent again"
	if n := logs.FilterMessage(begins).Len(); n < 1 || n > 1+int(time.Since(began)/time.Minute) || logs.FilterMessage(ends).Len() != 0 {
		t.Errorf("%v", logs.All())
	}
	gate.Open()
	testserver.Eventually(t, "the end is logged", time.Minute, func() error {
		if n := logs.FilterMessage(ends).Len(); n != 1 {
			return fmt.Errorf("%d times", n)
		}
		return nil
	})
}

func TestWorkersThatReachOtherTiersDivideAllPartitionsOnceMore(t *testing.T) {
	store := newStore(t, 4)
	all := []*member{
		join(t, store, state.Worker{ID: "a", Tiers: []string{"bronze", "silver"}}),
		join(t, store, state.Worker{ID: "b", Tiers: []string{"silver", "bronze"}}),
		join(t, store, state.Worker{ID: "c", Tiers: []string{"gold", "bronze"}}),
	}
	eventually(t, "two divide the partitions, one has all", 4, all, 2, 2, 4)
	// Each reads the list of the others with its next heartbeat.
	testserver.Eventually(t, "they know each other", 20*time.Second, func() error {
		for p := range 4 {
			if got := all[0].Capable(p, "x", "gold", "bronze"); got != "c" {
				return fmt.Errorf("partition %d: %q reaches gold", p, got)
			}
			if got := all[2].Capable(p, "x", "silver"); got != "a" && got != "b" {
				return fmt.Errorf("partition %d: %q reaches silver", p, got)
			}
			if got := all[0].Capable(p, "x", "silver", "gold"); got != "" {
				return fmt.Errorf("partition %d: %q reaches both", p, got)
			}
		}
		return nil
	})
}
