package main

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/committer/internal/apply"
	"github.com/tierflow/tierflow/committer/internal/worker"
	"github.com/tierflow/tierflow/shared/admin"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/logging"
	"github.com/tierflow/tierflow/shared/process"
	"github.com/tierflow/tierflow/shared/settings"
	"github.com/tierflow/tierflow/shared/state"
)

// migrateAgain is how long a migration that failed rests: the server may still be starting.
const migrateAgain = time.Second

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var a arguments
	verb, err := settings.Parse("committer", "Writes relocations to MySQL.", &a, args)
	if err != nil {
		fmt.Fprintln(stderr, "committer:", err)
		return process.Settings
	}
	if verb == "version" {
		fmt.Fprintln(stdout, process.VersionText("committer"))
		return process.OK
	}
	v, err := a.check()
	if err != nil {
		fmt.Fprintln(stderr, "committer:", err)
		return process.Settings
	}
	defer v.redis.Close()
	defer v.catalog.Close()
	switch verb {
	case "healthcheck":
		if err := admin.Probe(ctx, v.adminListen); err != nil {
			fmt.Fprintln(stderr, "committer:", err)
			return process.Failed
		}
		return process.OK
	case "migrate":
		return migrate(ctx, v.catalog, stdout, stderr)
	}
	return serve(ctx, v, a.Serve.Migrate)
}

// serve wires the committer and runs it until ctx ends:
//
//	relocated ──▶ stream.Consumer ──batches──▶ worker ──▶ apply ──▶ MySQL: contents, update_history
//	                    ▲                      │    └───▶ state.Store ──▶ Redis: committed, views, states; dead
//	                    │ holds                │ looks again
//	                    └──── admin.Ready ◀────┘
//	                          redis, mysql, workers ──▶ /readyz
//
// With --migrate, the schema is brought up to date on the side; until it is, mysql is not ready.
func serve(ctx context.Context, v values, migrate bool) int {
	process.CollectLate(ctx)
	log := logging.New("committer", v.LogLevel, v.LogFormat).With(zap.String("worker_id", v.workerID))
	defer func() { _ = log.Sync() }()
	reg := admin.NewRegistry()
	store := state.NewStore(state.Options{
		Redis: v.redis, Keys: state.NewKeys(v.RedisPrefix).Partitioned(v.Partitions), TTL: v.StateTTL, Lease: v.MinIdle,
	})
	var w *worker.Worker
	ready := admin.NewReady(log,
		admin.Check{Name: "redis", Do: store.Agree},
		admin.Check{Name: "mysql", Do: v.catalog.CheckSchema},
		admin.Check{Name: "workers", Do: func(ctx context.Context) error { return w.Announced(ctx) }},
	)
	w = worker.New(worker.Options{
		Redis: v.redis, Store: store,
		Apply:    apply.New(v.catalog.DB()).Apply,
		Consumer: v.workerID, MinIdle: v.MinIdle, Drain: v.Drain, MaxAttempts: v.maxAttempts,
		Hold: func() bool { return !ready.OK("redis", "mysql") }, Look: ready.Look,
		Metrics: worker.NewMetrics(reg), Log: log,
	})

	ready.Detail("partitions", func() any { return v.Partitions })
	ready.Detail("attends", func() any { return w.Partitions() })

	// Health outlives the drain: a committer that drains is alive.
	adminCtx, stopAdmin := context.WithCancel(context.WithoutCancel(ctx))
	defer stopAdmin()
	waitAdmin, err := admin.Serve(adminCtx, v.adminListen, admin.Handler(ready, reg), log)
	if err != nil {
		log.Error("cannot start", zap.Error(err))
		return process.Failed
	}
	go ready.Run(adminCtx)
	log.Info("started", zap.Int64("max_attempts", v.maxAttempts), zap.String("version", process.VersionText("committer")))

	var wg sync.WaitGroup
	wg.Go(func() { w.Run(ctx) })
	if migrate {
		wg.Go(func() { keepMigrating(ctx, v.catalog, ready.Look, log) })
	}
	wg.Wait()
	log.Info("stopped")
	stopAdmin()
	waitAdmin()
	return process.OK
}

// migrate is the verb. It does not wait for a server that is away.
func migrate(ctx context.Context, c *catalog.Catalog, stdout, stderr io.Writer) int {
	applied, err := c.Migrate(ctx)
	for _, name := range applied {
		fmt.Fprintln(stdout, "applied", name)
	}
	if err != nil {
		fmt.Fprintln(stderr, "committer: migrate:", err)
		return process.Failed
	}
	if len(applied) == 0 {
		fmt.Fprintln(stdout, "nothing to apply: the schema is up to date")
	}
	return process.OK
}

// keepMigrating migrates once, as soon as MySQL lets it. What hinders it is logged when it changes.
func keepMigrating(ctx context.Context, c *catalog.Catalog, look func(), log *zap.Logger) {
	var last string
	for {
		applied, err := c.Migrate(ctx)
		if len(applied) > 0 {
			log.Info("migrated", zap.Strings("applied", applied))
		}
		if err == nil {
			look()
			return
		}
		if ctx.Err() == nil && err.Error() != last {
			last = err.Error()
			log.Warn("cannot migrate yet, trying again", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(migrateAgain):
		}
	}
}
