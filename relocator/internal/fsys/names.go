package fsys

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Mkdir makes a folder. An existing name is EEXIST. An *AttributeError: chattr forbids it.
func (s FS) Mkdir(step Step, dir *File, name string, mode uint32) error {
	err := s.doIn(step, dir, name, func() error { return unix.Mkdirat(dir.fd, name, mode) })
	return forbidden(err, entry{dir, "."})
}

// Link gives the file from/name one more name. An existing newName is EEXIST. A symbolic link is not followed. An
// *AttributeError: chattr forbids new names in the folder to.
func (s FS) Link(step Step, from *File, name string, to *File, newName string) error {
	err := s.doIn(step, to, newName, func() error { return unix.Linkat(from.fd, name, to.fd, newName, 0) })
	return forbidden(err, entry{to, "."})
}

// Rename renames within one file system and replaces newName, as rename(2) does. An *AttributeError: chattr forbids it.
func (s FS) Rename(step Step, from *File, name string, to *File, newName string) error {
	err := s.doIn(step, to, newName, func() error { return unix.Renameat(from.fd, name, to.fd, newName) })
	return forbidden(err, entry{from, name}, entry{from, "."}, entry{to, "."})
}

// RenameNew renames and never replaces: an existing newName is EEXIST. File systems without RENAME_NOREPLACE answer
// EINVAL. An *AttributeError: chattr forbids it.
func (s FS) RenameNew(step Step, from *File, name string, to *File, newName string) error {
	err := s.doIn(step, to, newName, func() error {
		return unix.Renameat2(from.fd, name, to.fd, newName, unix.RENAME_NOREPLACE)
	})
	return forbidden(err, entry{from, name}, entry{from, "."}, entry{to, "."})
}

// CannotRenameNew tells whether an error of RenameNew says that the file system has no RENAME_NOREPLACE.
func CannotRenameNew(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP)
}

// Unlink removes a name. A folder is EISDIR. An *AttributeError: chattr forbids it.
func (s FS) Unlink(step Step, dir *File, name string) error {
	err := s.doIn(step, dir, name, func() error { return unix.Unlinkat(dir.fd, name, 0) })
	return forbidden(err, entry{dir, name}, entry{dir, "."})
}

// Rmdir removes an empty folder. An *AttributeError: chattr forbids it.
func (s FS) Rmdir(step Step, dir *File, name string) error {
	err := s.doIn(step, dir, name, func() error { return unix.Unlinkat(dir.fd, name, unix.AT_REMOVEDIR) })
	return forbidden(err, entry{dir, name}, entry{dir, "."})
}

// AttributeError says that a name may not be removed or changed because it, or its folder, has an attribute of chattr(1).
type AttributeError struct {
	Path      string // of what has the attribute
	Attribute string // "immutable" or "append-only"
	Err       error
}

func (e *AttributeError) Error() string {
	return fmt.Sprintf("%s has the attribute %s (%c): %v", e.Path, e.Attribute, e.Letter(), e.Err)
}

func (e *AttributeError) Unwrap() error { return e.Err }

// Letter is the attribute's letter in chattr and lsattr.
func (e *AttributeError) Letter() byte { return e.Attribute[0] }

// entry is a name in a folder, or the folder itself (".").
type entry struct {
	dir  *File
	name string
}

// forbidden finds out whether an attribute of one of the entries explains an EPERM. Other errors stay as they are.
func forbidden(err error, entries ...entry) error {
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	for _, e := range entries {
		var st unix.Statx_t
		if unix.Statx(e.dir.fd, e.name, unix.AT_SYMLINK_NOFOLLOW, 0, &st) != nil {
			continue
		}
		if st.Attributes&unix.STATX_ATTR_IMMUTABLE != 0 {
			return &AttributeError{e.dir.At(e.name), "immutable", err}
		}
		if st.Attributes&unix.STATX_ATTR_APPEND != 0 {
			return &AttributeError{e.dir.At(e.name), "append-only", err}
		}
	}
	return err
}

// RemoveAll removes a name and everything below it. It repeats until the name is gone, even if others add or remove
// entries meanwhile. It follows no symbolic link. A missing name is no error. A cancelled context gives its cause.
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

// empty removes the entries of a folder.
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
		// A relocator that is not root cannot remove the entries of a read-only folder.
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
