package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/relocator/internal/tier"
	"github.com/tierflow/tierflow/relocator/internal/worker"
	"github.com/tierflow/tierflow/shared/admin"
	"github.com/tierflow/tierflow/shared/assignment"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/logging"
	"github.com/tierflow/tierflow/shared/process"
	"github.com/tierflow/tierflow/shared/settings"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
)

// run is the program. fs is the one for production, but in tests.
func run(ctx context.Context, args []string, stdout, stderr io.Writer, fs fsys.FS) int {
	var a arguments
	verb, err := settings.Parse("relocator", "Moves contents between tiers and clears old copies.", &a, args)
	if err != nil {
		fmt.Fprintln(stderr, "relocator:", err)
		return process.Settings
	}
	if verb == "version" {
		fmt.Fprintln(stdout, process.VersionText("relocator"))
		return process.OK
	}
	v, err := a.check()
	if err != nil {
		fmt.Fprintln(stderr, "relocator:", err)
		return process.Settings
	}
	defer v.redis.Close()
	defer v.catalog.Close()
	switch verb {
	case "healthcheck":
		if err := admin.Probe(ctx, v.adminListen); err != nil {
			fmt.Fprintln(stderr, "relocator:", err)
			return process.Failed
		}
		return process.OK
	case "init-tiers":
		return initTiers(ctx, v, stdout, stderr)
	case "verify":
		return verifyTiers(ctx, v, a.VerifyTiers.Repair, a.VerifyTiers.Digest, stdout, stderr)
	}
	return serve(ctx, v, stderr, fs)
}

// serve wires the relocator and runs it until ctx ends:
//
//	assignment.Assignment: which partitions are ours; for each of them
//	views ──▶ stream.Consumer ──▶ worker.Relocator ─┐
//	                                                ├─▶ mover ──▶ tiers
//	committed ──▶ stream.Consumer ──▶ worker.Releaser ┘    ▲
//	                                  worker.Sweeper ──────┘
//	all of them: state.Store (Redis scripts), catalog (MySQL reads)
//	admin.Ready: redis, mysql, tiers, workers ──▶ /readyz, and holds the consumers while a server is away
func serve(ctx context.Context, v values, stderr io.Writer, fs fsys.FS) int {
	process.CollectLate(ctx)
	log := logging.New("relocator", v.LogLevel, v.LogFormat).With(zap.String("worker_id", v.workerID))
	defer func() { _ = log.Sync() }()
	reg := admin.NewRegistry()

	// The readers block in Redis; they have connections of their own, so that no script waits for them.
	readers, err := state.ConnectMany(v.RedisURL, 3, 2*v.Partitions+4)
	if err != nil {
		fmt.Fprintln(stderr, "relocator:", err)
		return process.Settings
	}
	defer readers.Close()

	keys := state.NewKeys(v.RedisPrefix).Partitioned(v.Partitions)
	store := state.NewStore(state.Options{Redis: v.redis, Keys: keys, TTL: v.StateTTL, Lease: v.MinIdle})
	var limiter *rate.Limiter
	if v.bandwidth > 0 {
		limiter = rate.NewLimiter(rate.Limit(v.bandwidth), int(min(v.bandwidth, 4<<20)))
	}
	metrics := worker.NewMetrics(reg)
	tiers := worker.NewTiers(metrics, log)
	var partitions *assignment.Assignment
	ready := admin.NewReady(log,
		admin.Check{Name: "redis", Do: store.Agree},
		admin.Check{Name: "mysql", Do: v.catalog.CheckSchema},
		admin.Check{Name: "tiers", Do: (&tiersCheck{catalog: v.catalog, fs: fs, only: v.tiers, suspects: tiers.Suspects}).do},
		admin.Check{Name: "workers", Do: func(ctx context.Context) error { return partitions.CheckHeartbeat(ctx) }},
	)
	reach := &worker.Reach{Me: state.Worker{ID: v.workerID, Tiers: v.tiers}}
	options := worker.Options{
		Store: store, Catalog: v.catalog, Mover: mover.New(mover.Options{Verify: v.verify, Limiter: limiter, FS: fs}),
		WorkerID: v.workerID, MaxAttempts: v.maxAttempts, Lease: v.MinIdle, Grace: v.grace,
		Reach: reach, Trouble: ready.Look, Tiers: tiers, Metrics: metrics, Log: log,
	}
	var paused atomic.Bool
	away := func() bool { return !ready.OK("redis", "mysql") }
	var slots crew
	consumer := func(k state.Keys, key, group string, hold func() bool, handle stream.Handler) assignment.Consumer {
		return slots.add(stream.New(stream.Options{
			Redis: readers, Stream: key, Backoff: k.Backoff(group), Group: group, Consumer: v.workerID, MinIdle: v.MinIdle, Adopt: handedSoon,
			Slots: max(1, v.concurrency/v.Partitions), Drain: v.Drain, Hold: hold, Handle: handle, Log: log,
			Lost: options.Metrics.Lost,
		}))
	}
	relocator, releaser := worker.NewRelocator(options), worker.NewReleaser(options)
	partitions = assignment.New(assignment.Options{
		Store: store, Group: state.GroupRelocator, Self: reach.Me, MinIdle: v.MinIdle, Log: log,
		Consumers: func(k state.Keys) []assignment.Consumer {
			return []assignment.Consumer{
				consumer(k, k.Views(), state.GroupRelocator, func() bool { return away() || paused.Load() }, relocator.Handle),
				consumer(k, k.Committed(), state.GroupReleaser, away, releaser.Handle),
			}
		},
		// Each partition has its part of the moves that may be made at once, and one at least.
		Changed: func(n int) { slots.set(max(1, v.concurrency/max(n, 1))) },
	})
	reach.Peers = partitions
	ready.Detail("partitions", func() any { return v.Partitions })
	ready.Detail("attends", func() any { return partitions.Partitions() })
	ready.Detail("unreachable", func() any { return reach.Unreachable() })
	sweeper := worker.NewSweeper(options)

	// Health outlives the drain: a relocator that drains is alive.
	adminCtx, stopAdmin := context.WithCancel(context.WithoutCancel(ctx))
	defer stopAdmin()
	waitAdmin, err := admin.Serve(adminCtx, v.adminListen, admin.Handler(ready, reg), log)
	if err != nil {
		log.Error("cannot start", zap.Error(err))
		return process.Failed
	}
	go ready.Run(adminCtx)
	go watchPause(adminCtx, store, &paused, log)
	log.Info("started", zap.Int("concurrency", v.concurrency), zap.Duration("release_grace", v.grace),
		zap.String("verify", string(v.verify)), zap.String("version", process.VersionText("relocator")))

	var wg sync.WaitGroup
	wg.Go(func() { partitions.Run(ctx) })
	wg.Go(func() { sweeper.Run(ctx) })
	wg.Wait()
	log.Info("stopped")
	stopAdmin()
	waitAdmin()
	return process.OK
}

// handedSoon is how soon a relocator sees what others hand to it.
const handedSoon = time.Second

// crew are the consumers of all partitions that this relocator has or had.
type crew struct {
	mu    sync.Mutex
	all   []*stream.Consumer
	slots int // of each
}

func (c *crew) add(one *stream.Consumer) *stream.Consumer {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.slots > 0 {
		one.SetSlots(c.slots)
	}
	c.all = append(c.all, one)
	return one
}

func (c *crew) set(slots int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.slots = slots
	c.all = slices.DeleteFunc(c.all, (*stream.Consumer).Ended)
	for _, one := range c.all {
		one.SetSlots(slots)
	}
}

// watchPause learns within half a second that relocations are paused or go on.
func watchPause(ctx context.Context, store *state.Store, paused *atomic.Bool, log *zap.Logger) {
	for ctx.Err() == nil {
		if p, err := store.Paused(ctx); err == nil && paused.Swap(p) != p {
			log.Info("relocations", zap.Bool("paused", p))
		}
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// tiersCheck names every tier that cannot be used, or is suspect, and two that are one. Whether a tier can be written to
// it asks each of them until it can, and not again: the question writes.
type tiersCheck struct {
	catalog  *catalog.Catalog
	fs       fsys.FS
	only     []string // the levels that this host reaches; nil: all
	suspects func() error
	probed   map[string]bool // by id
}

func (c *tiersCheck) do(ctx context.Context) error {
	policy, err := c.catalog.Policy(ctx)
	if err != nil {
		return err
	}
	var errs []error
	var roots []*tier.Root
	for _, name := range c.only {
		if _, ok := policy.Level(name); !ok {
			errs = append(errs, fmt.Errorf("TIERFLOW_TIERS names %q, and there is no such level", name))
		}
	}
	for _, l := range policy.Levels() {
		if c.only != nil && !slices.Contains(c.only, l.Name) {
			continue
		}
		root, err := tier.Open(c.fs, l)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		defer root.Close()
		roots = append(roots, root)
		if !c.probed[root.ID] {
			if err := root.Probe(); err != nil {
				errs = append(errs, err)
				continue
			}
			if c.probed == nil {
				c.probed = map[string]bool{}
			}
			c.probed[root.ID] = true
		}
	}
	return errors.Join(append(errs, tier.CheckDistinct(roots...), c.suspects())...)
}
