package fsys

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// OpenRoot opens a tier's root by its path. It follows symbolic links, because an operator chose the path. Only
// StatRoot does so as well.
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

// Open opens a regular file or folder for reading. Anything else is a *KindError. Open does not block on a FIFO.
func (s FS) Open(step Step, dir *File, name string) (*File, unix.Stat_t, error) {
	return s.openat2(step, dir, name, unix.O_RDONLY, 0)
}

// OpenDir opens a folder.
func (s FS) OpenDir(step Step, dir *File, name string) (*File, unix.Stat_t, error) {
	return s.openat2(step, dir, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
}

// StatPath resolves a name as Open does and returns its stat. It uses O_PATH, which does not open the file itself.
func (s FS) StatPath(step Step, dir *File, name string) (unix.Stat_t, error) {
	f, st, err := s.openat2(step, dir, name, unix.O_PATH, 0)
	f.Close()
	return st, err
}

// StatRoot returns the stat of what a tier's path leads to. It follows symbolic links, as OpenRoot does.
func (s FS) StatRoot(step Step, path string) (st unix.Stat_t, err error) {
	err = s.do(step, path, func() error { return unix.Stat(path, &st) })
	return st, err
}

// Create makes a regular file with mode 0600 and opens it for reading and writing. An existing name is EEXIST. An
// *AttributeError: chattr forbids new names in the folder.
func (s FS) Create(step Step, dir *File, name string) (*File, error) {
	f, _, err := s.openat2(step, dir, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
	return f, forbidden(err, entry{dir, "."})
}

func (s FS) openat2(step Step, dir *File, name string, flags, mode uint64) (*File, unix.Stat_t, error) {
	f := &File{fd: -1, path: dir.At(name)}
	var st unix.Stat_t
	// RESOLVE_NO_SYMLINKS refuses a link in the last component as well. With O_DIRECTORY, O_NOFOLLOW would only turn
	// ELOOP into ENOTDIR, as if a file had the name.
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

// Stat is fstat(2).
func (s FS) Stat(step Step, f *File) (st unix.Stat_t, err error) {
	err = s.do(step, f.path, func() error { return unix.Fstat(f.fd, &st) })
	return st, err
}

// Lstat returns the stat of a name in an open folder. It does not follow a symbolic link in the last component.
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

// Each calls fn with the names in a folder, some hundreds at a time and in no order. It leaves out . and .. and stops at
// the first error of fn, which it returns unchanged. It is for folders with more names than should be in memory.
func (s FS) Each(step Step, dir *File, fn func(names []string) error) error {
	// The offset belongs to the open file description. A new one begins at the first entry.
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

// Resolved is the path of an open folder with every symbolic link in it resolved (readlink of /proc/self/fd).
func Resolved(f *File) (string, error) { return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.fd)) }
