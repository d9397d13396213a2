// Package assignment spreads the partitions over the workers of a group. Its importers are the relocator and the committer.
//
// Workers announce themselves in Redis, and every one computes from the list of the living which partitions are whose:
// nobody hands out anything, and nobody is first among them. A worker that has not been heard of for two thirds of
// MinIdle does not count any more, and its partitions are others' within MinIdle. What two workers see may differ for
// a moment; then a partition has two of them, or none until the next look. That each entry is done once never depends
// on it: the consumer group, the lock and the generation see to that.
//
// With fewer workers than partitions each partition has one, and no worker has two more than another. With more,
// each worker has one, and no partition two more than another: a thousand relocators need a thousand connections for
// reading and not a thousand for each partition. Workers that reach different tiers are spread apart, so that
// every partition has one of each kind, to which the others hand what only it can do.
package assignment

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/state"
)

// Consumer is what works on a partition: stream.Consumer.
type Consumer interface {
	Run(ctx context.Context)
	Retire()
	Resume() bool
}

// Options of a Assignment. All are required.
type Options struct {
	Store   *state.Store
	Group   string // whose workers share
	Self    state.Worker
	MinIdle time.Duration
	// Attend makes what works on a partition. They are run until the partition is somebody else's.
	Consumers func(partition state.Keys) []Consumer
	// Changed is called with how many partitions are ours when that changes; may be nil.
	Changed func(n int)
	Log     *zap.Logger
}

// Assignment is a worker's part in the partitions.
type Assignment struct {
	o Options
	n int

	mu     sync.Mutex
	living []state.Worker
	mine   []int
	failed error         // of the last announcement
	first  chan struct{} // closed after the first
}

// New makes a Assignment. Run must be started.
func New(o Options) *Assignment {
	return &Assignment{o: o, n: o.Store.Keys().Partitions(), first: make(chan struct{})}
}

// Mine are the partitions that this worker has now.
func (s *Assignment) Partitions() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.mine)
}

// Announced tells whether the others have heard of this worker lately. It waits for the first announcement, so that it can
// be a check of readiness.
func (s *Assignment) CheckHeartbeat(ctx context.Context) error {
	select {
	case <-s.first:
	case <-ctx.Done():
		return errors.New("this worker has not announced itself yet")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil {
		return nil
	}
	hint := "look at Redis"
	if strings.Contains(s.failed.Error(), "NOPERM") {
		hint = "let this service's Redis user use the key " + s.o.Store.Keys().Workers(s.o.Group)
	}
	return fmt.Errorf("this worker cannot announce itself: it takes on no partitions, and others take those that it has: %w (%s)",
		s.failed, hint)
}

// Capable names a living worker other than this one that has the partition and reaches the tiers, "" where there is none.
// Of several, key chooses.
func (s *Assignment) Capable(partition int, key string, tiers ...string) string {
	s.mu.Lock()
	living := s.living
	s.mu.Unlock()
	var able []string
	for class, ids := range classes(living) {
		if !(state.Worker{Tiers: tiersOf(class)}).Reaches(tiers...) {
			continue
		}
		for _, id := range ids {
			if id != s.o.Self.ID && slices.Contains(Assign(ids, id, s.n), partition) {
				able = append(able, id)
			}
		}
	}
	if len(able) == 0 {
		return ""
	}
	slices.Sort(able)
	return able[weight(key, 0)%uint64(len(able))]
}

// Run attends to the partitions that are ours, until ctx ends and what was begun has ended.
func (s *Assignment) Run(ctx context.Context) {
	running := map[int]*attendance{}
	var wg sync.WaitGroup
	every, counts := s.o.MinIdle/6, s.o.MinIdle*2/3
	heard := sync.OnceFunc(func() { close(s.first) })
	for ctx.Err() == nil {
		actx, cancel := context.WithTimeout(ctx, max(every, time.Second))
		living, err := s.o.Store.Heartbeat(actx, s.o.Group, s.o.Self, counts)
		cancel()
		s.mu.Lock()
		before := s.failed
		s.failed = err
		s.mu.Unlock()
		switch {
		case err == nil:
			s.see(ctx, living, running, &wg)
		case before == nil && ctx.Err() == nil: // the partitions stay as they are
			s.o.Log.Warn("could not announce, going on with the partitions as they are", zap.Error(err))
		}
		heard()
		select {
		case <-ctx.Done():
		case <-time.After(every):
		}
	}
	lctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	_ = s.o.Store.Leave(lctx, s.o.Group, s.o.Self.ID) // else it is forgotten a little later
	cancel()
	wg.Wait()
}

// attendance is the work on one partition.
type attendance struct {
	consumers []Consumer
	mine      bool
}

func (s *Assignment) see(ctx context.Context, living []state.Worker, running map[int]*attendance, wg *sync.WaitGroup) {
	var alike []string
	for _, w := range living {
		if classOf(w) == classOf(s.o.Self) {
			alike = append(alike, w.ID)
		}
	}
	mine := Assign(alike, s.o.Self.ID, s.n)
	s.mu.Lock()
	before := s.mine
	s.living, s.mine = living, mine
	s.mu.Unlock()
	if before != nil && slices.Equal(before, mine) {
		return
	}
	if s.o.Changed != nil {
		s.o.Changed(len(mine))
	}
	s.o.Log.Info("partitions", zap.Int("workers", len(living)), zap.Ints("mine", mine))
	for p, a := range running {
		if a.mine && !slices.Contains(mine, p) {
			a.mine = false
			for _, c := range a.consumers {
				c.Retire() // what it has in hand it finishes
			}
		}
	}
	for _, p := range mine {
		a := running[p]
		if a == nil {
			a = &attendance{consumers: s.o.Consumers(s.o.Store.Keys().In(p)), mine: true}
			running[p] = a
			for _, c := range a.consumers {
				wg.Go(func() { c.Run(ctx) })
			}
			continue
		}
		if a.mine {
			continue
		}
		a.mine = true
		fresh := s.o.Consumers(s.o.Store.Keys().In(p))
		for i, c := range a.consumers {
			if !c.Resume() { // it has ended already
				a.consumers[i] = fresh[i]
				wg.Go(func() { fresh[i].Run(ctx) })
			}
		}
	}
}

// classOf tells workers apart that reach different tiers.
func classOf(w state.Worker) string {
	if w.Tiers == nil {
		return "*"
	}
	tiers := slices.Clone(w.Tiers)
	slices.Sort(tiers)
	return strings.Join(tiers, ",")
}

func tiersOf(class string) []string {
	if class == "*" {
		return nil
	}
	return strings.Split(class, ",")
}

func classes(workers []state.Worker) map[string][]string {
	cs := map[string][]string{}
	for _, w := range workers {
		c := classOf(w)
		cs[c] = append(cs[c], w.ID)
	}
	return cs
}

// Assign are the partitions of n that one of the workers has, ascending: the same whoever computes it. Few of them change
// when a worker comes or goes.
func Assign(workers []string, me string, n int) []int {
	workers = slices.Clone(workers)
	slices.Sort(workers)
	at := slices.Index(workers, me)
	if at < 0 {
		return nil
	}
	mine := []int{}
	if len(workers) <= n {
		for p, w := range spread(n, len(workers), func(p, w int) uint64 { return weight(workers[w], p) }) {
			if w == at {
				mine = append(mine, p)
			}
		}
		return mine
	}
	return append(mine, spread(len(workers), n, func(w, p int) uint64 { return weight(workers[w], p) })[at])
}

// spread puts items into bins, each into the one of the highest weight that has room; no bin gets two more than another.
func spread(items, bins int, weight func(item, bin int) uint64) []int {
	least, extra := items/bins, items%bins
	loads := make([]int, bins)
	of := make([]int, items)
	for i := range items {
		best, highest := -1, uint64(0)
		for b := range bins {
			if loads[b] > least || loads[b] == least && extra == 0 {
				continue
			}
			if w := weight(i, b); best < 0 || w > highest {
				best, highest = b, w
			}
		}
		if loads[best] == least {
			extra--
		}
		loads[best]++
		of[i] = best
	}
	return of
}

// weight is a number that looks random, and is the same for everybody.
func weight(worker string, p int) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(worker + "/" + strconv.Itoa(p))) // never fails
	x := h.Sum64()
	x ^= x >> 33 // FNV changes its high bits little at the end of a text
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return x
}
