package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/relocator/internal/verify"
	"github.com/tierflow/tierflow/relocator/internal/worker"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/logging"
	"github.com/tierflow/tierflow/shared/process"
	"github.com/tierflow/tierflow/shared/state"
)

// Exit codes of verify.
const (
	clean       = 0
	findings    = 1
	couldntLook = process.Settings
)

// verifyTiers compares MySQL with all tiers; findings go to stdout, one a line: kind, cid, level, path, detail, and
// with repair what was done. On a terminal stderr shows how far it is.
func verifyTiers(ctx context.Context, v values, repair, digest bool, stdout, stderr io.Writer) int {
	if v.tiers != nil {
		fmt.Fprintln(stderr, "relocator: verify looks at all tiers: run it without TIERFLOW_TIERS, on a host that reaches them")
		return couldntLook
	}
	store := state.NewStore(state.Options{Redis: v.redis, Keys: state.NewKeys(v.RedisPrefix).Partitioned(v.Partitions), TTL: v.StateTTL, Lease: v.MinIdle})
	m := mover.New(mover.Options{Verify: v.verify, FS: fsys.FS{}})
	sweeper := worker.NewSweeper(worker.Options{
		Store: store, Catalog: v.catalog, Mover: m, WorkerID: v.workerID, Lease: v.MinIdle,
		Metrics: worker.NewMetrics(prometheus.NewRegistry()), Log: logging.New("relocator", v.LogLevel, v.LogFormat),
	})
	progress := newBar(stderr)
	sum, err := verify.Run(ctx, verify.Options{
		Catalog: v.catalog, Store: store, Mover: m, FS: fsys.FS{}, Digest: digest, Repair: repair,
		Sweep: func(ctx context.Context) error { return sweeper.Once(ctx, 0) },
		NewView: func(s state.State) event.View {
			return event.View{EventID: uuid.Must(uuid.NewV7()).String(), ID: s.ID, Count: s.Count, Target: s.Target,
				DBLevel: s.DBLevel, Filename: s.Filename, PostedAt: time.Now()}
		},
		Progress: progress.at,
		Report: func(f verify.Finding, mended string) {
			progress.clear()
			if mended != "" {
				mended = "\t" + mended
			}
			fmt.Fprintf(stdout, "%s%s\n", f, mended)
		},
	})
	progress.clear()
	fmt.Fprintf(stderr, "%d contents and %d names on the tiers were looked at: %d findings, %d in flight and left out\n",
		sum.Items, sum.Files, sum.Findings, sum.InFlight)
	switch {
	case err != nil:
		fmt.Fprintln(stderr, "relocator: verify could not look:", err)
		return couldntLook
	case sum.Findings > 0:
		return findings
	}
	return clean
}
