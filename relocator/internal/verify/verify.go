// Package verify compares MySQL with the tiers and repairs what is safe to repair. It reads rows, states and files. It
// writes only with Options.Repair, and only through the caller's sweep and two streams: it reports strays to the releaser
// and appends view events.
//
// However many items there are, it holds only a page of rows, a part of a folder's names and a batch of suspicions in
// memory.
//
// It may run beside a working pipeline. What the first check finds is a suspicion. A suspicion becomes a finding where a
// second check finds it again. After that check, nothing of the item may be in flight, its row must be unchanged, and no
// newer event may have come. That is enough: a move or a release changes files only while its entry is not settled. An entry
// cannot be settled between the checks without a higher generation of the row. The newest event cannot be settled
// without a commit or a newer event.
package verify

import (
	"context"
	"fmt"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/relocator/internal/tier"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
)

// Kind is the kind of a finding.
type Kind string

// The kinds, and what a repair does about each. docs/moves.md has the same table.
const (
	// Missing: the row's file is not on its level. A repair leaves it.
	Missing Kind = "missing"
	// Orphaned: no row names the file. A repair leaves it.
	Orphaned Kind = "orphaned"
	// Duplicate: a copy on a level that the row does not name. The releaser removes it, unless the row's own file is
	// missing.
	Duplicate Kind = "duplicate"
	// LeftOver: an entry of .tierflow/tmp or released that no attempt uses. A repair sweeps it.
	LeftOver Kind = "left-over"
	// Differing: size, type or digest differs from the row's last copy, or the file cannot be read. A repair leaves it.
	Differing Kind = "differing"
	// Unsettled: the newest event, or the pin, calls for another level, and no move is under way. A repair appends the
	// event again, unless it is a dead letter.
	Unsettled Kind = "unsettled"
)

// Finding is one disagreement between MySQL and a tier.
type Finding struct {
	Kind   Kind
	ID     item.ID // 0 where it is about no item
	Level  string
	Path   string // relative to the root of the tier
	Detail string
}

func (f Finding) String() string {
	cid := "-"
	if f.ID != 0 {
		cid = f.ID.String()
	}
	return fmt.Sprintf("%s\t%s\t%s\t%q\t%s", f.Kind, cid, f.Level, f.Path, f.Detail)
}

// The stages of a run, in their order.
const (
	StageItems = "items"
	StageNames = "names on the tiers"
)

// Options of a run. All but Repair, Digest and Progress are required.
type Options struct {
	Catalog  *catalog.Catalog
	Store    *state.Store
	Mover    *mover.Mover
	FS       fsys.FS
	Digest   bool // read every file that has a digest in its row
	Repair   bool
	Sweep    func(ctx context.Context) error       // removes left-overs; for Repair
	NewView  func(s state.State) event.View        // makes a new event from the newest one; for Repair
	Report   func(f Finding, action string)        // called for each finding; action says what a repair did, or why nothing
	Progress func(stage string, done, total int64) // total is an estimate
}

// Summary counts what a run has checked.
type Summary struct {
	Items, Files, Findings, InFlight int64
}

// page is how many rows are read, and how many suspicions are checked again, at a time.
const page = 1000

type run struct {
	o        Options
	policy   policy.Policy
	roots    map[string]*tier.Root
	suspects []Finding
	sum      Summary
	total    int64
}

// Run compares all rows with all tiers. With an error it could not compare everything, and the findings are not complete.
func Run(ctx context.Context, o Options) (Summary, error) {
	policy, err := o.Catalog.Policy(ctx)
	if err != nil {
		return Summary{}, err
	}
	if o.Progress == nil {
		o.Progress = func(string, int64, int64) {}
	}
	r := &run{o: o, policy: policy, roots: map[string]*tier.Root{}}
	var open []*tier.Root
	for _, l := range policy.Levels() {
		root, err := tier.Open(o.FS, l)
		if err != nil {
			return Summary{}, err
		}
		defer root.Close()
		r.roots[l.Name], open = root, append(open, root)
	}
	if err := tier.CheckDistinct(open...); err != nil {
		return Summary{}, err
	}
	if err := o.Catalog.DB().QueryRowContext(ctx, "SELECT COUNT(*) FROM contents").Scan(&r.total); err != nil {
		return Summary{}, catalog.Wrap("count items", "", err)
	}
	err = r.rows(ctx)
	for _, l := range policy.Levels() {
		if err == nil {
			err = r.walk(ctx, r.roots[l.Name], r.roots[l.Name].Dir, "")
		}
		if err == nil {
			err = r.leftOvers(ctx, r.roots[l.Name])
		}
	}
	if err == nil {
		err = r.confirm(ctx)
	}
	return r.sum, err
}

// suspect adds suspicions, and confirms a batch of them.
func (r *run) suspect(ctx context.Context, fs ...Finding) error {
	r.suspects = append(r.suspects, fs...)
	if len(r.suspects) < page {
		return nil
	}
	return r.confirm(ctx)
}
