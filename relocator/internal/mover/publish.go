package mover

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/shared/fault"
)

// publish gives the temporary its name, never over another, and makes the name durable. It returns a Copy where
// the copy is, or may be, visible.
func (j *job) publish(ctx context.Context, src *opened, made *Copy) (*Copy, error) {
	for range tries {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		folders, err := j.folders()
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, j.taken(err)
		}
		err = j.place(src, folders[len(folders)-1])
		if err == nil {
			err = j.settle(src, folders)
			j.closeFolders(folders)
			return made, err
		}
		j.closeFolders(folders)
		switch {
		case errors.Is(err, unix.EEXIST):
			adopted, err := j.adopt(ctx, src)
			if adopted != nil {
				adopted.attempt = j.attempt
			}
			if adopted != nil || err != nil {
				return adopted, err
			}
		case errors.Is(err, unix.ENOENT):
			// Either a releaser has removed the folder, which was empty, or the sweep the temporary.
			if j.swept(src) {
				return nil, fault.New(fault.Lost, "publish", j.attempt, errors.New("the sweep has removed the attempt"))
			}
		case src.tree != nil && isAny(err, unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP):
			return nil, &fault.Error{Kind: fault.TierRefused, Op: "publish", Subject: j.to.Dir.At(j.r.Filename), Err: err,
				Hint: "the tier's file system cannot rename without replacing, which directories need"}
		default:
			return made, err // of some errors nobody knows whether they came after the deed
		}
	}
	return nil, fault.New(fault.Busy, "publish", j.to.Dir.At(j.r.Filename),
		errors.New("its folder was removed again and again"))
}

func (j *job) place(src *opened, folder *fsys.File) error {
	if src.tree == nil {
		return j.fs.Link(fsys.Publish, j.to.Tmp, j.attempt, folder, src.base)
	}
	attempt, _, err := j.fs.OpenDir(fsys.Publish, j.to.Tmp, j.attempt)
	if err != nil {
		return err
	}
	defer attempt.Close()
	tree, _, err := j.fs.OpenDir(fsys.Publish, attempt, treeName)
	if err != nil {
		return err
	}
	defer tree.Close()
	return j.writable(fsys.Publish, tree, func() error { return j.fs.RenameNew(fsys.Publish, attempt, treeName, folder, src.base) })
}

func (j *job) swept(src *opened) bool {
	name := j.attempt
	if src.tree != nil {
		name += "/" + treeName
	}
	_, err := j.fs.Lstat(fsys.Publish, j.to.Tmp, name)
	return errors.Is(err, unix.ENOENT)
}

// settle makes what was published durable and looks whether it is where the tier's path leads.
func (j *job) settle(src *opened, folders []*fsys.File) error {
	if err := j.fsyncFolders(folders); err != nil {
		return err
	}
	if src.tree != nil {
		attempt, _, err := j.fs.OpenDir(fsys.FsyncAttempt, j.to.Tmp, j.attempt)
		if err == nil {
			err = j.fs.Fsync(fsys.FsyncAttempt, attempt)
			attempt.Close()
		}
		if err != nil && !errors.Is(err, unix.ENOENT) { // the sweep may have taken it: then it is reported
			return suspect("fsync", err)
		}
	}
	return j.to.Check(fsys.RecheckTier)
}

// folders opens the folders above the final name, from the tier's root down, and makes the missing ones like
// those of the source. ENOENT: a releaser has removed an empty one meanwhile.
func (j *job) folders() ([]*fsys.File, error) {
	folders := []*fsys.File{j.to.Dir}
	parts := strings.Split(j.r.Filename, "/")
	for i, part := range parts[:len(parts)-1] {
		dir := folders[i]
		sub, _, err := j.fs.OpenDir(fsys.MakeFolder, dir, part)
		if errors.Is(err, unix.ENOENT) {
			sub, err = j.folder(dir, part, strings.Join(parts[:i+1], "/"))
		}
		if err != nil {
			j.closeFolders(folders)
			return nil, err
		}
		folders = append(folders, sub)
	}
	return folders, nil
}

// folder makes a folder above the final name. It appears with its owner, mode and attributes: whoever finds one uses it as it
// is.
func (j *job) folder(dir *fsys.File, name, path string) (*fsys.File, error) {
	temp := tempName(j.r.ID, j.r.EventID, j.r.Token+"-folder")
	sub, err := j.folderLike(path, temp, dir, name)
	if err == nil {
		return sub, nil
	}
	_ = j.fs.RemoveAll(context.Background(), fsys.RemoveTemp, j.to.Tmp, temp) // or the sweep
	if isAny(err, unix.EEXIST, unix.ENOTEMPTY) {                              // somebody else was faster
		sub, _, err = j.fs.OpenDir(fsys.MakeFolder, dir, name)
	}
	return sub, err
}

func (j *job) folderLike(path, temp string, dir *fsys.File, name string) (*fsys.File, error) {
	like, st, err := j.fs.OpenDir(fsys.OpenSource, j.from.Dir, path)
	if err != nil {
		return nil, err
	}
	defer like.Close()
	if err := j.fs.Mkdir(fsys.MakeFolder, j.to.Tmp, temp, 0o700); err != nil {
		return nil, err
	}
	sub, _, err := j.fs.OpenDir(fsys.MakeFolder, j.to.Tmp, temp)
	if err != nil {
		return nil, err
	}
	if err = j.metadata(sub, like, &st); err == nil {
		err = j.writable(fsys.MakeFolder, sub, func() error {
			err := j.fs.RenameNew(fsys.MakeFolder, j.to.Tmp, temp, dir, name)
			if isAny(err, unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP) { // it replaces an empty folder at most
				err = j.fs.Rename(fsys.MakeFolder, j.to.Tmp, temp, dir, name)
			}
			return err
		})
	}
	if err != nil {
		sub.Close()
		return nil, err
	}
	return sub, nil
}

// writable calls rename while a folder's owner may write to it: who renames a folder into another must, unless it is root,
// because the folder above is an entry of it.
func (m *Mover) writable(step fsys.Step, folder *fsys.File, rename func() error) error {
	st, err := m.fs.Stat(step, folder)
	if err != nil || st.Mode&unix.S_IWUSR != 0 {
		if err == nil {
			err = rename()
		}
		return err
	}
	if err := m.fs.Chmod(step, folder, st.Mode|unix.S_IWUSR); err != nil {
		return err
	}
	err = rename()
	if cerr := m.fs.Chmod(step, folder, st.Mode); err == nil {
		err = cerr
	}
	return err
}

// fsyncFolders goes all the way up: a folder that was there already may be another mover's, made a moment ago and
// not durable yet.
func (j *job) fsyncFolders(folders []*fsys.File) error {
	all := make([]fsys.Unsynced, 0, len(folders))
	for _, f := range slices.Backward(folders) {
		all = append(all, fsys.Unsynced{Step: fsys.FsyncFolder, File: f})
	}
	if err := j.fs.FsyncAll(all...); err != nil {
		return suspect("fsync", err)
	}
	return nil
}

func (j *job) closeFolders(folders []*fsys.File) {
	for _, f := range folders[1:] {
		f.Close()
	}
}

// taken turns an error of opening the final name, or a folder above it, into a conflict where that is what it is.
func (j *job) taken(err error) error {
	var kind *fsys.KindError
	if errors.Is(err, unix.ENOTDIR) || errors.As(err, &kind) {
		return conflict(j.to.Dir.At(j.r.Filename), "the name, or a folder of it, is taken by something else: %w", err)
	}
	return err
}

// adopt takes over what has the final name, if it holds the source's bytes, and makes it durable: it may be the
// work of an attempt that was cut short, or of an operator's cp. Both results are nil where the name is free.
func (j *job) adopt(ctx context.Context, src *opened) (*Copy, error) {
	have, err := j.find(fsys.LookTarget, j.to, j.r.Filename)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, j.taken(err)
	}
	defer have.Close()
	n, err := j.same(ctx, src, have)
	if err == nil || fault.Is(err, fault.Conflict) {
		if perr := j.bothInPlace(src, have); perr != nil {
			return nil, perr
		}
	}
	if err != nil {
		return nil, err
	}
	made := &Copy{Method: n.method, Bytes: j.total, Digest: digest(n.sum), Adopted: true, mover: j.Mover, level: j.r.To}
	if n.isDir() {
		if made.Method = n.methods(); made.Method != Linked {
			if err := j.sums(ctx, fsys.ReadAdopted, n, src.file, j.progress); err != nil {
				return nil, err
			}
			made.Digest = digest(n.digest())
		}
	}
	folders, err := j.folders()
	if err != nil {
		return nil, err
	}
	defer j.closeFolders(folders)
	if err := j.fsyncFolders(folders); err != nil {
		return nil, err
	}
	if err := j.to.Check(fsys.RecheckTier); err != nil {
		return nil, err
	}
	j.done = j.total
	j.progress()
	return made, nil
}

func (j *job) bothInPlace(src, have *opened) error {
	there, err := j.inPlace(fsys.RecheckSource, j.from, j.r.Filename, src)
	if err == nil && there {
		there, err = j.inPlace(fsys.LookTarget, j.to, j.r.Filename, have)
	}
	if err == nil && !there {
		err = fault.New(fault.Busy, "compare", j.r.Filename, errors.New("it was taken away while it was read"))
	}
	return err
}

// same compares what is at the source, a, with what is at the target, b, and makes b durable on the way. A
// difference is a conflict. Bytes count, and names; owners, modes and times do not.
func (j *job) same(ctx context.Context, a, b *opened) (*node, error) {
	n := &node{name: a.base, st: a.st, method: Linked}
	if fsys.IsDir(&a.st) != fsys.IsDir(&b.st) {
		return nil, conflict(b.file.Path(), "it is %s, and the source is %s", fsys.Kind(&b.st), fsys.Kind(&a.st))
	}
	if n.isDir() {
		err := j.sameKids(ctx, n, a.file, b.file)
		if err == nil {
			err = j.fsyncAdopted(b)
		}
		return n, err
	}
	if fsys.Same(&a.st, &b.st) {
		return n, j.fsyncAdopted(b)
	}
	n.method = Copied
	// Looked at anew: a link that we have made ourselves has changed the source's times.
	before, err := j.fs.Stat(fsys.RecheckSource, a.file)
	if err != nil {
		return nil, err
	}
	if before.Size != b.st.Size {
		return nil, conflict(b.file.Path(), "it has %d bytes, and the source %d", b.st.Size, before.Size)
	}
	if err := j.fsyncAdopted(b); err != nil {
		return nil, err
	}
	if j.verify == ReadBack {
		if err := j.fs.DropCache(fsys.DropCache, b.file); err != nil {
			return nil, err
		}
	}
	theirs, _, err := j.sum(ctx, fsys.ReadAdopted, b.file, b.st.Size, j.progress)
	if err != nil {
		return nil, err
	}
	if n.sum, _, err = j.sum(ctx, fsys.ReadAdopted, a.file, before.Size, j.progress); err != nil {
		return nil, err
	}
	now, err := j.fs.Stat(fsys.RecheckSource, a.file)
	if err != nil {
		return nil, err
	}
	if !unchanged(&now, &before) {
		return nil, changed(a.file.Path())
	}
	if !bytes.Equal(theirs, n.sum) {
		return nil, conflict(b.file.Path(), "it has other bytes than the source: sha256 %x, and the source %x", theirs, n.sum)
	}
	return n, nil
}

func (j *job) fsyncAdopted(i *opened) error {
	return j.fsyncFound(i.file, &i.st, func() error { return j.fsync(fsys.FsyncAdopted, i.file, nil) })
}

func (j *job) sameKids(ctx context.Context, n *node, a, b *fsys.File) error {
	ours, err := j.fs.List(fsys.ReadAdopted, a)
	if err != nil {
		return err
	}
	theirs, err := j.fs.List(fsys.ReadAdopted, b)
	if err != nil {
		return err
	}
	if !slices.Equal(ours, theirs) {
		return conflict(b.Path(), "it has %d entries that are not those of the source, which has %d", len(theirs), len(ours))
	}
	for _, name := range ours {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		k, err := j.sameKid(ctx, name, a, b)
		if err != nil {
			return err
		}
		n.kids = append(n.kids, k)
		j.progress() // each may have waited for the disk
	}
	return nil
}

func (j *job) sameKid(ctx context.Context, name string, a, b *fsys.File) (*node, error) {
	fa, sa, err := j.openIn(fsys.ReadAdopted, a, name)
	if err != nil {
		return nil, err
	}
	defer fa.Close()
	fb, sb, err := j.openIn(fsys.ReadAdopted, b, name)
	if err != nil {
		return nil, j.taken(err)
	}
	defer fb.Close()
	return j.same(ctx, &opened{base: name, file: fa, st: sa}, &opened{base: name, file: fb, st: sb})
}
