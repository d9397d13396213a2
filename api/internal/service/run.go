package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/api/internal/apikeys"
	"github.com/tierflow/tierflow/api/internal/httpapi"
	"github.com/tierflow/tierflow/api/internal/ingest"
	"github.com/tierflow/tierflow/api/internal/live"
	"github.com/tierflow/tierflow/api/internal/lookup"
	"github.com/tierflow/tierflow/api/internal/reevaluate"
	"github.com/tierflow/tierflow/api/internal/registry"
	"github.com/tierflow/tierflow/shared/admin"
	"github.com/tierflow/tierflow/shared/backlog"
	"github.com/tierflow/tierflow/shared/presence"
	"github.com/tierflow/tierflow/shared/process"
	"github.com/tierflow/tierflow/shared/state"
)

// Run serves until ctx ends, and then for the drain time at most. It comes up without Redis, MySQL and schema, says in
// /readyz what is missing, and works when it is there. listening is called with the address once connections are taken.
//
//	clients
//	   │ HTTP
//	httpapi ── find ──▶ lookup ── one query for many ──▶ MySQL (catalog)
//	   │  │               ▲ invalidate                     ▲
//	   │  │            commits ◀── XREAD committed ── Redis │
//	   │  │            hub ◀────── XREAD all, while somebody watches
//	   │  └── items, pins, levels ─────▶ registry ─────────┘
//	   │                    └─ then the last counts again ─▶ reevaluate ──▶ Redis
//	   └── append ──▶ ingest ── one script for many, never sent twice ──▶ Redis (state)
//
// What ends first is what others depend on: the listener, the requests in hand, the batcher with what it holds, and
// then the readers.
func Run(ctx context.Context, c Config, log *zap.Logger, listening func(net.Addr)) error {
	defer c.reads.Close()
	defer c.writes.Close()
	defer c.catalog.Close()
	listener, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return fmt.Errorf("the HTTP service cannot listen: %w", err)
	}

	keys := state.NewKeys(c.RedisPrefix).Partitioned(c.Partitions)
	writes := state.NewStore(state.Options{Redis: c.writes, Keys: keys, TTL: c.StateTTL, Lease: lease})
	reads := state.NewStore(state.Options{Redis: c.reads, Keys: keys, TTL: c.StateTTL, Lease: lease})
	metrics := admin.NewRegistry()
	backlog.Register(metrics, reads)

	find := lookup.New(lookup.Options{Catalog: c.catalog, Log: log, Metrics: metrics})
	reports := presence.New(reads, state.Service{Program: "api", ID: identity(listener.Addr()), Version: process.Version},
		"give each host a name of its own", log)
	ready := admin.NewReady(log,
		admin.Check{Name: "redis", Do: redisCheck(writes, reads)},
		admin.Check{Name: "redis-memory", Do: writes.CheckMemory, Warn: true},
		admin.Check{Name: "redis-durability", Do: writes.CheckDurability, Warn: true},
		admin.Check{Name: "id", Do: reports.CheckAlone, Warn: true},
		admin.Check{Name: "mysql", Do: c.catalog.Ping},
		admin.Check{Name: "schema", Do: func(ctx context.Context) error {
			if err := c.catalog.CheckSchema(ctx); err != nil {
				return err
			}
			return find.Answers(ctx)
		}})
	ready.Detail("partitions", func() any { return c.Partitions })
	batcher := ingest.New(ingest.Options{Store: writes, MaxBacklog: c.MaxBacklog, Metrics: metrics})
	items := registry.New(c.catalog, writes, log)
	reevaluator := reevaluate.New(reevaluate.Options{Store: writes, Catalog: c.catalog, Registry: items, MaxBacklog: c.MaxBacklog, Log: log})
	commits := live.NewCommits(reads, find.Invalidate, log)
	hub := live.NewHub(reads, log)

	// Their context outlives ctx: requests in hand need them.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	var workers sync.WaitGroup
	workers.Go(func() { ready.Run(work) })
	workers.Go(func() {
		reports.Run(work, ready, presence.Parts{Totals: func() map[string]int64 { return map[string]int64{state.RateViews: batcher.Appended()} }})
	})
	workers.Go(func() { find.Run(work) })
	workers.Go(func() { reevaluator.Run(work) })
	workers.Go(func() { commits.Run(work) })
	workers.Go(func() { hub.Run(work) })
	workers.Go(batcher.Run)
	var guard *apikeys.Guard
	if c.keys != nil {
		guard = apikeys.NewGuard(c.keys.Keys)
		workers.Go(func() { c.keys.Run(work, func(err error) { keysChanged(c.keys, err, ready, log) }) })
	}

	server := httpapi.New(httpapi.Options{
		Ingest: batcher, Lookup: find, Catalog: c.catalog, Registry: items, Reevaluate: reevaluator,
		Commits: commits, Hub: hub, Reads: reads, Writes: writes, Living: c.MinIdle * 2 / 3, Ready: ready, Metrics: metrics, Guard: guard,
		Log: log,
	}).HTTP()
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	log.Info("serving", zap.Stringer("listen", listener.Addr()), zap.Bool("api_keys", c.keys != nil))
	listening(listener.Addr())

	select {
	case <-ctx.Done():
		log.Info("stopping: finishing the requests in hand", zap.Duration("drain", c.Drain))
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.Drain)
		if err := server.Shutdown(drain); err != nil {
			log.Warn("requests were cut off at the end of the drain time", zap.Error(err))
			_ = server.Close() // the connections go with the process
		}
		cancel()
		err = <-served
	case err = <-served:
	}
	batcher.Stop()
	stop()
	workers.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}

// identity tells the apis apart: the host and the port that this one listens on, which outlive its restarts.
func identity(a net.Addr) string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	_, port, err := net.SplitHostPort(a.String())
	if err != nil {
		return host
	}
	return net.JoinHostPort(host, port)
}

// keysChanged says what has become of the file of API keys. A wrong file does not make the service unready. The service
// goes on with the keys that it has: an outage would be worse than a key that comes or goes late.
func keysChanged(f *apikeys.File, err error, ready *admin.Ready, log *zap.Logger) {
	ready.Warn("api-keys", err)
	if err != nil {
		log.Error("the file of API keys is wrong: the old keys stay in use", zap.Error(err))
		return
	}
	var names []string
	for _, k := range f.Keys() {
		names = append(names, k.Name+" ("+k.Scopes.String()+")")
	}
	log.Info("API keys", zap.Strings("keys", names))
}

// redisCheck tells whether Redis answers and has our number of partitions. The first time that it does, it makes the
// relocators' groups, so that the backlog is known from the first view on. Later the groups are the relocators' concern.
func redisCheck(writes, reads *state.Store) func(context.Context) error {
	made := false
	return func(ctx context.Context) error {
		if err := writes.Agree(ctx); err != nil || made {
			return err
		}
		err := reads.CreateRelocatorGroups(ctx)
		made = err == nil
		return err
	}
}
