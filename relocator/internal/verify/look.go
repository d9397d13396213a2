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
		st, why, err := r.stat(ctx, l.Name, row.Filename)
		switch {
		case errors.Is(err, errNotLooked):
			if l.Name == row.Level {
				detail += notLookedAt
			}
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
			difference, err := r.differs(ctx, row, &st)
			if err != nil && !errors.Is(err, errNotLooked) {
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

// These end the detail of a duplicate that may be the last copy.
const (
	lastCopy    = ", where the file is missing"
	notLookedAt = ", which was not looked at"
)

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
func (r *run) differs(ctx context.Context, row catalog.Row, st *unix.Stat_t) (string, error) {
	switch {
	case !fsys.IsFile(st) && !fsys.IsDir(st):
		return "it is " + fsys.Kind(st), nil
	case fsys.IsFile(st) && row.SizeBytes > 0 && st.Size != row.SizeBytes:
		return fmt.Sprintf("it has %d bytes, its last copy had %d", st.Size, row.SizeBytes), nil
	case !r.o.Digest || row.Digest == "":
		return "", nil
	}
	var digest string
	var unreadable error
	root := r.roots[row.Level]
	err := r.ask(ctx, row.Level, func() error {
		digest, unreadable = r.mover.Digest(ctx, root, row.Filename)
		return nil
	})
	switch {
	case err != nil:
		return "", err
	case ctx.Err() != nil:
		return "", ctx.Err()
	case unreadable != nil:
		return unreadable.Error(), nil
	case digest != row.Digest:
		return fmt.Sprintf("its bytes have %s, its last copy had %s", digest, row.Digest), nil
	}
	return "", nil
}

// stat returns the stat of a filename on a level's tier. It follows no symbolic link. why says why no file is there. A file
// whose name the file system only takes for this one is another file. errNotLooked: it is unknown whether one is there.
func (r *run) stat(ctx context.Context, level, name string) (st unix.Stat_t, why string, err error) {
	root := r.roots[level]
	var is unix.Stat_t
	var not string
	if err = r.ask(ctx, level, func() (err error) {
		is, not, err = r.look(ctx, root, name)
		return err
	}); err != nil {
		return st, "", err
	}
	return is, not, nil
}

func (r *run) look(ctx context.Context, root *tier.Root, name string) (st unix.Stat_t, why string, err error) {
	dir, base := path.Split(name)
	d := root.Dir
	if dir != "" {
		d, _, err = r.fs.OpenDir(fsys.ReadDigest, root.Dir, strings.TrimSuffix(dir, "/"))
		if err == nil {
			defer d.Close()
		}
	}
	if err == nil {
		st, err = r.fs.Lstat(fsys.ReadDigest, d, base)
	}
	if err == nil {
		err = r.mover.CheckSpelling(ctx, fsys.ReadDigest, root, name)
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
	return r.each(ctx, root.Level.Name, dir, func(names []string) error {
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
	known, err := r.o.Catalog.FilenamesOf(ctx, paths)
	if err != nil {
		return err
	}
	for i, p := range paths {
		if known[p] != 0 {
			r.sum.Files++
			continue
		}
		detail, sub, err := r.openName(ctx, root.Level.Name, dir, names[i])
		if err != nil {
			return err
		}
		if sub != nil {
			err := r.walk(ctx, root, sub, p+"/")
			if !r.hung[root.Level.Name] { // else the call that hangs must not use the descriptor of another file
				sub.Close()
			}
			if err != nil {
				return err
			}
			continue
		}
		if detail == "" {
			continue
		}
		r.sum.Files++
		if err := r.suspect(ctx, Finding{Orphaned, 0, root.Level.Name, p, detail}); err != nil {
			return err
		}
	}
	r.o.Progress(StageNames, r.sum.Files, max(r.total, r.sum.Files))
	return nil
}

// openName looks at a name that no row has. Of a folder it returns the open folder, of anything else what it is as an orphan. Both
// are empty where the name has gone.
func (r *run) openName(ctx context.Context, level string, dir *fsys.File, name string) (orphan string, folder *fsys.File, err error) {
	var what string
	var sub *fsys.File
	err = r.ask(ctx, level, func() error {
		st, err := r.fs.Lstat(fsys.ReadDigest, dir, name)
		if err == nil && fsys.IsDir(&st) {
			sub, _, err = r.fs.OpenDir(fsys.ReadDigest, dir, name)
			if err != nil && !isMissing(err) {
				what, err = notThere(err)
				return err
			}
		}
		if isMissing(err) {
			return nil
		}
		if err == nil && sub == nil {
			what = "no row names it"
		}
		return err
	})
	if err != nil {
		return "", nil, err
	}
	return what, sub, nil
}

func isMissing(err error) bool { return errors.Is(err, unix.ENOENT) }

// empty tells whether a folder of a level's tier is empty, or does not exist any more.
func (r *run) empty(ctx context.Context, level string, dir *fsys.File, name string) bool {
	empty := false
	err := r.ask(ctx, level, func() error {
		f, _, err := r.fs.OpenDir(fsys.ReadDigest, dir, name)
		if err != nil {
			empty = isMissing(err)
			return nil
		}
		defer f.Close()
		names, err := r.fs.List(fsys.ReadDigest, f)
		empty = err == nil && len(names) == 0
		return nil
	})
	return err == nil && empty
}

// leftOvers looks for what attempts have left in tmp and released.
func (r *run) leftOvers(ctx context.Context, root *tier.Root) error {
	for sub, dir := range map[string]*fsys.File{"tmp": root.Tmp, "released": root.Released} {
		err := r.each(ctx, root.Level.Name, dir, func(names []string) error {
			for _, n := range names {
				if sub == "released" && r.empty(ctx, root.Level.Name, dir, n) {
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
