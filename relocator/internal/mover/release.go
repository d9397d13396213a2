package mover

import (
	"context"
	"errors"
	"path"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/tier"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
)

// ReleaseOutcome says how a release ended.
type ReleaseOutcome string

const (
	Released   ReleaseOutcome = "released" // the copy is gone, durably: ack
	IsCurrent  ReleaseOutcome = "lives"    // the row names this tier: ack
	Gone       ReleaseOutcome = "gone"     // there was no copy: ack
	RetryLater ReleaseOutcome = "again"    // a mover wants the name: try again later
)

func (o ReleaseOutcome) String() string { return string(o) }

// ReleaseRequest asks for the removal of a content's copy on a tier.
type ReleaseRequest struct {
	ID       item.ID
	Token    string // names this attempt; never used twice
	Filename string
	Tier     policy.Level

	// Fence raises the row's generation unless the row names the tier, in one statement; false means that it does.
	// It is called once, after the attempt's folder is there and before the copy is touched: a move that has looked
	// the row up before can then not be committed, and one that looks it up later takes the folder away first.
	Fence func(context.Context) (bool, error)
}

// Expect announces a Release, or a move that one will follow, before the servers are asked about it. done is for when it is
// over; of a release, before its entry is settled: after the last one nothing is left in released/, once nobody has the
// tier open.
func (m *Mover) Expect() (done func()) { return m.tiers.Expect() }

// Release is step 8 of the protocol without its lock and its ack: it removes a copy that the row does not name. On
// an error the copy may be there still; trying again is always right. Once the copy has been renamed there is no
// way back: an error or a crash after that leaves a folder in released/ for the sweep.
//
// Kinds: InvalidName, Unsupported (something other than a file or folder has the name: it is left alone),
// TierRefused, Suspect, Busy. A cancelled context gives its cause.
func (m *Mover) Release(ctx context.Context, r ReleaseRequest) (ReleaseOutcome, error) {
	outcome, err := m.release(ctx, r)
	return outcome, blame(wrap("release", r.ID.String()+" ("+r.Filename+") from "+r.Tier.Name, err), r.Tier)
}

func (m *Mover) release(ctx context.Context, r ReleaseRequest) (ReleaseOutcome, error) {
	if err := item.CheckFilename(r.Filename); err != nil {
		return "", fault.New(fault.InvalidName, "release", r.ID.String(), err)
	}
	if err := checkPart(r.Token); err != nil {
		return "", err
	}
	root, err := m.tiers.Open(r.Tier)
	if err != nil {
		return "", err
	}
	defer root.Close()
	name := releasedName(r.ID, r.Token)
	if err := m.attemptFolder(root, name); err != nil {
		return "", err
	}
	outcome, err := m.rename(ctx, r, root, name)
	if err != nil {
		_ = m.fs.RemoveAll(context.WithoutCancel(ctx), fsys.DeleteReleased, root.Released, name) // or the sweep
		return "", err
	}
	if err := m.drop(ctx, root, name); err != nil {
		return "", err
	}
	if outcome == IsCurrent || outcome == RetryLater {
		return outcome, nil
	}
	// Also where the copy was gone: who took it may have been cut short before that was durable.
	if err := m.tidy(root, r.Filename); err != nil {
		return "", err
	}
	return outcome, root.Check(fsys.RecheckTier)
}

// attemptFolder makes the attempt's folder, most often out of one whose attempt is over: it is empty, it is in nobody's
// hands, and its old name means nothing any more.
func (m *Mover) attemptFolder(root *tier.Root, name string) error {
	for {
		spare, ok := root.TakeSpare()
		if !ok {
			return m.fs.Mkdir(fsys.MkdirReleased, root.Released, name, 0o700)
		}
		err := m.fs.RenameNew(fsys.MkdirReleased, root.Released, spare, root.Released, name)
		if !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
}

// drop deletes the copy, and the attempt's folder unless the next attempt can have it.
func (m *Mover) drop(ctx context.Context, root *tier.Root, name string) error {
	if err := m.fs.RemoveAll(ctx, fsys.DeleteReleased, root.Released, name+"/"+copyName); err != nil {
		return err
	}
	if root.PutSpare(name) {
		return nil
	}
	return m.fs.RemoveAll(ctx, fsys.DeleteReleased, root.Released, name)
}

// rename moves the copy into the attempt's folder, if the fence lets it.
func (m *Mover) rename(ctx context.Context, r ReleaseRequest, root *tier.Root, name string) (ReleaseOutcome, error) {
	folder, _, err := m.fs.OpenDir(fsys.MkdirReleased, root.Released, name)
	if errors.Is(err, unix.ENOENT) {
		return RetryLater, nil
	}
	if err != nil {
		return "", err
	}
	defer folder.Close()
	mayGo, err := r.Fence(ctx)
	if err != nil {
		return "", err
	}
	if !mayGo {
		return IsCurrent, nil
	}
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if err := root.Check(fsys.RecheckTier); err != nil {
		return "", err
	}
	parent, _, err := m.fs.OpenDir(fsys.LookReleased, root.Dir, path.Dir(r.Filename))
	if missing(err) {
		return m.goneOrAgain(root, name, nil, "")
	}
	if err != nil {
		return "", err
	}
	defer parent.Close()
	base := path.Base(r.Filename)
	st, err := m.fs.Lstat(fsys.LookReleased, parent, base)
	if err == nil && !fsys.IsFile(&st) && !fsys.IsDir(&st) {
		return "", &fsys.KindError{Path: parent.At(base), Kind: fsys.Kind(&st)}
	}
	if err == nil {
		err = m.take(parent, base, &st, folder)
	}
	if errors.Is(err, unix.ENOENT) {
		return m.goneOrAgain(root, name, parent, base)
	}
	if errors.Is(err, unix.EXDEV) {
		return "", &fault.Error{Kind: fault.Unsupported, Op: "release", Subject: parent.At(base), Err: err,
			Hint: "an overlay cannot rename a folder of its lower layer: put the tier on a file system of its own, delete this copy"}
	}
	return Released, err
}

// take renames the copy into the attempt's folder.
func (m *Mover) take(parent *fsys.File, base string, st *unix.Stat_t, folder *fsys.File) error {
	rename := func() error { return m.fs.Rename(fsys.RenameReleased, parent, base, folder, copyName) }
	if !fsys.IsDir(st) {
		return rename()
	}
	dir, _, err := m.fs.OpenDir(fsys.RenameReleased, parent, base)
	if err != nil {
		return err
	}
	defer dir.Close()
	return m.writable(fsys.RenameReleased, dir, rename)
}

// goneOrAgain tells why a rename found nothing: a mover has taken the attempt's folder, or only the copy is gone.
func (m *Mover) goneOrAgain(root *tier.Root, name string, parent *fsys.File, base string) (ReleaseOutcome, error) {
	_, err := m.fs.Lstat(fsys.LookReleased, root.Released, name)
	if errors.Is(err, unix.ENOENT) {
		return RetryLater, nil
	}
	if err != nil || parent == nil {
		return Gone, err
	}
	_, err = m.fs.Lstat(fsys.LookReleased, parent, base)
	switch {
	case errors.Is(err, unix.ENOENT):
		return Gone, nil
	case err == nil: // it has come back this moment
		return RetryLater, nil
	}
	return "", err
}

// tidy removes the folders above the name that are empty now, never the root, and makes the release durable.
func (m *Mover) tidy(root *tier.Root, filename string) error {
	rel := path.Dir(filename)
	dir, _, err := m.fs.OpenDir(fsys.RmdirParent, root.Dir, rel)
	for missing(err) {
		rel = path.Dir(rel)
		dir, _, err = m.fs.OpenDir(fsys.RmdirParent, root.Dir, rel)
	}
	if err != nil {
		return err
	}
	defer func() { dir.Close() }()
	for rel != "." {
		above := path.Dir(rel)
		up, _, err := m.fs.OpenDir(fsys.RmdirParent, root.Dir, above)
		if err != nil {
			return err
		}
		if err := m.fs.Rmdir(fsys.RmdirParent, up, path.Base(rel)); err != nil && !errors.Is(err, unix.ENOENT) {
			up.Close()
			if isAny(err, unix.ENOTEMPTY, unix.EEXIST, unix.EBUSY, unix.EACCES, unix.EPERM) {
				break // in use, or not ours to remove
			}
			return err
		}
		dir.Close()
		dir, rel = up, above
	}
	err = m.fs.FsyncAll(fsys.Unsynced{Step: fsys.FsyncEmptied, File: dir}, fsys.Unsynced{Step: fsys.FsyncReleased, File: root.Released})
	if err != nil {
		return suspect("fsync", err)
	}
	return nil
}
