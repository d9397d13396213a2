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
	"errors"
	"fmt"
	"path"
	"slices"
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
	Differing Kind = "differing" // size, type or digest is not that of the row's last copy, or it cannot be read: left
	Unsettled Kind = "unsettled" // the newest event, or the pin, wants another level, and nobody is at it: appended once more, unless it is in dead
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

// Stages of a run, in their order.
const (
	Rows  = "contents"
	Tiers = "names on the tiers"
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
	Contents, Files, Findings, InFlight int64
}

// page is how many rows are read, and how many suspicions are looked at again, together.
const page = 1000

type run struct {
	o        Options
	policy   content.Policy
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

// rows looks at every row, ascending by id.
func (r *run) rows(ctx context.Context) error {
	for after := content.ID(0); ; {
		rows, err := r.o.Catalog.List(ctx, "", after, page)
		if err != nil {
			return err
		}
		ids := make([]content.ID, len(rows))
		for i, row := range rows {
			ids[i] = row.ID
		}
		states, err := r.o.Store.GetMany(ctx, ids)
		if err != nil {
			return err
		}
		for i, row := range rows {
			fs, err := r.look(ctx, row, states[i])
			if err != nil {
				return err
			}
			if err := r.suspect(ctx, fs...); err != nil {
				return err
			}
			after = row.ID
			r.sum.Contents++
			r.o.Progress(Rows, r.sum.Contents, r.total)
		}
		if len(rows) < page {
			return nil
		}
	}
}

// look compares one row with all tiers, and with its state in Redis, which may be nil.
func (r *run) look(ctx context.Context, row catalog.Row, st *state.State) ([]Finding, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := content.CheckFilename(row.Filename); err != nil {
		return []Finding{{Missing, row.ID, row.Level, row.Filename, err.Error()}}, nil
	}
	var fs []Finding
	named := "the row names level " + row.Level
	for _, l := range r.policy.Levels() {
		st, why, err := r.stat(r.roots[l.Name], row.Filename)
		switch {
		case err != nil:
			return nil, err
		case l.Name != row.Level:
			if why == "" {
				fs = append(fs, Finding{Duplicate, row.ID, l.Name, row.Filename, named})
			}
		case why != "":
			fs = append(fs, Finding{Missing, row.ID, l.Name, row.Filename, why})
			named += lastCopy
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
	for i := range fs {
		if fs[i].Kind == Duplicate {
			fs[i].Detail = named
		}
	}
	if target, why := r.wanted(row, st); target != "" && target != row.Level {
		fs = append(fs, Finding{Unsettled, row.ID, row.Level, row.Filename, why + " " + target})
	}
	return fs, nil
}

// lastCopy is said of a duplicate that may be all that is left.
const lastCopy = ", where the file is missing"

// wanted is the level that a content should be on, and what says so; "" where nothing is known. A pin of a level that is
// no more says nothing.
func (r *run) wanted(row catalog.Row, st *state.State) (target, why string) {
	if _, ok := r.policy.Level(row.Pinned); ok {
		return row.Pinned, "it is pinned to"
	}
	if st == nil {
		return "", ""
	}
	return r.policy.Target(st.Count).Name, fmt.Sprintf("the newest count %d calls for", st.Count)
}

// differs says in what a row's file is not what the row says, "" where it is. An error is not of this file.
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
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if err != nil {
		return err.Error(), nil
	}
	if digest != row.Digest {
		return fmt.Sprintf("its bytes have %s, its last copy had %s", digest, row.Digest), nil
	}
	return "", nil
}

// stat looks a content's name up below the root, without following anything. why says that it is not there; an error, that
// nobody can tell.
func (r *run) stat(root *tier.Root, name string) (st unix.Stat_t, why string, err error) {
	dir, base := path.Split(name)
	d := root.Dir
	if dir != "" {
		d, _, err = r.o.FS.OpenDir(fsys.ReadDigest, root.Dir, strings.TrimSuffix(dir, "/"))
		if err == nil {
			defer d.Close()
		}
	}
	if err == nil {
		st, err = r.o.FS.Lstat(fsys.ReadDigest, d, base)
	}
	if err != nil {
		why, err = notThere(err)
	}
	return st, why, err
}

// notThere sorts out why a name could not be opened: because nothing of ours is there, or because of the disk.
func notThere(err error) (why string, _ error) {
	var kind *fsys.KindError
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return "there is no such file", nil
	case errors.As(err, &kind):
		return kind.Error(), nil
	case errors.Is(err, unix.EXDEV):
		return "another file system is mounted on the way to it", nil
	case errors.Is(err, unix.ENAMETOOLONG):
		return "its name is too long for this file system", nil
	}
	return "", err
}

// walk looks for files that no row names. A name that a row has is a content, whatever lies below it.
func (r *run) walk(ctx context.Context, root *tier.Root, dir *fsys.File, prefix string) error {
	err := r.o.FS.Each(fsys.ReadDigest, dir, func(names []string) error {
		if prefix == "" {
			names = slices.DeleteFunc(names, func(n string) bool { return n == content.MetaFolder })
		}
		for part := range slices.Chunk(names, page) {
			if err := r.names(ctx, root, dir, prefix, part); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, unix.ENOENT) {
		return nil // the folder has been emptied and removed meanwhile
	}
	return err
}

// names looks at some of a folder's names.
func (r *run) names(ctx context.Context, root *tier.Root, dir *fsys.File, prefix string, names []string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	paths := make([]string, len(names))
	for i, n := range names {
		paths[i] = prefix + n
	}
	known, err := r.named(ctx, paths)
	if err != nil {
		return err
	}
	for i, p := range paths {
		if known[p] {
			r.sum.Files++
			continue
		}
		st, err := r.o.FS.Lstat(fsys.ReadDigest, dir, names[i])
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return err
		}
		detail := "no row names it"
		if fsys.IsDir(&st) {
			sub, _, err := r.o.FS.OpenDir(fsys.ReadDigest, dir, names[i])
			if err == nil {
				err = r.walk(ctx, root, sub, p+"/")
				sub.Close()
				if err != nil {
					return err
				}
				continue
			}
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			if detail, err = notThere(err); err != nil {
				return err
			}
		}
		r.sum.Files++
		if err := r.suspect(ctx, Finding{Orphaned, 0, root.Level.Name, p, detail}); err != nil {
			return err
		}
	}
	r.o.Progress(Tiers, r.sum.Files, max(r.total, r.sum.Files))
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
		err := r.o.FS.Each(fsys.ReadDigest, dir, func(names []string) error {
			for _, n := range names {
				cid, _, _ := strings.Cut(n, ".")
				id, _ := content.ParseID(cid) // 0: not of an attempt
				f := Finding{LeftOver, id, root.Level.Name, content.MetaFolder + "/" + sub + "/" + n, "nobody is at it"}
				if err := r.suspect(ctx, f); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// confirm looks at all suspicions again and reports what stays; see the package comment. The order is: the row, the
// files, what is in flight, the row and the newest event.
func (r *run) confirm(ctx context.Context) error {
	suspects := r.suspects
	r.suspects = nil
	if len(suspects) == 0 {
		return nil
	}
	if err := r.samePolicy(ctx); err != nil {
		return err
	}
	still, err := r.again(ctx, suspects)
	if err != nil {
		return err
	}
	if len(still) == 0 {
		return nil
	}
	var ids []content.ID
	var events []string
	for _, d := range still {
		if d.ID != 0 {
			ids = append(ids, d.ID)
		}
		if d.state != nil && d.Kind == Unsettled && r.o.Repair {
			events = append(events, d.state.EventID)
		}
	}
	flying, rows, dead := map[content.ID]bool{}, map[content.ID]catalog.Row{}, map[string]bool{}
	newest := map[content.ID]string{}
	if len(ids) > 0 {
		if flying, err = r.o.Store.InFlight(ctx, ids...); err != nil {
			return err
		}
		if rows, err = r.o.Catalog.Contents(ctx, ids); err != nil {
			return err
		}
		states, err := r.o.Store.GetMany(ctx, ids)
		if err != nil {
			return err
		}
		for i, s := range states {
			if s != nil {
				newest[ids[i]] = s.EntryID
			}
		}
	}
	if len(events) > 0 {
		if dead, err = r.o.Store.Dead(ctx, events...); err != nil {
			return err
		}
	}
	swept := ""
	for _, d := range still {
		if d.ID != 0 {
			holder, err := r.o.Store.Holder(ctx, d.ID)
			if err != nil {
				return err
			}
			if holder != "" || flying[d.ID] || d.row.ID != 0 && (changed(d.row, rows[d.ID]) || d.entry() != newest[d.ID]) {
				r.sum.InFlight++
				continue
			}
		}
		r.sum.Findings++
		mended := ""
		switch {
		case !r.o.Repair:
		case d.Kind == LeftOver:
			if swept == "" { // once for all
				swept = "swept"
				if err := r.o.Sweep(ctx); err != nil {
					swept = "left: " + err.Error()
				}
			}
			if mended, err = r.swept(d.Finding, swept); err != nil {
				return err
			}
		default:
			if mended, err = r.repair(ctx, d, dead); err != nil {
				return err
			}
		}
		r.o.Report(d.Finding, mended)
	}
	return nil
}

// doubt is a suspicion at the second look: with the row and the state that it was looked at with, where it is about any.
type doubt struct {
	Finding
	row   catalog.Row
	state *state.State
}

// entry is the id of the newest event's entry, "" where none is known.
func (d doubt) entry() string {
	if d.state == nil {
		return ""
	}
	return d.state.EntryID
}

// changed tells whether a row has been moved, begun to be released, renamed or made anew since it was read.
func changed(was, is catalog.Row) bool {
	return was.Generation != is.Generation || was.Level != is.Level || was.Filename != is.Filename || !was.Updated.Equal(is.Updated) ||
		was.Pinned != is.Pinned
}

// samePolicy makes sure that the levels are still those that everything was compared with.
func (r *run) samePolicy(ctx context.Context) error {
	now, err := r.o.Catalog.Policy(ctx)
	if err != nil {
		return err
	}
	if !slices.Equal(now.Levels(), r.policy.Levels()) {
		return fault.New(fault.Conflict, "compare", "", errors.New("the levels have been changed meanwhile: verify again"))
	}
	return nil
}

// again returns the suspicions that hold for the rows, the states and the files as they are now.
func (r *run) again(ctx context.Context, suspects []Finding) ([]doubt, error) {
	var still []doubt
	var ids []content.ID
	var paths []string
	for _, f := range suspects {
		switch f.Kind {
		case LeftOver, Orphaned:
			_, why, err := r.stat(r.roots[f.Level], f.Path)
			if err != nil {
				return nil, err
			}
			if why == "" {
				still = append(still, doubt{Finding: f})
				if f.Kind == Orphaned {
					paths = append(paths, f.Path)
				}
			}
		default:
			ids = append(ids, f.ID)
		}
	}
	known, err := r.named(ctx, paths)
	if err != nil {
		return nil, err
	}
	still = slices.DeleteFunc(still, func(d doubt) bool { return d.Kind == Orphaned && known[d.Path] })

	rows, err := r.o.Catalog.Contents(ctx, ids)
	if err != nil {
		return nil, err
	}
	states, err := r.o.Store.GetMany(ctx, ids)
	if err != nil {
		return nil, err
	}
	i := 0
	for _, f := range suspects {
		if f.Kind == LeftOver || f.Kind == Orphaned {
			continue
		}
		st := states[i]
		i++
		row, ok := rows[f.ID]
		if !ok {
			continue // forgotten
		}
		fs, err := r.look(ctx, row, st)
		if err != nil {
			return nil, err
		}
		for _, g := range fs {
			if g.Kind == f.Kind && g.Level == f.Level && g.Path == f.Path {
				still = append(still, doubt{g, row, st})
			}
		}
	}
	return still, nil
}

// repair mends what is safe, and says what was done or why not.
func (r *run) repair(ctx context.Context, d doubt, dead map[string]bool) (string, error) {
	switch d.Kind {
	case Duplicate:
		if strings.HasSuffix(d.Detail, lastCopy) {
			return "left: it may be the last copy; correct the row, or put its file there", nil
		}
		err := r.o.Store.Stray(ctx, event.Committed{ID: d.ID, To: d.Level, Filename: d.Path, CommittedAt: time.Now()})
		return "the releaser was asked to clear it", err
	case Unsettled:
		return r.settle(ctx, d, dead)
	case Missing:
		return "left: put the file there, or correct the row", nil
	case Orphaned:
		return "left: register it, or delete it", nil
	}
	return "left: nobody but its owner knows which bytes are right", nil
}

// settle appends the newest event once more, unless there is a newer one by now.
func (r *run) settle(ctx context.Context, d doubt, dead map[string]bool) (string, error) {
	newest, s := "", state.State{ID: d.ID, Count: d.row.ViewCount}
	if d.state != nil {
		if dead[d.state.EventID] {
			return "left: its event is in dead; mend the cause there, and retry it", nil
		}
		newest, s = d.state.EntryID, *d.state
	}
	s.Target, _ = r.wanted(d.row, d.state)
	s.DBLevel, s.Filename = d.row.Level, d.row.Filename
	entry, err := r.o.Store.AppendIf(ctx, newest, r.o.NewView(s))
	if err == nil && entry == "" {
		return "left: a newer count has come meanwhile", nil
	}
	return "its newest event was appended once more", err
}

// swept says what has become of a left-over, after a sweep.
func (r *run) swept(f Finding, done string) (string, error) {
	_, why, err := r.stat(r.roots[f.Level], f.Path)
	if err == nil && why == "" && done == "swept" {
		return "left: its name is not one of Tierflow's, or somebody is at it by now", nil
	}
	return done, err
}
