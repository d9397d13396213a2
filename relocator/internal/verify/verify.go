// Package verify compares MySQL with the tiers, and mends what is safe. It may run beside a working pipeline: what
// looks wrong is looked at again, and counts only where nothing of that content is in flight.
package verify

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/relocator/internal/tier"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/content"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
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
	Differing Kind = "differing" // size, type or digest is not that of the row's last copy: left
	Unsettled Kind = "unsettled" // the newest event wants another level, and nobody is at it: appended once more
)

// Finding is one disagreement.
type Finding struct {
	Kind   Kind
	ID     content.ID // 0 where no content is known
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

// Options of a run. All but Repair, Digest are required.
type Options struct {
	Catalog *catalog.Catalog
	Store   *state.Store
	Mover   *mover.Mover
	FS      fsys.FS
	Digest  bool // read every file
	Repair  bool
	Sweep   func(ctx context.Context) error // clears left-overs; for Repair
	NewView func(s state.State) event.View  // the newest event once more; for Repair
	Report  func(f Finding, mended string)  // called for each finding; mended says what was done or why not
}

// Summary is what a run has looked at.
type Summary struct {
	Contents, Files, Findings, InFlight int
}

// batch is how many suspicions are looked at again together.
const batch = 500

type run struct {
	o        Options
	policy   content.Policy
	roots    map[string]*tier.Root
	suspects []Finding
	sum      Summary
	swept    bool
}

// Run compares everything. An error means that it could not look.
func Run(ctx context.Context, o Options) (Summary, error) {
	policy, err := o.Catalog.Policy(ctx)
	if err != nil {
		return Summary{}, err
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
	err = o.Catalog.Each(ctx, func(row catalog.Row) error {
		r.sum.Contents++
		fs, err := r.look(ctx, row)
		if err != nil {
			return err
		}
		return r.suspect(ctx, fs...)
	})
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
	if len(r.suspects) < batch {
		return nil
	}
	return r.confirm(ctx)
}

// look compares one row with all tiers, and with its state in Redis.
func (r *run) look(ctx context.Context, row catalog.Row) ([]Finding, error) {
	if err := content.CheckFilename(row.Filename); err != nil {
		return []Finding{{Missing, row.ID, row.Level, row.Filename, err.Error()}}, nil
	}
	var fs []Finding
	for _, l := range r.policy.Levels() {
		st, err := r.stat(r.roots[l.Name], row.Filename)
		there := err == nil
		switch {
		case err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR):
			return nil, err
		case l.Name != row.Level:
			if there {
				fs = append(fs, Finding{Duplicate, row.ID, l.Name, row.Filename, "the row names level " + row.Level})
			}
		case !there:
			fs = append(fs, Finding{Missing, row.ID, l.Name, row.Filename, "there is no such file"})
		default:
			detail, err := r.differs(ctx, row, r.roots[l.Name], &st)
			if err != nil {
				return nil, err
			}
			if detail != "" {
				fs = append(fs, Finding{Differing, row.ID, l.Name, row.Filename, detail})
			}
		}
	}
	st, ok, err := r.o.Store.Get(ctx, row.ID)
	if err != nil {
		return nil, err
	}
	if ok && row.Pinned == "" && r.policy.Target(st.Count).Name != row.Level {
		fs = append(fs, Finding{Unsettled, row.ID, row.Level, row.Filename,
			fmt.Sprintf("the newest count %d calls for %s", st.Count, r.policy.Target(st.Count).Name)})
	}
	return fs, nil
}

func (r *run) differs(ctx context.Context, row catalog.Row, root *tier.Root, st *unix.Stat_t) (string, error) {
	switch {
	case !fsys.IsFile(st) && !fsys.IsDir(st):
		return "it is " + fsys.Kind(st), nil
	case fsys.IsFile(st) && row.SizeBytes > 0 && st.Size != row.SizeBytes:
		return fmt.Sprintf("it has %d bytes, its last copy had %d", st.Size, row.SizeBytes), nil
	case !r.o.Digest || row.Digest == "":
		return "", nil
	}
	digest, err := r.o.Mover.Digest(ctx, root, row.Filename)
	switch fault.KindOf(err) {
	case "":
	case fault.MissingFile, fault.Unsupported, fault.Suspect:
		return err.Error(), nil // of this content, not of the run
	default:
		return "", err
	}
	if digest != row.Digest {
		return fmt.Sprintf("its bytes have %s, its last copy had %s", digest, row.Digest), nil
	}
	return "", nil
}

// stat looks a content's name up below the root, without following anything.
func (r *run) stat(root *tier.Root, name string) (unix.Stat_t, error) {
	dir, base := path.Split(name)
	if dir == "" {
		return r.o.FS.Lstat(fsys.ReadDigest, root.Dir, base)
	}
	d, _, err := r.o.FS.OpenDir(fsys.ReadDigest, root.Dir, strings.TrimSuffix(dir, "/"))
	if err != nil {
		return unix.Stat_t{}, err
	}
	defer d.Close()
	return r.o.FS.Lstat(fsys.ReadDigest, d, base)
}

// walk looks for files that no row names. A name that a row has is a content, whatever lies below it.
func (r *run) walk(ctx context.Context, root *tier.Root, dir *fsys.File, prefix string) error {
	names, err := r.o.FS.List(fsys.ReadDigest, dir)
	if err != nil {
		return err
	}
	for len(names) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := names[:min(len(names), 1000)]
		names = names[len(part):]
		paths := make([]string, 0, len(part))
		for _, n := range part {
			if prefix != "" || n != content.MetaFolder {
				paths = append(paths, prefix+n)
			}
		}
		known, err := r.named(ctx, paths)
		if err != nil {
			return err
		}
		for _, p := range paths {
			r.sum.Files++
			if known[p] {
				continue
			}
			st, err := r.o.FS.Lstat(fsys.ReadDigest, dir, path.Base(p))
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			if err != nil {
				return err
			}
			if !fsys.IsDir(&st) {
				if err := r.suspect(ctx, Finding{Orphaned, 0, root.Level.Name, p, "no row names it"}); err != nil {
					return err
				}
				continue
			}
			sub, _, err := r.o.FS.OpenDir(fsys.ReadDigest, dir, path.Base(p))
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			if err != nil {
				return err
			}
			err = r.walk(ctx, root, sub, p+"/")
			sub.Close()
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// named tells which of the paths are filenames of rows.
func (r *run) named(ctx context.Context, paths []string) (map[string]bool, error) {
	known := map[string]bool{}
	var args []any
	for _, p := range paths {
		if content.CheckFilename(p) == nil { // no row can have another one
			args = append(args, p)
		}
	}
	if len(args) == 0 {
		return known, nil
	}
	rows, err := r.o.Catalog.DB().QueryContext(ctx,
		"SELECT filename FROM contents WHERE filename IN (?"+strings.Repeat(", ?", len(args)-1)+")", args...)
	if err != nil {
		return nil, catalog.Wrap("look up filenames", "", err)
	}
	defer rows.Close()
	for rows.Next() {
		var p string
		if err := rows.Scan(&p); err != nil {
			return nil, catalog.Wrap("look up filenames", "", err)
		}
		known[p] = true
	}
	return known, catalog.Wrap("look up filenames", "", rows.Err())
}

// leftOvers lists what attempts have left behind.
func (r *run) leftOvers(ctx context.Context, root *tier.Root) error {
	for sub, dir := range map[string]*fsys.File{"tmp": root.Tmp, "released": root.Released} {
		names, err := r.o.FS.List(fsys.ReadDigest, dir)
		if err != nil {
			return err
		}
		for _, n := range names {
			cid, _, _ := strings.Cut(n, ".")
			id, _ := content.ParseID(cid) // 0: not of an attempt
			if err := r.suspect(ctx, Finding{LeftOver, id, root.Level.Name, content.MetaFolder + "/" + sub + "/" + n, ""}); err != nil {
				return err
			}
		}
	}
	return nil
}

// confirm looks at all suspicions again, after a look at what is in flight, and reports what stays. A move or a
// release that makes a suspicion holds its lock, or has left an unsettled entry, from before the first look; one that
// has begun since holds its lock at the last.
func (r *run) confirm(ctx context.Context) error {
	suspects := r.suspects
	r.suspects = nil
	if len(suspects) == 0 {
		return nil
	}
	flying, err := r.o.Store.InFlight(ctx)
	if err != nil {
		return err
	}
	for _, f := range suspects {
		still, err := r.again(ctx, f)
		if err != nil {
			return err
		}
		if !still {
			continue
		}
		if f.ID != 0 {
			holder, err := r.o.Store.Holder(ctx, f.ID)
			if err != nil {
				return err
			}
			if holder != "" || flying[f.ID] {
				r.sum.InFlight++
				continue
			}
		}
		r.sum.Findings++
		mended := ""
		if r.o.Repair {
			if mended, err = r.repair(ctx, f); err != nil {
				return err
			}
		}
		r.o.Report(f, mended)
	}
	return nil
}

// again tells whether a suspicion holds for the row and the files as they are now.
func (r *run) again(ctx context.Context, f Finding) (bool, error) {
	switch f.Kind {
	case Orphaned:
		known, err := r.named(ctx, []string{f.Path})
		if err != nil || known[f.Path] {
			return false, err
		}
		_, err = r.stat(r.roots[f.Level], f.Path)
		return err == nil, nil
	case LeftOver:
		_, err := r.stat(r.roots[f.Level], f.Path)
		return err == nil, nil
	}
	row, err := r.o.Catalog.Content(ctx, f.ID)
	if fault.Is(err, fault.Unknown) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	fs, err := r.look(ctx, row)
	for _, g := range fs {
		if g.Kind == f.Kind && g.Level == f.Level && g.Path == f.Path {
			return true, err
		}
	}
	return false, err
}

func (r *run) repair(ctx context.Context, f Finding) (string, error) {
	switch f.Kind {
	case Duplicate:
		err := r.o.Store.Stray(ctx, event.Committed{ID: f.ID, To: f.Level, Filename: f.Path, CommittedAt: time.Now()})
		return "the releaser was asked to clear it", err
	case LeftOver:
		if f.ID == 0 {
			return "left: its name is not one of Tierflow's", nil
		}
		if r.swept {
			return "swept", nil
		}
		r.swept = true
		return "swept", r.o.Sweep(ctx)
	case Unsettled:
		st, ok, err := r.o.Store.Get(ctx, f.ID)
		if err != nil || !ok {
			return "left: its state has gone", err
		}
		_, err = r.o.Store.Append(ctx, []event.View{r.o.NewView(st)})
		return "its newest event was appended once more", err
	case Missing:
		return "left: put the file there, or correct the row", nil
	case Orphaned:
		return "left: register it, or delete it", nil
	}
	return "left: nobody but its owner knows which bytes are right", nil
}
