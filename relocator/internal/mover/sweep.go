package mover

import (
	"context"
	"errors"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
)

// sweptName is the name of an attempt's tree that must not be published any more. A file that must not be has a name that
// ends with sweptSuffix.
const (
	sweptName   = "swept"
	sweptSuffix = "-swept"
)

// SweepReport says what a sweep found on one tier.
type SweepReport struct {
	Temporaries int      // temporaries that were reported as strays and removed from tmp/
	Released    int      // folders that were removed from released/
	Unknown     []string // paths of entries whose names are not Tierflow's; the sweep leaves them
}

// Sweep is step 9 of the protocol for one tier: it removes what crashed attempts left in tmp/ and released/. It removes
// entries whose ctime is more than olderThan ago; mtime is of no use, because a copy has its source's mtime.
//
// A temporary is the record of a copy that may have been published. Sweep therefore calls stray first and removes the
// temporary only when stray returned nil. Before that, it renames the temporary: what cannot be renamed cannot be removed, and
// would be reported at every sweep. A temporary for which inUse returns true stays. Sweep may remove the temporary of a
// living attempt: that attempt then fails, and nothing is lost.
//
// An entry that fails does not stop the sweep, unless the tier is read-only. The error joins the errors of all entries.
func (m *Mover) Sweep(ctx context.Context, level policy.Level, olderThan time.Duration,
	inUse func(id item.ID, token string) bool,
	stray func(ctx context.Context, id item.ID, eventID string) error,
) (SweepReport, error) {
	var report SweepReport
	root, err := m.tiers.Open(level)
	if err != nil {
		return report, err
	}
	defer root.Close()
	now := time.Now()
	var errs []error
	each := func(dir *fsys.File, visit func(name string, st *unix.Stat_t) error) error {
		names, err := m.fs.List(fsys.Sweep, dir)
		if err != nil {
			return wrap("sweep", dir.Path(), err)
		}
		for _, name := range names {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			st, err := m.fs.Lstat(fsys.Sweep, dir, name)
			if err == nil && outdated(time.Unix(st.Ctim.Unix()), now, olderThan) {
				err = visit(name, &st)
			}
			if errors.Is(err, unix.EROFS) {
				return wrap("sweep", dir.At(name), err)
			}
			if err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, wrap("sweep", dir.At(name), err))
			}
		}
		return nil
	}
	err = each(root.Tmp, func(name string, st *unix.Stat_t) error {
		id, eventID, token, ok := parseTemp(name)
		if !ok {
			report.Unknown = append(report.Unknown, root.Tmp.At(name))
			return nil
		}
		if inUse(id, token) {
			return nil
		}
		name, err := m.hide(ctx, root.Tmp, name, st)
		if err != nil {
			return err
		}
		if err := stray(ctx, id, eventID); err != nil {
			return err
		}
		if err := m.fs.RemoveAll(ctx, fsys.Sweep, root.Tmp, name); err != nil {
			return err
		}
		report.Temporaries++
		return nil
	})
	if err != nil {
		return report, errors.Join(append(errs, err)...)
	}
	err = each(root.Released, func(name string, _ *unix.Stat_t) error {
		if _, ok := parseReleased(name); !ok {
			report.Unknown = append(report.Unknown, root.Released.At(name))
			return nil
		}
		if err := m.fs.RemoveAll(ctx, fsys.Sweep, root.Released, name); err != nil {
			return err
		}
		report.Released++
		return nil
	})
	return report, errors.Join(append(errs, err)...)
}

// hide renames a temporary, so that its attempt cannot publish it any more, and returns its name.
func (m *Mover) hide(ctx context.Context, tmp *fsys.File, name string, st *unix.Stat_t) (string, error) {
	if fsys.IsDir(st) {
		return name, m.hideTree(ctx, tmp, name)
	}
	hidden := strings.TrimSuffix(name, sweptSuffix) + sweptSuffix
	if _, _, _, ok := parseTemp(hidden); !ok { // the name is too long
		return name, nil
	}
	err := m.fs.Rename(fsys.Sweep, tmp, name, tmp, hidden) // to the same name where the last sweep was cut short
	if isAny(err, unix.ENOSPC, unix.EDQUOT) {              // the removal makes room
		return name, nil
	}
	return hidden, err
}

// outdated reports whether something that was changed at ctime is older than that. A time of the future is from before this
// machine's clock went back, and is as good as an old one.
func outdated(ctime, now time.Time, than time.Duration) bool { return now.Sub(ctime).Abs() > than }

// hideTree renames an attempt's tree, so that the attempt cannot publish it any more. If Sweep deleted the tree under its
// own name, an attempt that was only paused could publish the part that is left.
func (m *Mover) hideTree(ctx context.Context, tmp *fsys.File, name string) error {
	attempt, _, err := m.fs.OpenDir(fsys.Sweep, tmp, name)
	if err != nil {
		return err
	}
	defer attempt.Close()
	if err := m.fs.RemoveAll(ctx, fsys.Sweep, attempt, sweptName); err != nil {
		return err
	}
	err = m.fs.Rename(fsys.Sweep, attempt, treeName, attempt, sweptName)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
