package mover

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/tier"
	"github.com/tierflow/tierflow/shared/fault"
)

// publish gives the temporary its final name, without replacing anything, and makes the name durable. It returns a Copy
// where the copy is visible, or may be.
func (j *job) publish(ctx context.Context, src *opened, made *Copy) (*Copy, error) {
	for range maxTries {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		folders, err := j.folders(ctx)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, j.nameTaken(err)
		}
		err = j.place(src, folders[len(folders)-1])
		if err == nil {
			err = j.makeDurable(src, folders)
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
			// Either a releaser removed the empty folder, or the sweep removed the temporary.
			if j.swept(src) {
				return nil, fault.New(fault.Lost, "publish", j.attempt, errors.New("the sweep has removed the attempt"))
			}
		case src.tree != nil && fsys.CannotRenameNew(err):
			return nil, j.noDirectories(fmt.Errorf("%w: %w", tier.NoDirectories, err))
		default:
			return made, err // after some errors (EIO) the name may be there
		}
	}
	return nil, fault.New(fault.Busy, "publish", j.to.Dir.At(j.r.Filename),
		errors.New("other attempts removed its folder at every try"))
}

// place gives the temporary its final name in folder.
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

// swept tells whether the sweep removed the temporary.
func (j *job) swept(src *opened) bool {
	name := j.attempt
	if src.tree != nil {
		name += "/" + treeName
	}
	_, err := j.fs.Lstat(fsys.Publish, j.to.Tmp, name)
	return errors.Is(err, unix.ENOENT)
}

// makeDurable makes the published name durable. It then checks that the tier's path still leads to the same tier.
func (j *job) makeDurable(src *opened, folders []*fsys.File) error {
	if err := j.fsyncFolders(folders); err != nil {
		return err
	}
	if src.tree != nil {
		attempt, _, err := j.fs.OpenDir(fsys.FsyncAttempt, j.to.Tmp, j.attempt)
		if err == nil {
			err = j.fs.Fsync(fsys.FsyncAttempt, attempt)
			attempt.Close()
		}
		if err != nil && !errors.Is(err, unix.ENOENT) { // ENOENT: the sweep removed the record, and has reported the stray
			return suspect("fsync", err)
		}
	}
	return j.to.Check(fsys.RecheckTier)
}

// folders opens the folders above the final name, from the tier's root down. It makes the missing ones with the owner,
// mode and attributes of the source's folders. ENOENT: a releaser removed an empty one meanwhile. A *fsys.SpellingError: a
// folder with another name has the place.
func (j *job) folders(ctx context.Context) ([]*fsys.File, error) {
	folders := []*fsys.File{j.to.Dir}
	parts := strings.Split(j.r.Filename, "/")
	for i, part := range parts[:len(parts)-1] {
		dir := folders[i]
		sub, _, err := j.fs.OpenDir(fsys.MakeFolder, dir, part)
		if errors.Is(err, unix.ENOENT) {
			sub, err = j.folder(dir, part, strings.Join(parts[:i+1], "/"))
		}
		if err == nil {
			if err = j.to.CheckSpelling(ctx, fsys.MakeFolder, dir, part); err != nil {
				sub.Close()
			}
		}
		if err != nil {
			j.closeFolders(folders)
			return nil, err
		}
		folders = append(folders, sub)
	}
	return folders, nil
}

// folder makes a folder above the final name. The folder gets its owner, mode and attributes before it gets its name,
// because other attempts use an existing folder as it is.
func (j *job) folder(dir *fsys.File, name, path string) (*fsys.File, error) {
	temp := tempName(j.r.ID, j.r.EventID, j.r.Token+"-folder")
	sub, err := j.folderLike(path, temp, dir, name)
	if err == nil {
		return sub, nil
	}
	_ = j.fs.RemoveAll(context.Background(), fsys.RemoveTemp, j.to.Tmp, temp) // else the sweep removes it
	if isAny(err, unix.EEXIST, unix.ENOTEMPTY) {                              // another attempt was faster
		sub, _, err = j.fs.OpenDir(fsys.MakeFolder, dir, name)
	}
	return sub, err
}

// folderLike makes dir/name with the owner, mode and attributes of the source's folder at path.
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
			if fsys.CannotRenameNew(err) { // rename(2) replaces an empty folder at most
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

// writable makes a folder writable for its owner while it calls rename. Renaming a folder into another one changes its
// entry `..`. A process that is not root needs the right to write to the folder for that (rename(2), EACCES).
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

// fsyncFolders syncs all folders up to the tier's root. A folder that was already there may not be durable yet, because
// another attempt may have made it a moment ago.
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

// nameTaken turns an error of opening the final name, or a folder above it, into a conflict where something else has
// that name.
func (j *job) nameTaken(err error) error {
	var kind *fsys.KindError
	if otherSpelling(err) {
		return &fault.Error{Kind: fault.Conflict, Op: "publish", Subject: j.to.Dir.At(j.r.Filename), Err: err,
			Hint: "give one of the two items another filename, or put the tier on a file system that tells the names apart"}
	}
	if errors.Is(err, unix.ENOTDIR) || errors.As(err, &kind) {
		return conflict(j.to.Dir.At(j.r.Filename), "something else has the name, or the name of a folder above it: %w", err)
	}
	return err
}

// adopt takes over an existing copy under the final name if it holds the source's bytes, and makes it durable. An earlier
// attempt that was cut short, or an operator's cp, may have left it. Both results are nil where the name is free.
func (j *job) adopt(ctx context.Context, src *opened) (*Copy, error) {
	have, err := j.find(ctx, fsys.LookTarget, j.to, j.r.Filename)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, j.nameTaken(err)
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
	folders, err := j.folders(ctx)
	if err != nil {
		return nil, j.nameTaken(err)
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

// bothInPlace refuses a comparison whose source or target lost its name meanwhile.
func (j *job) bothInPlace(src, have *opened) error {
	there, err := j.inPlace(fsys.RecheckSource, j.from, j.r.Filename, src)
	if err == nil && there {
		there, err = j.inPlace(fsys.LookTarget, j.to, j.r.Filename, have)
	}
	if err == nil && !there {
		err = fault.New(fault.Busy, "compare", j.r.Filename, errors.New("it was removed while it was read"))
	}
	return err
}

// same compares the source a with the target b and makes b durable. A difference in names or bytes is a conflict. Owners,
// modes and times do not count.
func (j *job) same(ctx context.Context, a, b *opened) (*node, error) {
	n := &node{name: a.base, st: a.st, method: Linked}
	if fsys.IsDir(&a.st) != fsys.IsDir(&b.st) {
		return nil, conflict(b.file.Path(), "it is %s, and the source is %s", fsys.Kind(&b.st), fsys.Kind(&a.st))
	}
	if n.isDir() {
		err := j.sameChildren(ctx, n, a.file, b.file)
		if err == nil {
			err = j.fsyncAdopted(b)
		}
		return n, err
	}
	if fsys.Same(&a.st, &b.st) {
		return n, j.fsyncAdopted(b)
	}
	n.method = Copied
	// A link that this attempt made has changed the source's ctime since it was opened.
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

func (j *job) sameChildren(ctx context.Context, n *node, a, b *fsys.File) error {
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
		k, err := j.sameChild(ctx, name, a, b)
		if err != nil {
			return err
		}
		n.children = append(n.children, k)
		j.progress() // each file may have waited for the disk
	}
	return nil
}

func (j *job) sameChild(ctx context.Context, name string, a, b *fsys.File) (*node, error) {
	fa, sa, err := j.openIn(fsys.ReadAdopted, a, name)
	if err != nil {
		return nil, err
	}
	defer fa.Close()
	fb, sb, err := j.openIn(fsys.ReadAdopted, b, name)
	if err != nil {
		return nil, j.nameTaken(err)
	}
	defer fb.Close()
	return j.same(ctx, &opened{base: name, file: fa, st: sa}, &opened{base: name, file: fb, st: sb})
}
