package mover

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/tier"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/policy"
)

// Comparison asks whether an old copy may be removed: whether the copy that the row names has the same bytes.
type Comparison struct {
	Filename      string
	Old, Current  policy.Level // Current is the level that the row names
	OldIsOriginal bool         // Current was copied from Old; false: Old was copied from Current, or it is unknown
	Digest        string       // the row's digest of the last copy; "" where it has none
}

// Compare tells whether an old copy may be removed. Call it just before the removal, after the fence. there is false where
// the level that the row names does not hold the item: Old may then be the last copy. fault.Changed says that Old has bytes
// that are nowhere else. One of the two was then changed or damaged after the copy was made.
//
// Usually Compare reads no bytes. It is enough that both are one inode, or that size and mtime are equal: a copy gets
// its source's mtime. A rewrite that puts the mtime back changes the ctime, which no process can set. So an original
// must also have an older ctime than its copy. Where one of these does not fit, Compare reads both, and the bytes
// decide: an operator's cp, a touch by a backup and a chmod change no bytes.
//
// Compare does not notice one case: a file that was moved by a link, and another file of the same size and mtime that
// was renamed over its old name.
//
// Before it reports equal bytes, Compare checks that the tier of the row's level is still there.
//
// Kinds: TierRefused, Changed, Busy (it is being changed now), Unsupported, Suspect. A cancelled context gives its
// cause.
func (m *Mover) Compare(ctx context.Context, c Comparison) (there bool, err error) {
	there, err = m.compare(ctx, c)
	err = wrap("compare", c.Filename+" on "+c.Old.Name+" with that on "+c.Current.Name, err)
	return there, setLevel(err, c.Old, c.Current)
}

func (m *Mover) compare(ctx context.Context, c Comparison) (there bool, err error) {
	roots := [2]*tier.Root{}
	items := [2]*opened{}
	// Side 0 is the copy that the row names, side 1 the old one. Where the old one is missing or is neither file nor
	// folder, there is nothing to compare: Release finds that out itself.
	notOpened := func(i int, err error) (bool, error) {
		var kind *fsys.KindError
		if missing(err) || otherSpelling(err) || i == 1 && errors.As(err, &kind) {
			return i > 0, nil
		}
		return i > 0, err
	}
	var seen [2]node
	for i, level := range []policy.Level{c.Current, c.Old} {
		if roots[i], err = m.tiers.Open(level); err != nil {
			return i > 0, err
		}
		defer roots[i].Close()
		if seen[i].st, err = m.fs.StatPath(fsys.LookReleased, roots[i].Dir, c.Filename); err != nil {
			return notOpened(i, err)
		}
		if err := m.CheckSpelling(ctx, fsys.LookReleased, roots[i], c.Filename); err != nil {
			return notOpened(i, err)
		}
	}
	if !seen[0].isDir() && asCopied(&seen[1], &seen[0], c.OldIsOriginal) { // no need to open them
		return true, roots[0].Check(fsys.RecheckTier)
	}
	for i := range items {
		if items[i], err = m.find(ctx, fsys.LookReleased, roots[i], c.Filename); err != nil {
			return notOpened(i, err)
		}
		defer items[i].Close()
	}
	current, old := items[0], items[1]
	before, err := m.list(ctx, old)
	if err != nil {
		return true, err
	}
	listed, err := m.list(ctx, current)
	if err != nil {
		return true, err
	}
	if asCopied(before, listed, c.OldIsOriginal) {
		return true, roots[0].Check(fsys.RecheckTier)
	}

	sum, err := m.sumOf(ctx, fsys.ReadReleased, old, noProgress)
	if err != nil {
		return true, err
	}
	other, err := m.sumOf(ctx, fsys.ReadReleased, current, noProgress)
	if err != nil {
		return true, err
	}
	after, err := m.list(ctx, old)
	if err != nil {
		return true, err
	}
	if !sameTree(before, after) {
		return true, fault.New(fault.Busy, "compare", old.file.Path(), errors.New("it is being changed"))
	}
	if bytes.Equal(sum, other) {
		return true, roots[0].Check(fsys.RecheckTier)
	}
	what := fmt.Errorf("it was changed after it was copied, so it is not removed: it has sha256 %x; %s, which the row names, has %x",
		sum, current.file.Path(), other)
	if digest(sum) == c.Digest {
		what = fmt.Errorf("it is as it was copied, sha256 %x, so it is not removed: %s, which the row names, has changed and has %x",
			sum, current.file.Path(), other)
	}
	return true, &fault.Error{Kind: fault.Changed, Op: "clear", Subject: old.file.Path(), Err: what,
		Hint: "find out which of the two is right; remove this one, or put its bytes in place of the other; then retry"}
}

// list returns the stat of a file, or the tree of a directory.
func (m *Mover) list(ctx context.Context, i *opened) (*node, error) {
	st, err := m.fs.Stat(fsys.LookReleased, i.file)
	if err != nil || !fsys.IsDir(&st) {
		return &node{st: st}, err
	}
	n, err := m.walk(ctx, fsys.LookReleased, i.file, &st, 0)
	if fault.Is(err, fault.Changed) {
		err = fault.New(fault.Busy, "compare", i.file.Path(), err)
	}
	return n, err
}

// asCopied tells whether sizes and times show that neither has changed since one was copied from the other. original: old
// is the source.
func asCopied(old, current *node, original bool) bool {
	if old.name != current.name || old.isDir() != current.isDir() {
		return false
	}
	if old.isDir() {
		return slices.EqualFunc(old.children, current.children, func(a, b *node) bool { return asCopied(a, b, original) })
	}
	a, b := &old.st, &current.st
	return fsys.Same(a, b) || a.Size == b.Size && sameTime(a.Mtim, b.Mtim) &&
		(!original || a.Ctim.Nano() < b.Ctim.Nano())
}

// sameTime compares two mtimes. One of the file systems may store whole seconds only.
func sameTime(a, b unix.Timespec) bool {
	return a.Sec == b.Sec && (a.Nsec == b.Nsec || a.Nsec == 0 || b.Nsec == 0)
}
