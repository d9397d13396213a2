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

// rows compares every row with the tiers, in ascending order of cid.
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
			fs, err := r.compareRow(ctx, row, states[i])
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

// compareRow compares one row with all tiers, and with its state in Redis, which may be nil.
func (r *run) compareRow(ctx context.Context, row catalog.Row, st *state.State) ([]Finding, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := item.CheckFilename(row.Filename); err != nil {
		return []Finding{{Missing, row.ID, row.Level, row.Filename, err.Error()}}, nil
	}
	var fs []Finding
	detail := "the row names level " + row.Level // of duplicates
	for _, l := range r.policy.Levels() {
		st, why, err := r.stat(ctx, r.roots[l.Name], row.Filename)
		switch {
		case err != nil:
			return nil, err
		case l.Name != row.Level:
			if why == "" {
				fs = append(fs, Finding{Kind: Duplicate, ID: row.ID, Level: l.Name, Path: row.Filename})
			}
		case why != "":
			fs = append(fs, Finding{Missing, row.ID, l.Name, row.Filename, why})
			detail += lastCopy
		default:
			difference, err := r.differs(ctx, row, r.roots[l.Name], &st)
			if err != nil {
				return nil, err
			}
			if difference != "" {
				fs = append(fs, Finding{Differing, row.ID, l.Name, row.Filename, difference})
			}
		}
	}
	for i := range fs {
		if fs[i].Kind == Duplicate {
			fs[i].Detail = detail
		}
	}
	if target, why := r.wanted(row, st); target != "" && target != row.Level {
		fs = append(fs, Finding{Unsettled, row.ID, row.Level, row.Filename, why + " " + target})
	}
	return fs, nil
}

// lastCopy ends the detail of a duplicate that may be the last copy.
const lastCopy = ", where the file is missing"

// wanted returns the level that an item belongs on, and why. Both are "" where the item has neither a state nor a pin.
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

// differs says how a row's file differs from its last copy; "" where it does not. A file that cannot be read differs. An
// error is of the run, not of this file.
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

// stat returns the stat of a filename on a tier. It follows no symbolic link. why says why no file is there; an error says
// that it is unknown whether one is. A file whose name the file system only takes for this one is another file.
func (r *run) stat(ctx context.Context, root *tier.Root, name string) (st unix.Stat_t, why string, err error) {
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
	if err == nil {
		err = r.o.Mover.CheckSpelling(ctx, fsys.ReadDigest, root, name)
	}
	if err != nil {
		why, err = notThere(err)
	}
	return st, why, err
}

// notThere turns an error of opening a name into a reason why no file is there. It returns errors of the disk unchanged.
func notThere(err error) (why string, _ error) {
	var kind *fsys.KindError
	var other *fsys.SpellingError
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return "there is no such file", nil
	case errors.As(err, &other):
		return other.Error(), nil
	case errors.As(err, &kind):
		return kind.Error(), nil
	case errors.Is(err, unix.EXDEV):
		return "another file system is mounted on the way to it", nil
	case errors.Is(err, unix.ENAMETOOLONG):
		return "its name is too long for this file system", nil
	}
	return "", err
}

// walk looks for files that no row names. A path that a row names is an item; walk does not look below it.
func (r *run) walk(ctx context.Context, root *tier.Root, dir *fsys.File, prefix string) error {
	err := r.o.FS.Each(fsys.ReadDigest, dir, func(names []string) error {
		if prefix == "" {
			names = slices.DeleteFunc(names, func(n string) bool { return n == item.MetaFolder })
		}
		for part := range slices.Chunk(names, page) {
			if err := r.checkNames(ctx, root, dir, prefix, part); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, unix.ENOENT) {
		return nil // a release has removed the empty folder meanwhile
	}
	return err
}

// checkNames checks some of a folder's names.
func (r *run) checkNames(ctx context.Context, root *tier.Root, dir *fsys.File, prefix string, names []string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	paths := make([]string, len(names))
	for i, n := range names {
		paths[i] = prefix + n
	}
	known, err := r.knownFilenames(ctx, paths)
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

// knownFilenames tells which of the paths are filenames of rows.
func (r *run) knownFilenames(ctx context.Context, paths []string) (map[string]bool, error) {
	known := map[string]bool{}
	var args []any
	for _, p := range paths {
		if item.CheckFilename(p) == nil { // no row can have an invalid filename
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

// empty tells whether a folder is empty, or does not exist any more.
func (r *run) empty(dir *fsys.File, name string) bool {
	f, _, err := r.o.FS.OpenDir(fsys.ReadDigest, dir, name)
	if err != nil {
		return errors.Is(err, unix.ENOENT)
	}
	defer f.Close()
	names, err := r.o.FS.List(fsys.ReadDigest, f)
	return err == nil && len(names) == 0
}

// leftOvers looks for what attempts have left in tmp and released.
func (r *run) leftOvers(ctx context.Context, root *tier.Root) error {
	for sub, dir := range map[string]*fsys.File{"tmp": root.Tmp, "released": root.Released} {
		err := r.o.FS.Each(fsys.ReadDigest, dir, func(names []string) error {
			for _, n := range names {
				if sub == "released" && r.empty(dir, n) {
					continue // the next release reuses an empty folder
				}
				cid, _, _ := strings.Cut(n, ".")
				id, _ := item.ParseID(cid) // 0: the name is not that of an attempt
				f := Finding{LeftOver, id, root.Level.Name, item.MetaFolder + "/" + sub + "/" + n, "no attempt that is under way uses it"}
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
