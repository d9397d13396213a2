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
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/process"
	"github.com/tierflow/tierflow/shared/state"
)

// Exit codes of verify.
const (
	clean       = 0
	findings    = 1
	notCompared = process.Settings
	unseen      = 3 // no findings, but a tier was not looked at
)

// verifyOptions are the flags of verify.
type verifyOptions struct {
	Repair bool `help:"Mend what is safe, and say what is left and why."`
	Digest bool `help:"Read every file and compare its bytes with the digest of its last copy."`
	BySize bool `name:"by-size" help:"With --repair, correct a row without a digest by its size: where exactly one other tier has a file of this name and size."`
}

// verifyTiers is the verb verify: it compares MySQL with all tiers. Findings go to stdout, one a line: kind, cid, level,
// path, detail, and with repair what was done. On a terminal, stderr shows the progress.
func verifyTiers(ctx context.Context, c Config, o verifyOptions, stdout, stderr io.Writer) int {
	if c.tiers != nil {
		fmt.Fprintln(stderr, "relocator: verify compares all tiers: run it without TIERFLOW_TIERS, on a host that reaches them")
		return notCompared
	}
	if o.BySize && !o.Repair {
		fmt.Fprintln(stderr, "relocator: --by-size says what --repair goes by: give both")
		return notCompared
	}
	store := c.store()
	log := logging.New("relocator", c.LogLevel, c.LogFormat)
	progress := newBar(stderr)
	sum, err := verify.Run(ctx, verify.Options{
		Catalog: c.catalog, Store: store, Lease: c.MinIdle, FS: fsys.FS{}, Digest: o.Digest, Repair: o.Repair, BySize: o.BySize,
		Sweep: func(ctx context.Context, m *mover.Mover, l policy.Level) error {
			return sweep.New(sweep.Options{Store: store, Catalog: c.catalog, Mover: m, Lease: c.MinIdle, Log: log}).Tier(ctx, l, 0)
		},
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
	for _, u := range sum.Unseen {
		fmt.Fprintf(stderr, "the tier of level %s was not looked at, or not to its end: %s\n", u.Level, u.Why)
	}
	switch {
	case err != nil:
		fmt.Fprintln(stderr, "relocator: verify could not compare:", err)
		return notCompared
	case sum.Findings > 0:
		return findings
	case len(sum.Unseen) > 0:
		return unseen
	}
	return clean
}
