package fsys

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// caseFoldFlag is FS_CASEFOLD_FL of linux/fs.h: the folder folds case and Unicode forms (chattr +F).
const caseFoldFlag = 0x40000000

// CaseFolded tells whether a folder has the flag of chattr +F. On ext4, f2fs, tmpfs and bcachefs each folder has a flag
// of its own, and a folder without it compares names by their bytes.
func (s FS) CaseFolded(step Step, dir *File) (bool, error) {
	var flags uint32
	err := s.do(step, dir.path, func() (err error) {
		flags, err = unix.IoctlGetUint32(dir.fd, unix.FS_IOC_GETFLAGS)
		return err
	})
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return false, nil
	}
	return flags&caseFoldFlag != 0, err
}

// Type returns the magic number of a file's file system (statfs(2)).
func (s FS) Type(step Step, f *File) (int64, error) {
	var st unix.Statfs_t
	err := s.do(step, f.path, func() error { return unix.Fstatfs(f.fd, &st) })
	return int64(st.Type), err //nolint:unconvert // int32 on some architectures
}

// SpellingError says that a name leads to an entry that its folder lists under another name. The file system takes the
// two for one: it folds case or Unicode forms.
type SpellingError struct {
	Path string // the name that was looked up
	Own  string // the folder's own spelling of its last component; "" where it is unknown
}

func (e *SpellingError) Error() string {
	own := "another name"
	if e.Own != "" {
		own = fmt.Sprintf("%+q", e.Own)
	}
	return fmt.Sprintf("%s is there as %s, and the file system takes one name for the other", e.Path, own)
}

// CheckSpelling reads a folder and compares an existing name with the folder's own spelling. A *SpellingError: the name
// leads to an entry with another name. ENOENT: it leads nowhere. A cancelled context gives its cause.
func (s FS) CheckSpelling(ctx context.Context, step Step, dir *File, name string) error {
	st, err := s.Lstat(step, dir, name)
	if err != nil {
		return err
	}
	found := errors.New("found")
	var alike []string
	err = s.Each(step, dir, func(names []string) error {
		for _, n := range names {
			if n == name {
				return found
			}
			if strings.EqualFold(n, name) {
				alike = append(alike, n)
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return nil
	})
	if err == found {
		return nil
	}
	if err != nil {
		return err
	}
	own := ""
	look := func(names []string) error {
		for _, n := range names {
			if now, err := s.Lstat(step, dir, n); err == nil && Same(&now, &st) {
				own = n
				return found
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return nil
	}
	if err = look(alike); err == nil {
		err = s.Each(step, dir, look)
	}
	if err != nil && err != found {
		return err
	}
	if own == "" && len(alike) == 1 { // a union gives one file several inode numbers
		own = alike[0]
	}
	return &SpellingError{dir.At(name), own}
}
