package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/tier"
	"github.com/tierflow/tierflow/shared/process"
)

// initTiers makes roots and identities, and writes the identities' ids to MySQL.
func initTiers(ctx context.Context, v values, stdout, stderr io.Writer) int {
	policy, err := v.catalog.Policy(ctx)
	if err != nil {
		fmt.Fprintln(stderr, "relocator: init-tiers:", err)
		return process.Failed
	}
	code := process.OK
	for _, l := range policy.Levels() {
		if v.tiers != nil && !slices.Contains(v.tiers, l.Name) {
			continue
		}
		id, err := tier.Init(fsys.FS{}, l, time.Now())
		if err == nil && l.TierID == "" {
			// Only where none is set: another init-tiers may have been faster, and a tier never changes its id here.
			_, err = v.catalog.DB().ExecContext(ctx,
				"UPDATE level SET tier_id = ? WHERE content_level = ? AND tier_id = ''", id, l.Name)
		}
		if err != nil {
			fmt.Fprintf(stderr, "relocator: init-tiers: %v\n", err)
			code = process.Failed
			continue
		}
		fmt.Fprintf(stdout, "%s\t%s\t%s\n", l.Name, l.Path, id)
	}
	return code
}
