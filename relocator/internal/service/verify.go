package service

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/relocator/internal/sweep"
	"github.com/tierflow/tierflow/relocator/internal/verify"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/logging"
	"github.com/tierflow/tierflow/shared/process"
	"github.com/tierflow/tierflow/shared/state"
)

// Exit codes of verify.
const (
	clean       = 0
	findings    = 1
	notCompared = process.Settings
)

// verifyTiers is the verb verify: it compares MySQL with all tiers. Findings go to stdout, one a line: kind, cid, level,
// path, detail, and with repair what was done. On a terminal, stderr shows the progress.
func verifyTiers(ctx context.Context, c Config, repair, digest bool, stdout, stderr io.Writer) int {
	if c.tiers != nil {
		fmt.Fprintln(stderr, "relocator: verify compares all tiers: run it without TIERFLOW_TIERS, on a host that reaches them")
		return notCompared
	}
	store := c.store()
	m := mover.New(mover.Options{Verify: c.verify, FS: fsys.FS{}})
	sweeper := sweep.New(sweep.Options{Store: store, Catalog: c.catalog, Mover: m, Lease: c.MinIdle,
		Log: logging.New("relocator", c.LogLevel, c.LogFormat)})
	progress := newBar(stderr)
	sum, err := verify.Run(ctx, verify.Options{
		Catalog: c.catalog, Store: store, Mover: m, FS: fsys.FS{}, Digest: digest, Repair: repair,
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
	fmt.Fprintf(stderr, "compared %d items and %d names on the tiers: %d findings, %d in flight and left out\n",
		sum.Items, sum.Files, sum.Findings, sum.InFlight)
	switch {
	case err != nil:
		fmt.Fprintln(stderr, "relocator: verify could not compare:", err)
		return notCompared
	case sum.Findings > 0:
		return findings
	}
	return clean
}
