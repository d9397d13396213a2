package main

import (
	"context"
	"errors"
	"fmt"
	"io"
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
//	views ──▶ stream.Consumer ──▶ worker.Relocator ─┐
//	                                                ├─▶ mover ──▶ tiers
//	committed ──▶ stream.Consumer ──▶ worker.Releaser ┘    ▲
//	                                  worker.Sweeper ──────┘
//	all of them: state.Store (Redis scripts), catalog (MySQL reads)
//	admin.Ready: redis, mysql, tiers ──▶ /readyz, and holds the consumers while a server is away
func serve(ctx context.Context, v values, stderr io.Writer, fs fsys.FS) int {
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
	ready := admin.NewReady(log,
		admin.Check{Name: "redis", Do: store.Agree},
		admin.Check{Name: "mysql", Do: v.catalog.CheckSchema},
		admin.Check{Name: "tiers", Do: (&tiersCheck{catalog: v.catalog, fs: fs, suspects: tiers.Suspects}).do},
	)
	options := worker.Options{
		Store: store, Catalog: v.catalog, Mover: mover.New(mover.Options{Verify: v.verify, Limiter: limiter, FS: fs}),
		WorkerID: v.workerID, MaxAttempts: v.maxAttempts, Lease: v.MinIdle, Grace: v.grace,
		Trouble: ready.Look, Tiers: tiers, Metrics: metrics, Log: log,
	}
	var paused atomic.Bool
	away := func() bool { return !ready.OK("redis", "mysql") }
	consumer := func(key, group string, hold func() bool, handle stream.Handler) *stream.Consumer {
		return stream.New(stream.Options{
			Redis: readers, Stream: key, Group: group, Consumer: v.workerID, MinIdle: v.MinIdle,
			Slots: max(1, v.concurrency/v.Partitions), Drain: v.Drain, Hold: hold, Handle: handle, Log: log,
			Lost: options.Metrics.Lost,
		})
	}
	relocator, releaser := worker.NewRelocator(options), worker.NewReleaser(options)
	var consumers []*stream.Consumer
	for _, k := range keys.Each() {
		consumers = append(consumers,
			consumer(k.Views(), state.GroupRelocator, func() bool { return away() || paused.Load() }, relocator.Handle),
			consumer(k.Committed(), state.GroupReleaser, away, releaser.Handle))
	}
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
	for _, c := range consumers {
		wg.Go(func() { c.Run(ctx) })
	}
	wg.Go(func() { sweeper.Run(ctx) })
	wg.Wait()
	log.Info("stopped")
	stopAdmin()
	waitAdmin()
	return process.OK
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
	for _, l := range policy.Levels() {
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
