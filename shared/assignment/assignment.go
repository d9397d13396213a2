// Package assignment gives each partition to workers of a group. The relocator and the committer import it.
//
// Every worker sends heartbeats to Redis and reads the list of living workers with each. From that list every worker
// computes the same assignment, so no worker leads. A worker without a heartbeat for two thirds of MinIdle counts as
// dead; others have its partitions within MinIdle. Two workers may see different lists for a moment. A partition then
// has two workers, or none until the next heartbeat. The consumer group, the lock and the generation still let each
// entry take effect once.
//
// With fewer workers than partitions, each partition has one worker, and the numbers of partitions of two workers differ by
// one at most. With more workers, each has one partition, and the numbers of workers of two partitions differ by one at
// most. So a thousand relocators need a thousand blocking connections, not a thousand for each partition. Workers that
// reach the same tiers form a set, and every set is spread over all partitions. So each partition has a worker of every
// set, and the others can reassign entries to it.
package assignment

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/outage"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
)

// Consumer works on a stream of a partition: stream.Consumer.
type Consumer interface {
	Run(ctx context.Context)
	Retire()
	Resume() bool
	Waiting() map[string]int
	Waits(longer time.Duration) []stream.Wait
	Unconsumed() []stream.Group
}

// Options of an Assignment. All are required, except where noted.
type Options struct {
	Store   *state.Store
	Group   string // the group whose workers divide the partitions
	Self    state.Worker
	MinIdle time.Duration
	// Consumers makes the consumers of a partition. They run until another worker has the partition.
	Consumers func(partition state.Keys) []Consumer
	// Changed is called with the number of this worker's partitions when that changes. It may be nil.
	Changed func(n int)
	Log     *zap.Logger
}

// Assignment runs the consumers of the partitions that one worker has.
type Assignment struct {
	o Options
	n int // partitions

	mu      sync.Mutex
	plan    *plan          // nil before the first heartbeat
	failed  error          // of the last heartbeat
	idle    []stream.Group // other groups of the streams that nobody consumes
	started chan struct{}  // closed after the first heartbeat
}

// New makes an Assignment. Run starts it.
func New(o Options) *Assignment {
	return &Assignment{o: o, n: o.Store.Keys().Partitions(), started: make(chan struct{})}
}

// Partitions are the partitions that this worker has now, ascending.
func (a *Assignment) Partitions() []int {
	if p := a.current(); p != nil {
		return slices.Clone(p.own)
	}
	return nil
}

func (a *Assignment) current() *plan {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.plan
}

// CheckHeartbeat returns an error where the last heartbeat failed. It waits for the first one, so that it can be a
// readiness check.
func (a *Assignment) CheckHeartbeat(ctx context.Context) error {
	select {
	case <-a.started:
	case <-ctx.Done():
		return errors.New("this worker has not sent a heartbeat yet")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.failed == nil {
		return nil
	}
	hint := "look at Redis"
	if strings.Contains(a.failed.Error(), "NOPERM") {
		hint = "let this service's Redis user use the key " + a.o.Store.Keys().Workers(a.o.Group)
	}
	return fmt.Errorf("this worker cannot send heartbeats: it takes no new partitions, and others take those it has: %w (%s)",
		a.failed, hint)
}

// CheckConsumed is a readiness check: an error where streams of this worker's partitions have other groups that nobody consumes.
func (a *Assignment) CheckConsumed(context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return stream.CheckConsumed(a.idle)
}

// Capable names another living worker that has the partition and reaches the tiers, "" where there is none. The key
// chooses among several.
func (a *Assignment) Capable(partition int, key string, tiers ...string) string {
	p := a.current()
	if p == nil {
		return ""
	}
	var able []string
	for _, w := range p.workers[partition] {
		if w.ID != a.o.Self.ID && w.Reaches(tiers...) {
			able = append(able, w.ID)
		}
	}
	if len(able) == 0 {
		return ""
	}
	return able[weight(key, 0)%uint64(len(able))]
}

// Run sends heartbeats and runs the consumers of this worker's partitions. It returns after ctx has ended and every
// consumer has returned.
func (a *Assignment) Run(ctx context.Context) {
	running := map[int]*work{}
	var wg sync.WaitGroup
	every, within := a.o.MinIdle/6, a.o.MinIdle*2/3
	beats := outage.Say("heartbeats fail: this worker keeps its partitions and takes no new ones", "heartbeats are sent again", a.o.Log)
	reports := outage.New("reports of what waits", a.o.Log)
	start := sync.OnceFunc(func() { close(a.started) })
	waiting := a.o.Store.WaitingAt(a.o.Group, a.o.Self.ID, a.o.MinIdle)
	for ctx.Err() == nil {
		hctx, cancel := context.WithTimeout(ctx, max(every, time.Second))
		living, err := a.o.Store.Heartbeat(hctx, a.o.Group, a.o.Self, within)
		cancel()
		a.mu.Lock()
		a.failed = err
		a.mu.Unlock()
		if ctx.Err() == nil {
			beats.Note(err)
		}
		if err == nil {
			a.update(ctx, living, running, &wg)
			reports.Note(a.report(ctx, waiting, running))
		}
		start()
		select {
		case <-ctx.Done():
		case <-time.After(every):
		}
	}
	lctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	_ = a.o.Store.Leave(lctx, a.o.Group, a.o.Self.ID) // on an error the others notice after two thirds of MinIdle
	_ = waiting.Clear(lctx)                           // it expires
	cancel()
	wg.Wait()
}

// work is what runs for one partition.
type work struct {
	consumers []Consumer
	assigned  bool // false: the consumers finish what they have begun
}

// update makes a new plan where the list of living workers has changed, then starts and retires consumers.
func (a *Assignment) update(ctx context.Context, living []state.Worker, running map[int]*work, wg *sync.WaitGroup) {
	before, changed := a.replan(living)
	if !changed {
		return
	}
	own := a.current().own
	if before != nil && slices.Equal(before.own, own) {
		return
	}
	if a.o.Changed != nil {
		a.o.Changed(len(own))
	}
	a.o.Log.Info("the partition assignment has changed", zap.Int("workers", len(living)), zap.Ints("mine", own))
	for p, w := range running {
		if w.assigned && !slices.Contains(own, p) {
			w.assigned = false
			for _, c := range w.consumers {
				c.Retire()
			}
		}
	}
	for _, p := range own {
		w := running[p]
		if w == nil {
			w = &work{consumers: a.o.Consumers(a.o.Store.Keys().In(p)), assigned: true}
			running[p] = w
			for _, c := range w.consumers {
				wg.Go(func() { c.Run(ctx) })
			}
			continue
		}
		if w.assigned {
			continue
		}
		w.assigned = true
		fresh := a.o.Consumers(a.o.Store.Keys().In(p))
		for i, c := range w.consumers {
			if !c.Resume() { // it has ended
				w.consumers[i] = fresh[i]
				wg.Go(func() { fresh[i].Run(ctx) })
			}
		}
	}
}

// replan computes the plan of these workers, unless the present plan is of the same ones.
func (a *Assignment) replan(living []state.Worker) (before *plan, changed bool) {
	before = a.current()
	if before.madeFor(living) {
		return before, false
	}
	p := newPlan(living, a.o.Self, a.n)
	a.mu.Lock()
	a.plan = p
	a.mu.Unlock()
	return before, true
}
