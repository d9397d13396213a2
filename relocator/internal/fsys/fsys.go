// Package fsys is the seam between the relocator and the kernel: every file operation that can fail, block or be
// interrupted by a crash goes through it and carries the name of its Step, so that a test can break exactly that
// step. It imports no domain.
//
// All names are resolved below an open folder with openat2: no symbolic link is followed, no mount point is
// crossed, `..` leads nowhere. Linux 5.8 or later is needed.
package fsys

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Hook is called before every operation, with its step and the path that it concerns. It may block (a pause),
// end the process (a crash), or return an error, with which the operation then fails without being tried. Two
// errors have a meaning of their own: ShortWrite lets a write go through in part, Skip leaves an operation out.
type Hook func(step Step, path string) error

// Skip, returned by a Hook, makes an operation succeed without being done. It is for operations whose only result
// is their error: an fsync that is forgotten, or a deed that the hook has done in another way.
var Skip = errors.New("skip this operation")

// ShortWrite, returned by a Hook, makes a write take only so many bytes, as the kernel may.
type ShortWrite int

func (n ShortWrite) Error() string { return fmt.Sprintf("short write of %d bytes", int(n)) }

// FS does the operations. The zero value is usable.
type FS struct {
	Hook  Hook
	Syncs *Syncs // shares syncs; nil: each is its own
}

// File is an open regular file or folder. Its owner closes it; there is no finalizer.
type File struct {
	fd       int
	path     string
	dev, ino uint64
	folder   bool
	opened   uint64 // counts what was opened, by the time when it was open
}

var opens atomic.Uint64

// stat fills in what never changes of an open file.
func (f *File) stat(st *unix.Stat_t) error {
	if err := unix.Fstat(f.fd, st); err != nil {
		return err
	}
	f.dev, f.ino, f.folder = st.Dev, st.Ino, IsDir(st)
	return nil
}

// Is tells whether a result of stat is of the open file.
func (f *File) Is(st *unix.Stat_t) bool { return f.dev == st.Dev && f.ino == st.Ino }

// Path is the full path under which the file was opened. It serves messages, never an operation.
func (f *File) Path() string { return f.path }

// Close closes; nil is allowed. What was written counts only after Fsync, so there is no error to look at.
func (f *File) Close() {
	if f != nil {
		_ = unix.Close(f.fd)
	}
}

// At is the path of name in the folder f, for messages.
func (f *File) At(name string) string {
	if name == "." {
		return f.path
	}
	return f.path + "/" + name
}

// KindError says that something other than a regular file or folder is in the place of one.
type KindError struct {
	Path string
	Kind string // "a symbolic link", "a FIFO", ...
	Err  error  // the kernel's answer, where it was the one to refuse; may be nil
}

func (e *KindError) Error() string { return e.Path + " is " + e.Kind }
func (e *KindError) Unwrap() error { return e.Err }

// Kind names a file's type.
func Kind(st *unix.Stat_t) string {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "a regular file"
	case unix.S_IFDIR:
		return "a folder"
	case unix.S_IFLNK:
		return "a symbolic link"
	case unix.S_IFIFO:
		return "a FIFO"
	case unix.S_IFSOCK:
		return "a socket"
	case unix.S_IFCHR:
		return "a character device"
	case unix.S_IFBLK:
		return "a block device"
	}
	return "of an unknown type"
}

// IsFile and IsDir tell types apart; Same tells whether two results of stat are of one inode.
func IsFile(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFREG }
func IsDir(st *unix.Stat_t) bool  { return st.Mode&unix.S_IFMT == unix.S_IFDIR }
func Same(a, b *unix.Stat_t) bool { return a.Dev == b.Dev && a.Ino == b.Ino }
func pathError(step Step, path string, err error) error {
	return &fs.PathError{Op: string(step), Path: path, Err: err}
}

// do runs one operation after the hook, again when a signal interrupts it.
func (s FS) do(step Step, path string, op func() error) error {
	if skip, err := s.ask(step, path); skip || err != nil {
		return err
	}
	if err := uninterrupted(op); err != nil {
		return pathError(step, path, err)
	}
	return nil
}

// doIn is do with a name in a folder, whose path is only made where somebody asks for it.
func (s FS) doIn(step Step, dir *File, name string, op func() error) error {
	if s.Hook != nil {
		return s.do(step, dir.At(name), op)
	}
	if err := uninterrupted(op); err != nil {
		return pathError(step, dir.At(name), err)
	}
	return nil
}

func uninterrupted(op func() error) error {
	for {
		if err := op(); err != unix.EINTR {
			return err
		}
	}
}

// ask calls the hook.
func (s FS) ask(step Step, path string) (skip bool, err error) {
	if s.Hook == nil {
		return false, nil
	}
	switch err := s.Hook(step, path); err {
	case nil:
		return false, nil
	case Skip:
		return true, nil
	default:
		return false, pathError(step, path, err)
	}
}

// OpenRoot opens a tier's root by its path, which an operator chose: here alone, links are followed.
func (s FS) OpenRoot(step Step, path string) (*File, unix.Stat_t, error) {
	f := &File{fd: -1, path: path}
	var st unix.Stat_t
	err := s.do(step, path, func() (err error) {
		f.fd, err = unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, st, err
	}
	f.opened = opens.Add(1)
	if err := f.stat(&st); err != nil {
		f.Close()
		return nil, st, pathError(step, path, err)
	}
	return f, st, nil
}

// Open opens a regular file or folder for reading. Anything else is a *KindError, without blocking on it.
func (s FS) Open(step Step, dir *File, name string) (*File, unix.Stat_t, error) {
	return s.openat2(step, dir, name, unix.O_RDONLY, 0)
}

// OpenDir opens a folder.
func (s FS) OpenDir(step Step, dir *File, name string) (*File, unix.Stat_t, error) {
	return s.openat2(step, dir, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
}

// StatPath finds the file or folder that a name leads to, as Open does, but opens it for nothing.
func (s FS) StatPath(step Step, dir *File, name string) (unix.Stat_t, error) {
	f, st, err := s.openat2(step, dir, name, unix.O_PATH, 0)
	f.Close()
	return st, err
}

// StatRoot looks where a tier's path leads; links are followed, as by OpenRoot.
func (s FS) StatRoot(step Step, path string) (st unix.Stat_t, err error) {
	err = s.do(step, path, func() error { return unix.Stat(path, &st) })
	return st, err
}

// Create makes a new regular file, readable and writable by its owner. An existing name is EEXIST.
func (s FS) Create(step Step, dir *File, name string) (*File, error) {
	f, _, err := s.openat2(step, dir, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
	return f, err
}

func (s FS) openat2(step Step, dir *File, name string, flags, mode uint64) (*File, unix.Stat_t, error) {
	f := &File{fd: -1, path: dir.At(name)}
	var st unix.Stat_t
	// RESOLVE_NO_SYMLINKS refuses a link at the end as well; O_NOFOLLOW with O_DIRECTORY would only change ELOOP into
	// ENOTDIR, as if a file were there.
	if flags&unix.O_DIRECTORY == 0 {
		flags |= unix.O_NOFOLLOW
	}
	if flags&unix.O_PATH == 0 {
		flags |= unix.O_NONBLOCK
	}
	err := s.do(step, f.path, func() (err error) {
		f.fd, err = unix.Openat2(dir.fd, name, &unix.OpenHow{
			Flags: flags | unix.O_CLOEXEC,
			Mode:  mode,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS |
				unix.RESOLVE_NO_XDEV,
		})
		return err
	})
	switch {
	case errors.Is(err, unix.ELOOP):
		return nil, st, &KindError{f.path, "a symbolic link, or lies behind one", err}
	case errors.Is(err, unix.EXDEV):
		return nil, st, &KindError{f.path, "a mount point, or lies behind one", err}
	case errors.Is(err, unix.ENXIO):
		return nil, st, &KindError{f.path, "a socket or a device", err}
	case errors.Is(err, unix.ENOSYS):
		return nil, st, fmt.Errorf("%w (openat2 is missing: Linux 5.8 or later is needed)", err)
	case err != nil:
		return nil, st, err
	}
	f.opened = opens.Add(1)
	if err := f.stat(&st); err != nil {
		f.Close()
		return nil, st, pathError(step, f.path, err)
	}
	if !IsFile(&st) && !IsDir(&st) {
		f.Close()
		return nil, st, &KindError{f.path, Kind(&st), nil}
	}
	return f, st, nil
}

// Stat is fstat.
func (s FS) Stat(step Step, f *File) (st unix.Stat_t, err error) {
	err = s.do(step, f.path, func() error { return unix.Fstat(f.fd, &st) })
	return st, err
}

// Lstat looks at a name in an open folder, without following it.
func (s FS) Lstat(step Step, dir *File, name string) (st unix.Stat_t, err error) {
	err = s.doIn(step, dir, name, func() error {
		return unix.Fstatat(dir.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	})
	return st, err
}

// List returns the names in a folder, sorted by their bytes.
func (s FS) List(step Step, dir *File) ([]string, error) {
	var all []string
	err := s.Each(step, dir, func(names []string) error {
		all = append(all, names...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(all)
	return all, nil
}

// Each calls fn with the names in a folder, without . and .., some hundreds at a time and in no order, and stops at its
// first error, which it returns as it is. A folder may hold more names than memory should.
func (s FS) Each(step Step, dir *File, fn func(names []string) error) error {
	// A descriptor of its own begins at the first entry.
	d, _, err := s.OpenDir(step, dir, ".")
	if err != nil {
		return err
	}
	defer d.Close()
	buf := make([]byte, 32<<10)
	for {
		var n int
		err := s.do(step, dir.path, func() (err error) {
			n, err = unix.ReadDirent(d.fd, buf)
			return err
		})
		if err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
		_, _, names := unix.ParseDirent(buf[:n], -1, nil)
		if err := fn(names); err != nil {
			return err
		}
	}
}

// Mkdir makes a folder.
func (s FS) Mkdir(step Step, dir *File, name string, mode uint32) error {
	return s.doIn(step, dir, name, func() error { return unix.Mkdirat(dir.fd, name, mode) })
}

// Link gives the file from/name one more name; an existing one is EEXIST. A symbolic link is not followed.
func (s FS) Link(step Step, from *File, name string, to *File, newName string) error {
	return s.doIn(step, to, newName, func() error { return unix.Linkat(from.fd, name, to.fd, newName, 0) })
}

// Rename renames, within one file system.
func (s FS) Rename(step Step, from *File, name string, to *File, newName string) error {
	return s.doIn(step, to, newName, func() error { return unix.Renameat(from.fd, name, to.fd, newName) })
}

// RenameNew renames to a name that is free; an existing one is EEXIST.
func (s FS) RenameNew(step Step, from *File, name string, to *File, newName string) error {
	return s.doIn(step, to, newName, func() error {
		return unix.Renameat2(from.fd, name, to.fd, newName, unix.RENAME_NOREPLACE)
	})
}

// Unlink removes a name that is not a folder's.
func (s FS) Unlink(step Step, dir *File, name string) error {
	return s.doIn(step, dir, name, func() error { return unix.Unlinkat(dir.fd, name, 0) })
}

// Rmdir removes an empty folder.
func (s FS) Rmdir(step Step, dir *File, name string) error {
	return s.doIn(step, dir, name, func() error { return unix.Unlinkat(dir.fd, name, unix.AT_REMOVEDIR) })
}

// RemoveAll removes a name and all that is in it. It goes on until the name is gone, whoever else removes or
// adds things meanwhile, and follows no link. A name that is not there is no error.
func (s FS) RemoveAll(ctx context.Context, step Step, dir *File, name string) error {
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		err := s.Unlink(step, dir, name)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EISDIR) {
			return err
		}
		err = s.empty(ctx, step, dir, name)
		if err != nil && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
			return err
		}
		err = s.Rmdir(step, dir, name)
		switch {
		case err == nil || errors.Is(err, unix.ENOENT):
			return nil
		case !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENOTDIR):
			return err
		}
	}
}

func (s FS) empty(ctx context.Context, step Step, dir *File, name string) error {
	d, st, err := s.OpenDir(step, dir, name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.Close()
	if st.Mode&0o700 != 0o700 {
		// Without this, a relocator that is not root could not remove what a read-only folder holds.
		if err := s.Chmod(step, d, 0o700); err != nil {
			return err
		}
	}
	names, err := s.List(step, d)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	for _, n := range names {
		if err := s.RemoveAll(ctx, step, d, n); err != nil {
			return err
		}
	}
	return nil
}

// ReadAt reads once; fewer bytes than asked for are no error, 0 is the end.
func (s FS) ReadAt(step Step, f *File, p []byte, off int64) (n int, err error) {
	err = s.do(step, f.path, func() (err error) {
		n, err = unix.Pread(f.fd, p, off)
		return err
	})
	return max(n, 0), err
}

// WriteAt writes once; it may write fewer bytes than it was given.
func (s FS) WriteAt(step Step, f *File, p []byte, off int64) (n int, err error) {
	if s.Hook != nil {
		err := s.Hook(step, f.path)
		var short ShortWrite
		switch {
		case errors.As(err, &short):
			p = p[:min(len(p), int(short))]
		case err != nil:
			return 0, pathError(step, f.path, err)
		}
	}
	err = FS{}.do(step, f.path, func() (err error) {
		n, err = unix.Pwrite(f.fd, p, off)
		return err
	})
	return max(n, 0), err
}

// Truncate sets a file's length.
func (s FS) Truncate(step Step, f *File, size int64) error {
	return s.do(step, f.path, func() error { return unix.Ftruncate(f.fd, size) })
}

// Allocate reserves space; where the file system cannot, the error is EOPNOTSUPP.
func (s FS) Allocate(step Step, f *File, off, n int64) error {
	return s.do(step, f.path, func() error { return unix.Fallocate(f.fd, 0, off, n) })
}

// Space tells how many bytes are free for this process on the file system of f, and how many it has.
func (s FS) Space(step Step, f *File) (free, total int64, err error) {
	var st unix.Statfs_t
	err = s.do(step, f.path, func() error { return unix.Fstatfs(f.fd, &st) })
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, err
}

// Clone makes dst share src's blocks.
func (s FS) Clone(step Step, dst, src *File) error {
	return s.do(step, dst.path, func() error { return unix.IoctlFileClone(dst.fd, src.fd) })
}

// Segment is a part of a file that holds data, from Start to before End.
type Segment struct{ Start, End int64 }

// Segments returns the parts of a file that are not holes, as the file system tells; all of it where that cannot
// tell. Some have told lies about files just written: read the holes too before believing them.
func (s FS) Segments(step Step, f *File, size int64) ([]Segment, error) {
	var segs []Segment
	for off := int64(0); off < size; {
		var start, end int64
		err := s.do(step, f.path, func() (err error) {
			if start, err = unix.Seek(f.fd, off, unix.SEEK_DATA); err == nil {
				end, err = unix.Seek(f.fd, start, unix.SEEK_HOLE)
			}
			return err
		})
		switch {
		case errors.Is(err, unix.ENXIO): // no data after off
			return segs, nil
		case errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP):
			return []Segment{{0, size}}, nil
		case err != nil:
			return nil, err
		}
		if start >= size {
			return segs, nil
		}
		end = min(end, size)
		segs = append(segs, Segment{start, end})
		off = end
	}
	return segs, nil
}

// StartWriteback tells the kernel to begin to write a part of a file. It waits for nothing and promises nothing:
// waiting here would swallow an error that Fsync must see.
func (s FS) StartWriteback(step Step, f *File, off, n int64) error {
	return s.do(step, f.path, func() error {
		return unix.SyncFileRange(f.fd, off, n, unix.SYNC_FILE_RANGE_WRITE)
	})
}

// ReadAhead tells the kernel that the file will be read from its begin to its end. It is advice, without an error.
func (s FS) ReadAhead(f *File) { _ = unix.Fadvise(f.fd, 0, 0, unix.FADV_SEQUENTIAL) }

// DropCache drops a file's clean pages, so that the next read comes from the medium. Where the kernel can tell
// (6.5 and later) it tries again while some are left: pages that were just written can be busy for a moment.
// Pages that stay have no other medium (tmpfs) or somebody else has them mapped.
func (s FS) DropCache(step Step, f *File) error {
	for range 3 {
		if err := s.do(step, f.path, func() error { return unix.Fadvise(f.fd, 0, 0, unix.FADV_DONTNEED) }); err != nil {
			return err
		}
		var left unix.Cachestat_t
		if unix.Cachestat(uint(f.fd), &unix.CachestatRange{}, &left, 0) != nil || left.Cache == 0 {
			return nil
		}
	}
	return nil
}

// Of access lists, a new file may have inherited some from its folder, which src does not have.
var accessLists = []string{"system.posix_acl_access", "system.posix_acl_default"}

// Resolved is the path of an open folder with every link in it resolved.
func Resolved(f *File) (string, error) { return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.fd)) }
