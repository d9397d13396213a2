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
	"github.com/tierflow/tierflow/relocator/internal/tier"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
)

// rows looks at every row, ascending by id.
func (r *run) rows(ctx context.Context) error {
	for after := item.ID(0); ; {
		rows, err := r.o.Catalog.List(ctx, "", after, page)
		if err != nil {
			return err
		}
		ids := make([]item.ID, len(rows))
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
			r.sum.Items++
			r.o.Progress(StageItems, r.sum.Items, r.total)
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
	if err := item.CheckFilename(row.Filename); err != nil {
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

// wanted is the level that a content should be on, and what says so; "" where nothing is known.
func (r *run) wanted(row catalog.Row, st *state.State) (target, why string) {
	count := row.ViewCount
	if st != nil {
		count = st.Count
	}
	switch d := r.policy.Decide(row.Item(count), time.Now()); {
	case d.Reason == policy.ByPin:
		return d.Target, "it is pinned to"
	case st == nil:
		return "", ""
	default:
		return d.Target, fmt.Sprintf("the newest count %d calls for", count)
	}
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
			names = slices.DeleteFunc(names, func(n string) bool { return n == item.MetaFolder })
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
	r.o.Progress(StageNames, r.sum.Files, max(r.total, r.sum.Files))
	return nil
}

// named tells which of the paths are filenames of rows.
func (r *run) named(ctx context.Context, paths []string) (map[string]bool, error) {
	known := map[string]bool{}
	var args []any
	for _, p := range paths {
		if item.CheckFilename(p) == nil { // no row can have another one
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

// empty tells whether a folder has nothing in it, or has just gone.
func (r *run) empty(dir *fsys.File, name string) bool {
	f, _, err := r.o.FS.OpenDir(fsys.ReadDigest, dir, name)
	if err != nil {
		return errors.Is(err, unix.ENOENT)
	}
	defer f.Close()
	names, err := r.o.FS.List(fsys.ReadDigest, f)
	return err == nil && len(names) == 0
}

// leftOvers lists what attempts have left behind.
func (r *run) leftOvers(ctx context.Context, root *tier.Root) error {
	for sub, dir := range map[string]*fsys.File{"tmp": root.Tmp, "released": root.Released} {
		err := r.o.FS.Each(fsys.ReadDigest, dir, func(names []string) error {
			for _, n := range names {
				if sub == "released" && r.empty(dir, n) {
					continue // releases hand on the folders of those before
				}
				cid, _, _ := strings.Cut(n, ".")
				id, _ := item.ParseID(cid) // 0: not of an attempt
				f := Finding{LeftOver, id, root.Level.Name, item.MetaFolder + "/" + sub + "/" + n, "nobody is at it"}
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
