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

// Comparison asks whether a copy that no row names may go: whether the one that the row names has its bytes.
type Comparison struct {
	Filename      string
	Old, Current  policy.Level
	OldIsOriginal bool   // Current was made from Old; else Old was made from Current, or nobody knows
	Digest        string // of the last copy that was made, by the row; "" where it has none

	Progress func() // a sign of life, at least once in 1 MiB that is read
}

// Compare is for just before a release. there is false where Current holds nothing of that name: then Old may be the
// last copy. fault.Changed says that Old has bytes that are nowhere else: one of the two was changed, or damaged, after the
// copy was made.
//
// The common case reads no byte. Old and Current are one inode, or a copy, which got size and time of change of what
// it was made from. A rewrite that puts the time of change back moves the inode's own (ctime), which nobody can set:
// that of an original must be older than its copy's, by
// a tick of the kernel's clock at least. Where any of these does not fit, the bytes are read, and they
// decide: an operator's cp, a backup's touch and a chmod change no content. Not seen is what was renamed over the old
// name of a file that was moved by a link, with the same size and the same time of change.
//
// Before it says that Current has the bytes, it looks whether that tier is still there.
//
// Kinds: TierRefused, Changed, Busy (it is being changed now), Unsupported, Suspect. A cancelled context gives its
// cause.
func (m *Mover) Compare(ctx context.Context, c Comparison) (there bool, err error) {
	there, err = m.compare(ctx, c)
	err = wrap("compare", c.Filename+" on "+c.Old.Name+" with that on "+c.Current.Name, err)
	return there, blame(err, c.Old, c.Current)
}

func (m *Mover) compare(ctx context.Context, c Comparison) (there bool, err error) {
	roots := [2]*tier.Root{}
	items := [2]*opened{}
	without := func(i int, err error) (bool, error) {
		var kind *fsys.KindError
		if missing(err) || i == 1 && errors.As(err, &kind) { // the release finds that out, and says so
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
			return without(i, err)
		}
	}
	if !seen[0].isDir() && asCopied(&seen[1], &seen[0], c.OldIsOriginal) { // nothing need be opened
		return true, roots[0].Check(fsys.RecheckTier)
	}
	for i := range items {
		if items[i], err = m.find(fsys.LookReleased, roots[i], c.Filename); err != nil {
			return without(i, err)
		}
		defer items[i].Close()
	}
	named, old := items[0], items[1]
	before, err := m.list(ctx, old)
	if err != nil {
		return true, err
	}
	listed, err := m.list(ctx, named)
	if err != nil {
		return true, err
	}
	if asCopied(before, listed, c.OldIsOriginal) {
		return true, roots[0].Check(fsys.RecheckTier)
	}

	sum, err := m.sumOf(ctx, fsys.ReadReleased, old, c.Progress)
	if err != nil {
		return true, err
	}
	other, err := m.sumOf(ctx, fsys.ReadReleased, named, c.Progress)
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
	what := fmt.Errorf("it was changed after it was copied, and is kept: it has sha256 %x, and %s, which the row names, %x",
		sum, named.file.Path(), other)
	if digest(sum) == c.Digest {
		what = fmt.Errorf("it is as it was copied, sha256 %x, and is kept: %s, which the row names, is not any more, and has %x",
			sum, named.file.Path(), other)
	}
	return true, &fault.Error{Kind: fault.Changed, Op: "clear", Subject: old.file.Path(), Err: what,
		Hint: "find out which of the two is right; remove this one, or put its bytes in the other's place; then retry"}
}

// list looks at a content, all the way down.
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

// asCopied tells whether old looks as it did when named was made from it, or it from named.
func asCopied(old, named *node, original bool) bool {
	if old.name != named.name || old.isDir() != named.isDir() {
		return false
	}
	if old.isDir() {
		return slices.EqualFunc(old.kids, named.kids, func(a, b *node) bool { return asCopied(a, b, original) })
	}
	a, b := &old.st, &named.st
	return fsys.Same(a, b) || a.Size == b.Size && sameTime(a.Mtim, b.Mtim) &&
		(!original || a.Ctim.Nano() < b.Ctim.Nano())
}

// sameTime allows for a file system that keeps seconds only.
func sameTime(a, b unix.Timespec) bool {
	return a.Sec == b.Sec && (a.Nsec == b.Nsec || a.Nsec == 0 || b.Nsec == 0)
}
