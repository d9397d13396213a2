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
// one folder. Each tier is probed until it can be written to, and not again, because a probe writes. A tier that can be
// used, but not for everything, is a warning.
type tiersCheck struct {
	catalog  *catalog.Catalog
	fs       fsys.FS
	only     []string // the levels that this host reaches; nil: all
	suspects func() error
	warn     func(error)            // called when the warnings have changed; nil: there are none
	probed   map[string]tier.Traits // by id of the tier
	warned   string
}

func (c *tiersCheck) do(ctx context.Context) error {
	policy, err := c.catalog.Policy(ctx)
	if err != nil {
		return err
	}
	var errs []error
	var roots []*tier.Root
	var warnings []error
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
		traits, probed := c.probed[root.ID]
		if !probed {
			if traits, err = probe(root); err != nil {
				errs = append(errs, err)
				continue
			}
			if c.probed == nil {
				c.probed = map[string]tier.Traits{}
			}
			c.probed[root.ID] = traits
		}
		for _, w := range traits.Warnings() {
			warnings = append(warnings, fmt.Errorf("%s (%s): %s", l.Name, l.Path, w))
		}
	}
	c.tellWarnings(errors.Join(warnings...))
	return errors.Join(append(errs, tier.CheckDistinct(roots...), c.suspects())...)
}

// probe tests whether the tier can be written to, and finds out its traits.
func probe(root *tier.Root) (tier.Traits, error) {
	if err := root.Probe(); err != nil {
		return tier.Traits{}, err
	}
	return root.Traits()
}

// tellWarnings passes on warnings that have changed; nil: there are none.
func (c *tiersCheck) tellWarnings(err error) {
	now := ""
	if err != nil {
		now = err.Error()
	}
	if now != c.warned {
		c.warned = now
		c.warn(err)
	}
}
