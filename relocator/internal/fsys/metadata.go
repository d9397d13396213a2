package fsys

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Chmod sets the permissions of an open file, including the setuid, setgid and sticky bits.
func (s FS) Chmod(step Step, f *File, mode uint32) error {
	return s.do(step, f.path, func() error { return unix.Fchmod(f.fd, mode&0o7777) })
}

// SetMetadata gives dst the owner, mode, extended attributes and times of src. st is the stat of src. The order matters:
// a change of owner clears the setuid bit, for example.
//
// It leaves out what this process may not set or what dst's file system cannot hold:
//   - the owner, and then setuid, without the right to give files away;
//   - the group, and then setgid, where the process is not a member of it;
//   - extended attributes where the file system has none, and those outside user.* that the kernel refuses.
//
// A user.* attribute that the file system refuses is an *XattrError.
func (s FS) SetMetadata(step Step, dst, src *File, st *unix.Stat_t) error {
	mode := st.Mode
	err := s.do(step, dst.path, func() error { return unix.Fchown(dst.fd, int(st.Uid), int(st.Gid)) })
	if isForeign(err) { // a member may still set the group, and readers may need it
		mode &^= unix.S_ISUID
		err = s.do(step, dst.path, func() error { return unix.Fchown(dst.fd, -1, int(st.Gid)) })
		if isForeign(err) {
			mode &^= unix.S_ISGID
			err = nil
		}
	}
	if err != nil {
		return err
	}
	if err := s.Chmod(step, dst, mode); err != nil {
		return err
	}
	if err := s.copyXattrs(step, dst, src); err != nil {
		return err
	}
	// Package unix has no futimens. utimensat(2) without a path does the same.
	times := [2]unix.Timespec{st.Atim, st.Mtim}
	return s.do(step, dst.path, func() error {
		_, _, e := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(dst.fd), 0, uintptr(unsafe.Pointer(&times)), 0, 0, 0)
		if e != 0 {
			return e
		}
		return nil
	})
}

// isForeign tells whether the kernel refused an owner or a group. It answers EINVAL where the user namespace does not
// map the id.
func isForeign(err error) bool { return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) }

// XattrError says that a file system refused an extended attribute.
type XattrError struct {
	Name string
	Size int // of the value, in bytes
	Err  error
}

func (e *XattrError) Error() string {
	return fmt.Sprintf("extended attribute %q of %d bytes: %v", e.Name, e.Size, e.Err)
}
func (e *XattrError) Unwrap() error { return e.Err }

func (s FS) copyXattrs(step Step, dst, src *File) error {
	names, err := s.xattrs(step, src)
	if err != nil {
		return err
	}
	inherited, err := s.xattrs(step, dst)
	if err != nil {
		return err
	}
	for _, name := range accessLists {
		if slices.Contains(inherited, name) && !slices.Contains(names, name) {
			if err := s.do(step, dst.path, func() error { return unix.Fremovexattr(dst.fd, name) }); err != nil {
				return err
			}
		}
	}
	for _, name := range names {
		value, err := s.grow(step, src, func(p []byte) (int, error) { return unix.Fgetxattr(src.fd, name, p) })
		if err == nil {
			err = s.do(step, dst.path, func() error { return unix.Fsetxattr(dst.fd, name, value, 0) })
		}
		switch {
		case err == nil || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENODATA):
		case !strings.HasPrefix(name, "user.") &&
			(errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EINVAL)):
		default:
			return &XattrError{name, len(value), err}
		}
	}
	return nil
}

// xattrs lists the names of a file's extended attributes. It lists none where the file system does not support them.
func (s FS) xattrs(step Step, f *File) (names []string, err error) {
	list, err := s.grow(step, f, func(p []byte) (int, error) { return unix.Flistxattr(f.fd, p) })
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	for name := range strings.SplitSeq(string(list), "\x00") {
		if name != "" {
			names = append(names, name)
		}
	}
	return names, err
}

// grow calls read with larger and larger buffers until the value fits: the value may grow between two calls.
func (s FS) grow(step Step, f *File, read func([]byte) (int, error)) ([]byte, error) {
	for buf := make([]byte, 1<<10); ; buf = make([]byte, 4*len(buf)) {
		var n int
		err := s.do(step, f.path, func() (err error) {
			n, err = read(buf)
			return err
		})
		if err == nil {
			return buf[:n], nil
		}
		if !errors.Is(err, unix.ERANGE) || len(buf) > 1<<20 {
			return nil, err
		}
	}
}

// accessLists are the attributes that a new file inherits from its folder's default ACL. copyXattrs removes those that
// src does not have.
var accessLists = []string{"system.posix_acl_access", "system.posix_acl_default"}
