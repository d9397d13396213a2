package assignment_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/assignment"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m) }

func workers(n int) (ids []string) {
	for i := range n {
		ids = append(ids, fmt.Sprintf("host-%d", i+1))
	}
	return ids
}

func TestSharesAreFairAndLeaveNoPartitionOut(t *testing.T) {
	for _, c := range []struct{ workers, partitions int }{{1, 1}, {1, 16}, {3, 16}, {4, 16}, {5, 4}, {16, 16}, {7, 64}, {64, 7}, {300, 64}, {5, 1}} {
		ids := workers(c.workers)
		of := make([]int, c.partitions) // workers of each
		least, most := c.partitions, 0
		for _, id := range ids {
			mine := assignment.Assign(ids, id, c.partitions)
			least, most = min(least, len(mine)), max(most, len(mine))
			for _, p := range mine {
				of[p]++
			}
		}
		if slices.Min(of) < 1 || slices.Max(of)-slices.Min(of) > 1 {
			t.Errorf("%d workers, %d partitions: workers of each partition %v", c.workers, c.partitions, of)
		}
		if most-least > 1 || c.workers >= c.partitions && most != 1 || c.workers <= c.partitions && slices.Max(of) != 1 {
			t.Errorf("%d workers, %d partitions: from %d to %d partitions each", c.workers, c.partitions, least, most)
		}
	}
	if got := assignment.Assign(workers(3), "somebody else", 16); got != nil {
		t.Errorf("who does not live has %v", got)
	}
}

func TestTheOrderOfTheListDoesNotMatterAndFewPartitionsChangeHands(t *testing.T) {
	ids := workers(8)
	turned := slices.Clone(ids)
	slices.Reverse(turned)
	moved := 0
	for _, id := range ids[:7] {
		before, after := assignment.Assign(ids, id, 64), assignment.Assign(ids[:7], id, 64)
		if !slices.Equal(before, assignment.Assign(turned, id, 64)) {
			t.Errorf("%s: another order, other partitions", id)
		}
		for _, p := range after {
			if !slices.Contains(before, p) {
				moved++
			}
		}
	}
	// Eight were the dead one's. Dealing them all out anew would move 56.
	if moved < 8 || moved > 28 {
		t.Errorf("%d partitions have changed hands", moved)
	}
}

// attendant is a consumer that does nothing but be there.
type attendant struct {
	mu      sync.Mutex
	retired chan struct{}
	ended   bool
}

func (a *attendant) Run(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-a.retired:
	}
	a.mu.Lock()
	a.ended = true
	a.mu.Unlock()
}

func (a *attendant) Retire() { close(a.retired) }

func (a *attendant) Resume() bool { return false }

const minIdle = 1200 * time.Millisecond

type member struct {
	*assignment.Assignment
	stop func()
}

func join(t *testing.T, store *state.Store, me state.Worker) *member {
	t.Helper()
	s := assignment.New(assignment.Options{Store: store, Group: "g", Self: me, MinIdle: minIdle, Log: zap.NewNop(),
		Consumers: func(state.Keys) []assignment.Consumer {
			return []assignment.Consumer{&attendant{retired: make(chan struct{})}}
		}})
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

// eventually waits until the members have so many partitions each, all of them together.
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

func TestWorkersShareThePartitionsAndTakeOverThoseOfOneThatGoes(t *testing.T) {
	store := newStore(t, 8)
	a := join(t, store, state.Worker{ID: "a"})
	eventually(t, "one has all", 8, []*member{a}, 8)
	b := join(t, store, state.Worker{ID: "b"})
	eventually(t, "two have half each", 8, []*member{a, b}, 4, 4)
	b.stop()
	eventually(t, "one has all again", 8, []*member{a}, 8)
}

func TestThePartitionsOfAWorkerThatDiesAreTheOthers(t *testing.T) {
	store := newStore(t, 8)
	a := join(t, store, state.Worker{ID: "a"})
	eventually(t, "one has all", 8, []*member{a}, 8)
	// Another one is heard of once and never again.
	if _, err := store.Heartbeat(t.Context(), "g", state.Worker{ID: "dead"}, minIdle*2/3); err != nil {
		t.Fatal(err)
	}
	testserver.Eventually(t, "it counts", 20*time.Second, func() error {
		if n := len(a.Partitions()); n != 4 {
			return fmt.Errorf("the other still has %d", n)
		}
		return nil
	})
	eventually(t, "it does not count any more", 8, []*member{a}, 8)
}

func TestWorkersThatReachOtherTiersHaveEveryPartitionToo(t *testing.T) {
	store := newStore(t, 4)
	all := []*member{
		join(t, store, state.Worker{ID: "a", Tiers: []string{"bronze", "silver"}}),
		join(t, store, state.Worker{ID: "b", Tiers: []string{"silver", "bronze"}}),
		join(t, store, state.Worker{ID: "c", Tiers: []string{"gold", "bronze"}}),
	}
	eventually(t, "two share, one has all", 4, all, 2, 2, 4)
	// Each hears of the others with its next announcement.
	testserver.Eventually(t, "they know of each other", 20*time.Second, func() error {
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
