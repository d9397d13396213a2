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
	Released   ReleaseOutcome = "released" // the removal of the copy is durable: ack
	IsCurrent  ReleaseOutcome = "lives"    // the row names this tier, so the copy stays: ack
	Gone       ReleaseOutcome = "gone"     // there was no copy: ack
	RetryLater ReleaseOutcome = "again"    // a move to this tier took the attempt's folder: try again later
)

func (o ReleaseOutcome) String() string { return string(o) }

// ReleaseRequest asks for the removal of an item's copy on a tier.
type ReleaseRequest struct {
	ID       item.ID
	Token    string // names this attempt; never used twice
	Filename string
	Tier     policy.Level

	// Fence raises the row's generation in one statement, unless the row names the tier. It returns false where the
	// row does. Release calls it once, after it has made the attempt's folder and before it touches the copy. A move
	// that looked up the row before the fence cannot commit. A move that looks up the row later removes the folder first.
	Fence func(context.Context) (bool, error)
}

// Expect tells the mover that a release will come, or a move that a release will follow. Tiers then stay open for a
// moment, and empty folders in released/ are kept for reuse. Call it before asking the servers. Call done when the move
// or release is over; for a release, before its entry is acked. After the last done, no kept folder is left in
// released/ once no job has the tier open.
func (m *Mover) Expect() (done func()) { return m.tiers.Expect() }

// Release is step 8 of the protocol without its lock and its ack: it removes a copy that the row does not name. After an
// error the copy may still be there, and a retry is always safe. Once Release has renamed the copy, it never renames it
// back: an error or a crash after that leaves a folder in released/ for the sweep.
//
// Kinds: InvalidName, Unsupported (something other than a file or folder has the name; it stays), TierRefused, Suspect,
// Busy. A cancelled context gives its cause.
func (m *Mover) Release(ctx context.Context, r ReleaseRequest) (ReleaseOutcome, error) {
	outcome, err := m.release(ctx, r)
	return outcome, setLevel(wrap("release", r.ID.String()+" ("+r.Filename+") from "+r.Tier.Name, err), r.Tier)
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
	folder, err := m.attemptFolder(root, releasedName(r.ID, r.Token))
	if err != nil {
		return "", err
	}
	if folder.reserve {
		defer root.ReserveOver()
	}
	outcome, err := m.rename(ctx, r, root, folder.name)
	if err != nil {
		_ = m.deleteCopy(context.WithoutCancel(ctx), root, folder) // else the sweep removes it
		return "", err
	}
	if err := m.deleteCopy(ctx, root, folder); err != nil {
		return "", err
	}
	if outcome == IsCurrent || outcome == RetryLater {
		return outcome, nil
	}
	// This is necessary for Gone as well: the release that removed the copy may have been cut short before its removal
	// was durable.
	if err := m.removeEmptyFolders(root, r.Filename); err != nil {
		return "", err
	}
	return outcome, root.Check(fsys.RecheckTier)
}

// attemptFolder is the folder of an attempt in released/.
type attemptFolder struct {
	name    string
	reserve bool // it is the tier's reserve, which must be put back
}

// attemptFolder makes the attempt's folder. Where it can, it renames the empty folder of an attempt that is over. Where the tier
// has no room for a folder, it takes the tier's reserve: a release makes room.
func (m *Mover) attemptFolder(root *tier.Root, name string) (attemptFolder, error) {
	for {
		spare, ok := root.TakeSpare()
		if !ok {
			err := m.fs.Mkdir(fsys.MkdirReleased, root.Released, name, 0o700)
			if !isAny(err, unix.ENOSPC, unix.EDQUOT) {
				return attemptFolder{name: name}, err
			}
			return attemptFolder{name, true}, root.TakeReserve(fsys.MkdirReleased, name)
		}
		err := m.fs.RenameNew(fsys.MkdirReleased, root.Released, spare, root.Released, name)
		if fsys.CannotRenameNew(err) { // no other attempt has this name, so rename(2) replaces nothing
			err = m.fs.Rename(fsys.MkdirReleased, root.Released, spare, root.Released, name)
		}
		if !errors.Is(err, unix.ENOENT) {
			return attemptFolder{name: name}, err
		}
	}
}

// deleteCopy deletes the copy in the attempt's folder, and the folder unless the next attempt can use it. Nobody else may use
// the folder while the attempt lasts: the attempt could still rename a copy into it.
func (m *Mover) deleteCopy(ctx context.Context, root *tier.Root, folder attemptFolder) error {
	if err := m.fs.RemoveAll(ctx, fsys.DeleteReleased, root.Released, folder.name+"/"+copyName); err != nil {
		return err
	}
	if folder.reserve {
		if put, err := root.PutReserve(fsys.DeleteReleased, folder.name); put || err != nil {
			return err
		}
	} else if root.PutSpare(folder.name) {
		return nil
	}
	return m.fs.RemoveAll(ctx, fsys.DeleteReleased, root.Released, folder.name)
}

// rename moves the copy into the attempt's folder if the fence allows it.
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
		return m.whyMissing(root, name, nil, "")
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
		err = m.CheckSpelling(ctx, fsys.LookReleased, root, r.Filename)
	}
	if otherSpelling(err) {
		return Gone, nil // what is there is not the item's copy
	}
	if err == nil {
		err = m.takeCopy(parent, base, &st, folder)
	}
	if errors.Is(err, unix.ENOENT) {
		return m.whyMissing(root, name, parent, base)
	}
	if errors.Is(err, unix.EXDEV) {
		return "", &fault.Error{Kind: fault.Unsupported, Op: "release", Subject: parent.At(base), Err: err,
			Hint: "an overlay cannot rename a folder of its lower layer: put the tier on its own file system, delete this copy"}
	}
	return Released, err
}

// takeCopy renames the copy into the attempt's folder.
func (m *Mover) takeCopy(parent *fsys.File, base string, st *unix.Stat_t, folder *fsys.File) error {
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

// whyMissing tells why a rename found nothing. RetryLater: a move took the attempt's folder, or the copy has come back.
// Gone: only the copy is missing.
func (m *Mover) whyMissing(root *tier.Root, name string, parent *fsys.File, base string) (ReleaseOutcome, error) {
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
	case err == nil: // the copy came back a moment ago
		return RetryLater, nil
	}
	return "", err
}

// removeEmptyFolders removes the folders above the name that are empty now, except the root, and makes the release
// durable.
func (m *Mover) removeEmptyFolders(root *tier.Root, filename string) error {
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
				break // the folder is in use, or this process may not remove it
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
