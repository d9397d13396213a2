package service

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/tier"
	"github.com/tierflow/tierflow/shared/catalog"
)

// tiersCheck is a readiness check. Its error names every tier that cannot be used or is suspect, and two levels that have
// one folder. Each tier is probed until it can be written to, and not again, because a probe writes.
type tiersCheck struct {
	catalog  *catalog.Catalog
	fs       fsys.FS
	only     []string // the levels that this host reaches; nil: all
	suspects func() error
	probed   map[string]bool // by id of the tier
}

func (c *tiersCheck) do(ctx context.Context) error {
	policy, err := c.catalog.Policy(ctx)
	if err != nil {
		return err
	}
	var errs []error
	var roots []*tier.Root
	for _, name := range c.only {
		if _, ok := policy.Level(name); !ok {
			errs = append(errs, fmt.Errorf("TIERFLOW_TIERS names %q, and no level has this name", name))
		}
	}
	for _, l := range policy.Levels() {
		if c.only != nil && !slices.Contains(c.only, l.Name) {
			continue
		}
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
