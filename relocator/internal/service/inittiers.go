package service

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/tier"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/process"
)

// initTiers is the verb init-tiers: it makes the roots and identities of the tiers, and writes the ids of the identities to
// MySQL.
func initTiers(ctx context.Context, c Config, stdout, stderr io.Writer) int {
	levels, err := c.catalog.Policy(ctx)
	if err != nil {
		fmt.Fprintln(stderr, "relocator: init-tiers:", err)
		return process.Failed
	}
	code := process.OK
	for _, l := range levels.Levels() {
		if c.tiers != nil && !slices.Contains(c.tiers, l.Name) {
			continue
		}
		id, warnings, err := initTier(l)
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
		for _, w := range warnings {
			fmt.Fprintf(stderr, "relocator: init-tiers: warning: %s (%s): %s\n", l.Name, l.Path, w)
		}
	}
	return code
}

// initTier makes what the level's tier lacks, and probes it. A tier that cannot be used gets no id in MySQL.
func initTier(l policy.Level) (id string, warnings []string, err error) {
	if id, err = tier.Init(fsys.FS{}, l, time.Now()); err != nil {
		return "", nil, err
	}
	l.TierID = id
	root, err := tier.Open(fsys.FS{}, l)
	if err != nil {
		return "", nil, err
	}
	defer root.Close()
	traits, err := probe(root)
	return id, traits.Warnings(), err
}
