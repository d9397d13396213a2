package service

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/tier"
	"github.com/tierflow/tierflow/relocator/internal/tierhealth"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/policy"
)

// tierTime is how long a tier may take to answer before the check goes on without it.
const tierTime = 2 * time.Second

// tiersCheck is a readiness check. Its error names every tier that cannot be used, hangs or is suspect, and two levels that
// have one folder. Each tier is looked at by itself, and not a second time while it has not answered. It is probed until it can
// be written to, and not again, because a probe writes. Each look finds out what it can without a write. A tier that can be used,
// but not for everything, is a warning.
//
// What the looks have found is also what reports tells (tiersreport.go).
type tiersCheck struct {
	catalog *catalog.Catalog
	fs      fsys.FS
	only    []string // the levels that this host reaches; nil: all
	health  *tierhealth.Tiers
	warn    func(error)           // called when the warnings have changed; nil: there are none
	tiers   map[string]*tierCheck // by level
	levels  []policy.Level        // as they were last read
	warned  string
	seen    tiersSeen
}

// tierCheck is the check of one tier.
type tierCheck struct {
	began  time.Time
	answer chan tierAnswer        // of the check that is under way; nil: none is
	probed map[string]tier.Traits // by id of the tier; the check that is under way owns it
}

type tierAnswer struct {
	root  *tier.Root // nil where it could not be opened
	usage fsys.Usage // all 0 where it could not be found out
	warn  []string
	err   error
}

func (c *tiersCheck) do(ctx context.Context) error {
	c.beginAll() // before MySQL is asked, which may take long
	errs := []error{c.readLevels(ctx)}
	c.beginAll()
	var roots []*tier.Root
	var warnings []error
	enough, cancel := context.WithTimeout(ctx, tierTime)
	defer cancel()
	for _, l := range c.levels {
		a := c.tiers[l.Name].await(enough, l)
		defer a.root.Close()
		if a.root != nil {
			roots = append(roots, a.root)
		}
		if a.err != nil {
			errs = append(errs, a.err)
		}
		for _, w := range a.warn {
			warnings = append(warnings, fmt.Errorf("%s (%s): %s", l.Name, l.Path, w))
		}
	}
	c.tellWarnings(errors.Join(warnings...))
	distinct := tier.CheckDistinct(roots...)
	c.seen.areDistinct(distinct)
	return errors.Join(append(errs, distinct, c.health.Problems())...)
}

// readLevels reads the levels that this host reaches. Where MySQL does not tell, the last ones stay.
func (c *tiersCheck) readLevels(ctx context.Context) error {
	levels, err := c.catalog.Policy(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range c.only {
		if _, ok := levels.Level(name); !ok {
			errs = append(errs, fmt.Errorf("TIERFLOW_TIERS names %q, and no level has this name", name))
		}
	}
	c.levels = nil
	for _, l := range levels.Levels() {
		if c.only == nil || slices.Contains(c.only, l.Name) {
			c.levels = append(c.levels, l)
		}
	}
	for name, one := range c.tiers {
		if _, ok := levels.Level(name); !ok {
			delete(c.tiers, name)
			one.forget()
		}
	}
	c.seen.keep(c.levels)
	return errors.Join(errs...)
}

func (c *tiersCheck) beginAll() {
	for _, l := range c.levels {
		c.begin(l)
	}
}

// forget closes what the check that is under way opens.
func (c *tierCheck) forget() {
	if answer := c.answer; answer != nil {
		go func() { (<-answer).root.Close() }()
	}
}

// begin begins the check of a tier, unless one is under way.
func (c *tiersCheck) begin(l policy.Level) {
	one := c.tiers[l.Name]
	if one == nil {
		one = &tierCheck{probed: map[string]tier.Traits{}}
		c.tiers[l.Name] = one
	}
	if one.answer != nil {
		return
	}
	answer := make(chan tierAnswer, 1)
	one.began, one.answer = time.Now(), answer
	c.seen.begins(l.Name, one.began)
	go func() {
		a := one.look(c.fs, l)
		c.seen.answers(l.Name, a)
		answer <- a
	}()
}

// await waits for the check that is under way until ctx ends. After that the answer is that the tier is overdue.
func (c *tierCheck) await(ctx context.Context, l policy.Level) tierAnswer {
	var a tierAnswer
	select {
	case a = <-c.answer:
	case <-ctx.Done():
		select {
		case a = <-c.answer:
		default:
			return tierAnswer{err: fmt.Errorf("level %s (%s) is overdue: it has not answered since %s: look at the disk and the kernel's log",
				l.Name, l.Path, c.began.UTC().Format(time.RFC3339))}
		}
	}
	c.answer = nil
	return a
}

func (c *tierCheck) look(fs fsys.FS, l policy.Level) tierAnswer {
	root, err := tier.Open(fs, l)
	if err != nil {
		return tierAnswer{err: err}
	}
	usage, err := root.Usage()
	if err != nil {
		return tierAnswer{root: root, err: err}
	}
	if err := root.CheckWritable(); err != nil {
		return tierAnswer{root: root, usage: usage, err: err}
	}
	traits, probed := c.probed[root.ID]
	if !probed {
		if traits, err = probe(root); err != nil {
			return tierAnswer{root: root, usage: usage, err: err}
		}
		c.probed[root.ID] = traits
	}
	return tierAnswer{root: root, usage: usage, warn: traits.Warnings()}
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
