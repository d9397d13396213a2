package service

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/gate"
	"github.com/tierflow/tierflow/relocator/internal/handler"
	"github.com/tierflow/tierflow/relocator/internal/metrics"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/relocator/internal/reach"
	"github.com/tierflow/tierflow/relocator/internal/release"
	"github.com/tierflow/tierflow/relocator/internal/relocate"
	"github.com/tierflow/tierflow/relocator/internal/sweep"
	"github.com/tierflow/tierflow/relocator/internal/tierhealth"
	"github.com/tierflow/tierflow/shared/admin"
	"github.com/tierflow/tierflow/shared/assignment"
	"github.com/tierflow/tierflow/shared/outage"
	"github.com/tierflow/tierflow/shared/presence"
	"github.com/tierflow/tierflow/shared/process"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
)

const (
	// reassignedWithin is how soon a relocator sees the entries that others reassign to it.
	reassignedWithin = time.Second
	// pauseWithin is how soon it sees that relocations are paused or go on.
	pauseWithin = 500 * time.Millisecond
	// minHandlers is more than the large items that are copied at once.
	minHandlers = 64
)

// Run relocates and releases until ctx ends, and then for the drain time at most. It comes up without Redis, MySQL and
// tiers, says in /readyz what is missing, and works when it is there.
//
//	assignment.Assignment: the partitions of this relocator; for each of them
//	views ──────▶ stream.Consumer ──▶ relocate.Handler ─┐
//	                                                    ├─▶ mover ──▶ tiers
//	committed ──▶ stream.Consumer ──▶ release.Handler ──┤
//	                                  sweep.Sweeper ────┘
//	all of them: state.Store (Redis), placement and catalog (MySQL)
//	relocate and release: lease (locks), gate (slots), tierhealth, reach, shared/failure
//	admin.Ready: redis, mysql and its writes, tiers, workers ──▶ /readyz, and holds the consumers while a server is away
func Run(ctx context.Context, c Config, fs fsys.FS, log *zap.Logger) error {
	registry := admin.NewRegistry()
	store := c.store()
	var limiter *rate.Limiter
	if c.bandwidth > 0 {
		limiter = rate.NewLimiter(rate.Limit(c.bandwidth), int(min(c.bandwidth, 4<<20)))
	}
	// Health outlives the drain: a relocator that drains is alive.
	adminCtx, stopAdmin := context.WithCancel(context.WithoutCancel(ctx))
	defer stopAdmin()
	watched := fs
	watched.InFlight = &fsys.InFlight{}
	move := mover.New(mover.Options{Verify: c.verify, Limiter: limiter, FS: watched})
	counters := metrics.New(registry)
	moves, releases := gate.New(c.concurrency), gate.New(c.concurrency)
	tiers := tierhealth.New(adminCtx, tierhealth.Options{
		Levels: c.catalog.Policy, Look: move.Look, Probe: move.Probe, Slow: watched.InFlight.Slow, Metrics: counters, Log: log,
		Hangs: func(level string, hangs bool) {
			moves.SetHanging(level, hangs)
			releases.SetHanging(level, hangs)
		},
	})
	reports := presence.New(store, state.Service{Program: "relocator", ID: c.workerID, Version: process.Version, GraceMS: c.grace.Milliseconds()},
		"give each relocator a TIERFLOW_WORKER_ID of its own", log)
	var partitions *assignment.Assignment
	writes := outage.New("writes to MySQL", log)
	onTiers := &tiersCheck{catalog: c.catalog, fs: fs, only: c.tiers, health: tiers, tiers: map[string]*tierCheck{}}
	ready := admin.NewReady(log,
		admin.Check{Name: "redis", Do: store.Agree},
		admin.Check{Name: "redis-memory", Do: store.CheckMemory, Warn: true},
		admin.Check{Name: "redis-durability", Do: store.CheckDurability, Warn: true},
		admin.Check{Name: "mysql", Do: c.catalog.CheckSchema},
		admin.Check{Name: "mysql-writes", Do: writes.Check},
		admin.Check{Name: "tiers", Do: onTiers.do},
		admin.Check{Name: "worker-id", Do: reports.CheckAlone, Warn: true},
		admin.Check{Name: "groups", Do: func(ctx context.Context) error { return partitions.CheckConsumed(ctx) }, Warn: true},
		admin.Check{Name: "workers", Do: func(ctx context.Context) error { return partitions.CheckHeartbeat(ctx) }},
	)
	warned := outage.Say("a tier cannot be used for everything", "each tier can be used for everything again", log)
	onTiers.warn = func(err error) {
		ready.Warn("tiers", err)
		warned.Note(err)
	}
	self := state.Worker{ID: c.workerID, Tiers: c.tiers}
	reached := reach.New(reach.Options{
		Store: store, Self: self, Lease: c.MinIdle, ServerFailed: ready.Look, Metrics: counters, Log: log,
		Capable: func(partition int, key string, tiers ...string) string {
			return partitions.Capable(partition, key, tiers...)
		},
	})
	parts := handler.Parts{
		Store: store, Catalog: c.catalog, Mover: move, WorkerID: c.workerID, MaxAttempts: c.maxAttempts, Lease: c.MinIdle,
		ServerFailed: ready.Look, Writes: writes, Reach: reached, Tiers: tiers, Metrics: counters, Log: log,
	}
	relocator := relocate.New(relocate.Options{Parts: parts, Gate: moves})
	releaser := release.New(release.Options{Parts: parts, Grace: c.grace, Gate: releases})
	sweeper := sweep.New(sweep.Options{Store: store, Catalog: c.catalog, Mover: move, Self: self, Rests: tiers.CheckRemove,
		Lease: c.MinIdle, Log: log})

	var paused atomic.Bool
	var moving consumers // those of views
	away := func() bool { return !ready.OK("redis", "mysql") }
	var all consumers
	consumer := func(k state.Keys, o stream.Options) *stream.Consumer {
		o.Redis, o.Backoff, o.Consumer, o.MinIdle, o.Adopt = c.readers, k.Backoff(o.Group), c.workerID, c.MinIdle, reassignedWithin
		o.Walker, o.Drain, o.Log, o.Lost = k.Walker(o.Group), c.Drain, log, counters.Lost
		return all.add(stream.New(o))
	}
	each := handlers(c.concurrency, c.Partitions)
	partitions = assignment.New(assignment.Options{
		Store: store, Group: state.GroupRelocator, Self: self, MinIdle: c.MinIdle, Log: log,
		Consumers: func(k state.Keys) []assignment.Consumer {
			return []assignment.Consumer{
				// Views are read though no move has a slot: most need none.
				moving.add(consumer(k, stream.Options{Stream: k.Views(), Group: state.GroupRelocator, Handle: relocator.Handle,
					Slots: relocate.Reads, Batch: relocate.MaxBatch, Alone: each, Hold: func() bool { return away() || paused.Load() }})),
				consumer(k, stream.Options{Stream: k.Committed(), Group: state.GroupReleaser, Handle: releaser.Handle, Slots: each,
					Hold: away, Full: releases.Full}),
			}
		},
		Changed: func(n int) { all.setSlots(handlers(c.concurrency, n)) },
	})
	metrics.Waiting(registry, all.waiting)
	ready.Detail("partitions", func() any { return c.Partitions })
	ready.Detail("attends", func() any { return partitions.Partitions() })
	ready.Detail("unreachable", func() any { return reached.Unreachable() })

	waitAdmin, err := admin.Serve(adminCtx, c.adminListen, admin.Handler(ready, registry), log)
	if err != nil {
		return err
	}
	go ready.Run(adminCtx)
	var ends sync.WaitGroup
	ends.Go(func() {
		reports.Run(adminCtx, ready, presence.Parts{
			Tiers: func() []state.TierReport {
				return onTiers.seen.reports(tiers.Status(), func(level string) int { return moves.Hanging(level) + releases.Hanging(level) })
			},
			Totals: func() map[string]int64 {
				moves, bytes := counters.MovedTotal()
				return map[string]int64{state.RateMoves: moves, state.RateBytes: bytes}
			},
		})
	})
	go watchPause(adminCtx, store, c.workerID, &paused, &moving, log)
	log.Info("started", zap.Int("concurrency", c.concurrency), zap.Duration("release_grace", c.grace),
		zap.String("verify", string(c.verify)), zap.String("version", process.VersionText("relocator")))

	var wg sync.WaitGroup
	wg.Go(func() { partitions.Run(ctx) })
	wg.Go(func() { sweeper.Run(ctx) })
	wg.Wait()
	log.Info("stopped")
	stopAdmin()
	ends.Wait()
	waitAdmin()
	return nil
}

// handlers is how many handlers one of so many partitions may run at once. The gates bound the moves and releases of all
// together. A partition has some more handlers than its part, so that a few slow moves do not hold up its others.
func handlers(concurrency, partitions int) int {
	return max(concurrency/max(partitions, 1), min(concurrency, minHandlers))
}

// consumers are those of all partitions that this relocator has or had.
type consumers struct {
	mu    sync.Mutex
	all   []*stream.Consumer
	slots int // of each; 0: as they were made
}

func (c *consumers) add(one *stream.Consumer) *stream.Consumer {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.slots > 0 {
		one.SetSlots(c.slots)
	}
	c.all = append(c.all, one)
	return one
}

func (c *consumers) setSlots(slots int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.slots = slots
	c.all = slices.DeleteFunc(c.all, (*stream.Consumer).Ended)
	for _, one := range c.all {
		one.SetSlots(slots)
	}
}

// waiting is how many entries wait, by reason.
func (c *consumers) waiting() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	sum := map[string]int{}
	for _, one := range c.all {
		for reason, n := range one.Waiting() {
			sum[reason] += n
		}
	}
	return sum
}

// hold reports whether all consumers begin nothing.
func (c *consumers) hold() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = slices.DeleteFunc(c.all, (*stream.Consumer).Ended)
	return !slices.ContainsFunc(c.all, func(one *stream.Consumer) bool { return !one.Holding() })
}

// watchPause keeps paused up to date, and answers a pause when no move is begun any more.
func watchPause(ctx context.Context, store *state.Store, worker string, paused *atomic.Bool, moving *consumers, log *zap.Logger) {
	answered := ""
	looks := outage.Say("whether moves are paused cannot be read now", "whether moves are paused can be read again", log)
	for ctx.Err() == nil {
		by, err := store.Pause(ctx)
		if ctx.Err() == nil {
			looks.Note(err)
		}
		if p := by != ""; err == nil && paused.Swap(p) != p {
			log.Info("relocations", zap.Bool("paused", p), zap.String("by", by))
		}
		if err == nil && by != "" && by != answered && moving.hold() && store.Hold(ctx, worker, by) == nil {
			answered = by
		}
		select {
		case <-ctx.Done():
		case <-time.After(pauseWithin):
		}
	}
}
