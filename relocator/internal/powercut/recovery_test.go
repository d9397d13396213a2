package powercut_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
)

// check mounts the disks as the cut left them and checks them. It then recovers twice and checks them after each
// recovery. sweepFirst: the first sweep comes before the entries; else it comes after them.
func (r *run) check(c *cut, p state, sweepFirst bool) (violations []string, err error) {
	images := make([]string, len(c.images))
	for i, image := range c.images {
		if images[i], err = lab.copy(image); err != nil {
			return nil, err
		}
	}
	defer remove(images)
	m, err := boot(r.route, images)
	if err != nil {
		return []string{fmt.Sprintf("%s: %v", r.at(c, p), err)}, nil
	}
	defer m.halt()
	bad := func(format string, args ...any) {
		violations = append(violations, r.at(c, p)+": "+fmt.Sprintf(format, args...))
	}

	// Before the recovery.
	var left [2]map[string]string
	for t := range left {
		if left[t], err = read(r.place(t)); err != nil {
			bad("%v", err)
			return violations, nil
		}
	}
	exempt := [2]bool{p.uploaders, p.operators}
	if !maps.Equal(left[p.row], r.want) && !exempt[p.row] {
		bad("G1: what the row names is %s", r.differs(left[p.row]))
	}
	if other := left[1-p.row]; len(other) > 0 && !maps.Equal(other, r.want) && !exempt[1-p.row] {
		bad("a partial copy is visible on the other tier: %s", r.differs(other))
	}
	if p.settled() {
		if len(left[1-p.row]) > 0 {
			bad("G2: everything is settled, and there are two copies")
		}
		if names := r.scratch("released"); len(names) > 0 {
			bad("G2: everything is settled, and %v are left", names)
		}
	}

	// The second recovery gets all entries that were not settled at the cut again, as if every ack had been lost.
	rec := &recovery{run: r, mover: mover.New(mover.Options{}), token: "again", state: p}
	for range 2 {
		if err := rec.settle(sweepFirst); err != nil {
			bad("recovery: %v", err)
			return violations, nil
		}
		for t := range left {
			got, err := read(r.place(t))
			damaged := p.uploaders && !p.relocated && !p.history && maps.Equal(got, left[0])
			switch {
			case err != nil:
				bad("after the recovery: %v", err)
			case t != rec.state.row:
				if len(got) > 0 && !(rec.deadLetter && exempt[t]) {
					bad("G2: there is a second copy after the recovery")
				}
			case !damaged && !maps.Equal(got, r.want):
				bad("after the recovery what the row names is %s", r.differs(got))
			}
		}
		if rec.state.row != p.want && !rec.deadLetter {
			bad("G2: the recovery left it on tier %d", rec.state.row)
		}
		if names := r.scratch("tmp", "released"); len(names) > 0 {
			bad("G2: the recovery left %v", names)
		}
		rec.state.view, rec.state.relocated, rec.state.clear = p.view, p.relocated, p.clear
	}
	return violations, nil
}

// differs says how a copy differs from the item.
func (r *run) differs(got map[string]string) string {
	if len(got) == 0 {
		return "missing"
	}
	var diff []string
	for name, what := range r.want {
		if got[name] != what {
			diff = append(diff, fmt.Sprintf("%q is %q, was %q", name, got[name], what))
		}
	}
	for name, what := range got {
		if _, ok := r.want[name]; !ok {
			diff = append(diff, fmt.Sprintf("%q is %q, was not there", name, what))
		}
	}
	slices.Sort(diff)
	return strings.Join(diff, "; ")
}

// at describes a cut.
func (r *run) at(c *cut, p state) string {
	return fmt.Sprintf("%s: cut after %s, before %s (%s)", r.scenario, c.after, c.before, p)
}

// scratch lists the entries of folders in .tierflow on both tiers.
func (r *run) scratch(folders ...string) (names []string) {
	for _, l := range r.levels {
		for _, f := range folders {
			es, err := os.ReadDir(filepath.Join(l.Path, item.MetaFolder, f))
			if err != nil {
				names = append(names, err.Error())
			}
			for _, e := range es {
				names = append(names, l.Name+"/"+f+"/"+e.Name())
			}
		}
	}
	return names
}

// recovery does what relocator and committer do after a restart.
type recovery struct {
	run        *run
	mover      *mover.Mover
	state      state
	token      string
	count      int
	deadLetter bool // the view event became a dead letter: the uploader's or the operator's files are damaged
}

// settle delivers the entries that are not settled, until all are.
func (rec *recovery) settle(sweepFirst bool) error {
	ctx := context.Background()
	if sweepFirst {
		if err := rec.sweep(ctx); err != nil {
			return err
		}
	}
	for range 10 {
		if err := rec.deliver(ctx); err != nil {
			return err
		}
		if err := rec.sweep(ctx); err != nil {
			return err
		}
		if rec.state.settled() {
			return nil
		}
	}
	return errors.New("the entries do not settle")
}

func (rec *recovery) deliver(ctx context.Context) error {
	p := &rec.state
	if p.view {
		if err := rec.relocate(ctx); err != nil {
			return err
		}
	}
	if p.relocated {
		*p = p.commit()
	}
	for t, unsettled := range p.clear {
		if !unsettled {
			continue
		}
		out, err := rec.mover.Release(ctx, mover.ReleaseRequest{ID: id, Token: rec.next(), Filename: filename,
			Tier: rec.run.levels[t], Fence: p.fence(t)})
		if err != nil {
			return err
		}
		p.clear[t] = out == mover.RetryLater
	}
	return nil
}

// relocate is steps 3 to 5 for the newest event.
func (rec *recovery) relocate(ctx context.Context) error {
	p := &rec.state
	p.view = false
	if p.row == p.want {
		return nil
	}
	looked := p.generation
	made, err := rec.mover.Make(ctx, rec.run.request(p.row, rec.next()))
	damaged := p.uploaders && (fault.Is(err, fault.MissingFile) || fault.Is(err, fault.Conflict)) ||
		p.operators && fault.Is(err, fault.Conflict)
	if damaged && made == nil {
		rec.deadLetter = true
		return nil
	}
	if err != nil {
		return err
	}
	p.relocated, p.lookedUp = true, looked
	return made.Discard()
}

// sweep is step 9 for both tiers. It sweeps entries of any age.
func (rec *recovery) sweep(ctx context.Context) error {
	for t, l := range rec.run.levels {
		report, err := rec.mover.Sweep(ctx, l, -time.Hour, func(item.ID, string) bool { return false },
			func(context.Context, item.ID, string) error {
				rec.state.clear[t] = true
				return nil
			})
		if err != nil {
			return err
		}
		if len(report.Unknown) > 0 {
			return fmt.Errorf("the sweep does not know the names %v", report.Unknown)
		}
	}
	return nil
}

func (rec *recovery) next() string {
	rec.count++
	return fmt.Sprintf("%s-%d", rec.token, rec.count)
}
