// Package verify compares MySQL with the tiers, and mends what is safe.
//
// It holds a page of rows, a part of a folder's names and a batch of suspicions at a time, however many there are.
//
// It may run beside a working pipeline. What looks wrong at the first look is only suspected: it is looked at again, and
// counts where nothing of that content is in flight after that look, and by then its row has not changed and no newer
// event has come. That suffices, because whatever a move or a release does to files is done while its entry is unsettled,
// in a stage that comes no earlier than where it was seen last; it cannot have been settled in between without raising
// the row's generation, and the newest event not without a commit or a newer one.
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

// Kind of a finding.
type Kind string

// Kinds, and what --repair does about each.
const (
	Missing   Kind = "missing"   // the row's file is not where the row says: left
	Orphaned  Kind = "orphaned"  // no row names the file: left
	Duplicate Kind = "duplicate" // a copy on a level that the row does not name: the releaser clears it, unless the row's own is missing
	LeftOver  Kind = "left-over" // in .tierflow/tmp or released, of no living attempt: swept
	Differing Kind = "differing" // size, type or digest is not that of the row's last copy, or it cannot be read: left
	Unsettled Kind = "unsettled" // the newest event, or the pin, wants another level, and nobody is at it: appended once more, unless it is in dead
)

// Finding is one disagreement.
type Finding struct {
	Kind   Kind
	ID     item.ID // 0 where no content is known
	Level  string
	Path   string
	Detail string
}

func (f Finding) String() string {
	cid := "-"
	if f.ID != 0 {
		cid = f.ID.String()
	}
	return fmt.Sprintf("%s\t%s\t%s\t%q\t%s", f.Kind, cid, f.Level, f.Path, f.Detail)
}

// Stages of a run, in their order.
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
	Digest   bool // read every file
	Repair   bool
	Sweep    func(ctx context.Context) error       // clears left-overs; for Repair
	NewView  func(s state.State) event.View        // the newest event once more; for Repair
	Report   func(f Finding, mended string)        // called for each finding; mended says what was done or why not
	Progress func(stage string, done, total int64) // total is of about so many
}

// Summary is what a run has looked at.
type Summary struct {
	Items, Files, Findings, InFlight int64
}

// page is how many rows are read, and how many suspicions are looked at again, together.
const page = 1000

type run struct {
	o        Options
	policy   policy.Policy
	roots    map[string]*tier.Root
	suspects []Finding
	sum      Summary
	total    int64
}

// Run compares everything. An error means that it could not look.
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
		return Summary{}, catalog.Wrap("count", "contents", err)
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

func (r *run) suspect(ctx context.Context, fs ...Finding) error {
	r.suspects = append(r.suspects, fs...)
	if len(r.suspects) < page {
		return nil
	}
	return r.confirm(ctx)
}
