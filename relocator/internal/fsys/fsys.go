// Package fsys is the layer between the relocator and the kernel. Every file operation that can fail, block or be
// cut short by a crash goes through it and carries the name of its Step. A test can therefore break exactly that step.
//
// The package knows files and folders only. It imports nothing of the domain.
//
// openat2(2) resolves every name below an open folder (RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV). No
// symbolic link is followed, no mount point is crossed, and `..` cannot leave the folder. Linux 5.8 or later is needed.
package fsys

import (
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Hook is called before every operation, with its step and its path. It may block (a pause), end the process (a
// crash), or return an error. The operation then fails with that error and is not tried. Two errors have a meaning of
// their own: ShortWrite shortens a write, and Skip leaves the operation out.
type Hook func(step Step, path string) error

// Skip, returned by a Hook, makes an operation succeed although it is not done. Use it only for operations whose one
// result is their error, such as an fsync, or when the hook has done the operation in another way.
var Skip = errors.New("skip this operation")

// ShortWrite, returned by a Hook, makes a write take at most so many bytes, as write(2) may.
type ShortWrite int

func (n ShortWrite) Error() string { return fmt.Sprintf("short write of %d bytes", int(n)) }

// FS does the operations. The zero value is usable.
type FS struct {
	Hook     Hook      // nil: none
	Syncs    *Syncs    // lets operations share syncs; nil: every operation syncs for itself
	InFlight *InFlight // notes each operation while it lasts; nil: nobody does
}

// File is an open regular file or folder. The caller must close it: there is no finalizer.
type File struct {
	fd       int
	path     string
	dev, ino uint64
	folder   bool
	opened   uint64 // the value of opens just after this file was opened: it orders files by the time of their opening
}

// opens counts the files that this process has opened.
var opens atomic.Uint64

// stat fills st, and the fields of f that never change while it is open.
func (f *File) stat(st *unix.Stat_t) error {
	if err := unix.Fstat(f.fd, st); err != nil {
		return err
	}
	f.dev, f.ino, f.folder = st.Dev, st.Ino, IsDir(st)
	return nil
}

// Is tells whether st describes the open file.
func (f *File) Is(st *unix.Stat_t) bool { return f.dev == st.Dev && f.ino == st.Ino }

// Path is the full path under which the file was opened. It is for messages only: the name may lead elsewhere by now.
func (f *File) Path() string { return f.path }

// Close closes the file; nil is allowed. It has no error, because written data counts only after a successful Fsync.
func (f *File) Close() {
	if f != nil {
		_ = unix.Close(f.fd)
	}
}

// At is the full path of name in the folder f. It is for messages only.
func (f *File) At(name string) string {
	if name == "." {
		return f.path
	}
	return f.path + "/" + name
}

// KindError says that a name leads to something other than a regular file or folder.
type KindError struct {
	Path string
	Kind string // "a symbolic link", "a FIFO", ...
	Err  error  // the kernel's error; nil where the kernel opened it and this package refused it
}

func (e *KindError) Error() string { return e.Path + " is " + e.Kind }
func (e *KindError) Unwrap() error { return e.Err }

// Kind names a file's type in words that follow "it is".
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

// IsFile tells whether st is of a regular file.
func IsFile(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFREG }

// IsDir tells whether st is of a folder.
func IsDir(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFDIR }

// Same tells whether a and b are of one inode.
func Same(a, b *unix.Stat_t) bool { return a.Dev == b.Dev && a.Ino == b.Ino }

func pathError(step Step, path string, err error) error {
	return &fs.PathError{Op: string(step), Path: path, Err: err}
}

// do calls the hook and then op. It repeats op while a signal interrupts it.
func (s FS) do(step Step, path string, op func() error) error {
	defer s.InFlight.begin(path).end()
	if skip, err := s.callHook(step, path); skip || err != nil {
		return err
	}
	if err := uninterrupted(op); err != nil {
		return pathError(step, path, err)
	}
	return nil
}

// doIn is do for a name in a folder. It builds the path only for a hook or an error.
func (s FS) doIn(step Step, dir *File, name string, op func() error) error {
	if s.Hook != nil {
		return s.do(step, dir.At(name), op)
	}
	defer s.InFlight.begin(dir.path).end()
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

// callHook calls the hook, where there is one, and gives its errors their meaning.
func (s FS) callHook(step Step, path string) (skip bool, err error) {
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
