package service

import (
	"context"
	"sync"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/committer/internal/apply"
	"github.com/tierflow/tierflow/committer/internal/commit"
	"github.com/tierflow/tierflow/shared/admin"
	"github.com/tierflow/tierflow/shared/backlog"
	"github.com/tierflow/tierflow/shared/presence"
	"github.com/tierflow/tierflow/shared/process"
	"github.com/tierflow/tierflow/shared/state"
)

// Run commits until ctx ends, and then for the drain time at most. It comes up without Redis, MySQL and schema, says in
// /readyz what is missing, and works when it is there.
//
//	relocated ──▶ stream.Consumer ──batches──▶ commit ──▶ apply ──▶ MySQL: contents, update_history
//	                    ▲                      │    └───▶ state.Store ──▶ Redis: committed, views, states; dead
//	                    │ holds                │ requests a check
//	                    └──── admin.Ready ◀────┘
//	                          redis, mysql, workers, commit ──▶ /readyz
//
// With --migrate, Run also brings the schema up to date. Until it is, mysql is not ready.
func Run(ctx context.Context, c Config, log *zap.Logger) error {
	registry := admin.NewRegistry()
	store := state.NewStore(state.Options{
		Redis: c.redis, Keys: state.NewKeys(c.RedisPrefix).Partitioned(c.Partitions), TTL: c.StateTTL, Lease: c.MinIdle,
	})
	backlog.Register(registry, store)
	reports := presence.New(store, state.Service{Program: "committer", ID: c.workerID, Version: process.Version},
		"give each committer a TIERFLOW_WORKER_ID of its own", log)
	var committer *commit.Committer
	var ready *admin.Ready
	ready = admin.NewReady(log,
		admin.Check{Name: "redis", Do: store.Agree},
		admin.Check{Name: "redis-memory", Do: store.CheckMemory, Warn: true},
		admin.Check{Name: "redis-durability", Do: store.CheckDurability, Warn: true},
		admin.Check{Name: "mysql", Do: c.catalog.CheckSchema},
		admin.Check{Name: "worker-id", Do: reports.CheckAlone, Warn: true},
		admin.Check{Name: "groups", Do: func(ctx context.Context) error { return committer.CheckConsumed(ctx) }, Warn: true},
		admin.Check{Name: "workers", Do: func(ctx context.Context) error { return committer.CheckHeartbeat(ctx) }},
		admin.Check{Name: "commit", Do: func(ctx context.Context) error {
			ready.Warn("commit", committer.Waiting(ctx))
			return committer.CheckCommit(ctx)
		}},
	)
	committer = commit.New(commit.Options{
		Redis: c.redis, Store: store, Apply: apply.New(c.catalog.DB()).Apply,
		WorkerID: c.workerID, MinIdle: c.MinIdle, Drain: c.Drain, MaxAttempts: c.maxAttempts,
		Hold: func() bool { return !ready.OK("redis", "mysql") }, ServerFailed: ready.Look,
		Metrics: commit.NewMetrics(registry), Log: log,
	})
	ready.Detail("partitions", func() any { return c.Partitions })
	ready.Detail("attends", func() any { return committer.Partitions() })

	// Health outlives the drain: a committer that drains is alive.
	adminCtx, stopAdmin := context.WithCancel(context.WithoutCancel(ctx))
	defer stopAdmin()
	waitAdmin, err := admin.Serve(adminCtx, c.adminListen, admin.Handler(ready, registry), log)
	if err != nil {
		return err
	}
	go ready.Run(adminCtx)
	var ends sync.WaitGroup
	ends.Go(func() { reports.Run(adminCtx, ready, presence.Parts{}) })
	log.Info("started", zap.Int64("max_attempts", c.maxAttempts), zap.String("version", process.VersionText("committer")))

	var wg sync.WaitGroup
	wg.Go(func() { committer.Run(ctx) })
	if c.migrate {
		wg.Go(func() { keepMigrating(ctx, c.catalog, ready.Look, log) })
	}
	wg.Wait()
	log.Info("stopped")
	stopAdmin()
	ends.Wait()
	waitAdmin()
	return nil
}
