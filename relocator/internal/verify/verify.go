// Package verify compares MySQL with the tiers and repairs what is safe to repair. It reads rows, states and files. It
// writes only with Options.Repair, and only through the caller's sweep and three streams: it reports strays to the releaser,
// has the committer correct rows, and appends view events.
//
// A tier that is away, fails or hangs is left out, and the others are compared. The summary names it.
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
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/relocator/internal/tier"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
)

// Kind is the kind of a finding.
type Kind string

// The kinds, and what a repair does about each. docs/moves.md has the same table.
const (
	// Missing: the row's file is not on its level. Where exactly one other tier has it, a repair has the committer correct the
	// row.
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
	detail := plain(f.Detail)
	if ascii := strconv.QuoteToASCII(f.Path); ascii != strconv.Quote(f.Path) {
		detail += "; in ASCII its name is " + ascii
	}
	return fmt.Sprintf("%s\t%s\t%s\t%s\t%s", f.Kind, cid, f.Level, quote(f.Path), detail)
}

// quote is strconv.Quote, but it also escapes combining marks. So two names that look alike are quoted differently: one has
// a letter with an accent, the other the letter and then the accent. strconv.Unquote gives the name.
func quote(s string) string { return escape(strconv.Quote(s), false) }

// plain escapes what would break the line, or would not be seen.
func plain(s string) string { return escape(s, true) }

func escape(s string, control bool) string {
	var b strings.Builder
	for _, c := range s {
		if unicode.Is(unicode.M, c) || control && !strconv.IsPrint(c) {
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(c), "'"))
		} else {
			b.WriteRune(c)
		}
	}
	return b.String()
}

// The stages of a run, in their order.
const (
	StageItems = "items"
	StageNames = "names on the tiers"
)

// Options of a run. Catalog, Store, Lease, Sweep, NewView and Report are required.
type Options struct {
	Catalog *catalog.Catalog
	Store   *state.Store
	Lease   time.Duration // of locks
	FS      fsys.FS
	Digest  bool // read every file that has a digest in its row
	Repair  bool
	BySize  bool          // for Repair: where a row has no digest, its size says whether a file is the item's
	Hangs   time.Duration // how long one call of the kernel may take before its tier is left out; 30 s where 0

	Sweep    func(ctx context.Context, m *mover.Mover, l policy.Level) error // removes a tier's left-overs; for Repair
	NewView  func(s state.State) event.View                                  // makes a new event from the newest one; for Repair
	Report   func(f Finding, action string)                                  // called for each finding; action says what a repair did, or why nothing
	Progress func(stage string, done, total int64)                           // total is an estimate
}

// Summary counts what a run has checked, and names the tiers that it has not looked at.
type Summary struct {
	Items, Files, Findings, InFlight int64
	Unseen                           []Unseen
}

// page is how many rows are read, and how many suspicions are checked again, at a time.
const page = 1000

type run struct {
	o        Options
	fs       fsys.FS // the calls that it makes are watched
	mover    *mover.Mover
	watch    watch
	hung     map[string]bool // levels whose tiers may still be at work on a call
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
	if o.Hangs == 0 {
		o.Hangs = hangs
	}
	r := &run{o: o, policy: policy, roots: map[string]*tier.Root{}, hung: map[string]bool{}}
	r.fs = r.watch.over(o.FS)
	r.mover = mover.New(mover.Options{FS: r.fs})
	if err := r.open(ctx); err != nil {
		return Summary{}, err
	}
	defer r.close()
	if err := o.Catalog.DB().QueryRowContext(ctx, "SELECT COUNT(*) FROM contents").Scan(&r.total); err != nil {
		return Summary{}, catalog.Wrap("count items", "", err)
	}
	err = r.rows(ctx)
	for _, l := range policy.Levels() {
		root := r.roots[l.Name]
		if err == nil && root != nil {
			err = r.walk(ctx, root, root.Dir, "")
		}
		if err == nil && root != nil {
			err = r.leftOvers(ctx, root)
		}
		if errors.Is(err, errNotLooked) {
			err = nil // the summary names the tier
		}
	}
	if err == nil {
		err = r.confirm(ctx)
	}
	if err == nil && len(r.sum.Unseen) == len(policy.Levels()) {
		err = fault.New(fault.TierRefused, "compare", "", errors.New("no tier could be looked at"))
	}
	return r.sum, err
}

// open opens all tiers that can be looked at.
func (r *run) open(ctx context.Context) error {
	var open []*tier.Root
	for _, l := range r.policy.Levels() {
		var root *tier.Root
		err := r.ask(ctx, l.Name, func() (err error) {
			root, err = tier.Open(r.fs, l)
			return err
		})
		switch {
		case err == nil:
			r.roots[l.Name], open = root, append(open, root)
		case !errors.Is(err, errNotLooked):
			return err
		}
	}
	return tier.CheckDistinct(open...)
}

// close closes the tiers. One that hangs stays open: whatever still works on it must not use the descriptors of other files.
func (r *run) close() {
	for level, root := range r.roots {
		if !r.hung[level] {
			root.Close()
		}
	}
}

// suspect adds suspicions, and confirms a batch of them.
func (r *run) suspect(ctx context.Context, fs ...Finding) error {
	r.suspects = append(r.suspects, fs...)
	if len(r.suspects) < page {
		return nil
	}
	return r.confirm(ctx)
}
