package service

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

// initTiers is the verb init-tiers: it makes the roots and identities of the tiers, and writes the ids of the identities to
// MySQL.
func initTiers(ctx context.Context, c Config, stdout, stderr io.Writer) int {
	policy, err := c.catalog.Policy(ctx)
	if err != nil {
		fmt.Fprintln(stderr, "relocator: init-tiers:", err)
		return process.Failed
	}
	code := process.OK
	for _, l := range policy.Levels() {
		if c.tiers != nil && !slices.Contains(c.tiers, l.Name) {
			continue
		}
		id, err := tier.Init(fsys.FS{}, l, time.Now())
		if err == nil && l.TierID == "" {
			// Only where no id is set: another init-tiers may have been faster, and nothing here changes the id of a tier.
			_, err = c.catalog.DB().ExecContext(ctx,
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
