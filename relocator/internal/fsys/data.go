package fsys

import (
	"errors"

	"golang.org/x/sys/unix"
)

// ReadAt is one pread(2). Fewer bytes than len(p) are no error; 0 bytes are the end of the file.
func (s FS) ReadAt(step Step, f *File, p []byte, off int64) (n int, err error) {
	err = s.do(step, f.path, func() (err error) {
		n, err = unix.Pread(f.fd, p, off)
		return err
	})
	return max(n, 0), err
}

// WriteAt is one pwrite(2). It may write fewer bytes than len(p) and returns how many.
func (s FS) WriteAt(step Step, f *File, p []byte, off int64) (n int, err error) {
	defer s.InFlight.begin(f.path).end()
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

// Truncate sets a file's length, in bytes.
func (s FS) Truncate(step Step, f *File, size int64) error {
	return s.do(step, f.path, func() error { return unix.Ftruncate(f.fd, size) })
}

// Allocate reserves space for n bytes from off on. EOPNOTSUPP: the file system cannot.
func (s FS) Allocate(step Step, f *File, off, n int64) error {
	return s.do(step, f.path, func() error { return unix.Fallocate(f.fd, 0, off, n) })
}

// Usage is how full a file system is.
type Usage struct {
	Total, Used, Free  int64 // bytes; Free is what this process may still use. Some file systems answer 0 for all
	Inodes, FreeInodes int64 // files and folders; both are 0 where the file system has no fixed number of them
}

// Usage tells how full the file system of f is.
func (s FS) Usage(step Step, f *File) (u Usage, err error) {
	var st unix.Statfs_t
	err = s.do(step, f.path, func() error { return unix.Fstatfs(f.fd, &st) })
	// Blocks have the size f_frsize. FUSE file systems may have another f_bsize, which is the best size of a read.
	size := st.Frsize
	u = Usage{Total: int64(st.Blocks) * size, Used: int64(st.Blocks-st.Bfree) * size, Free: int64(st.Bavail) * size,
		Inodes: int64(st.Files), FreeInodes: int64(st.Ffree)}
	return u, err
}

// TakesWrites tells whether the file system of a file takes writes, and writes nothing: it opens the file for writing and writes no
// byte. EROFS: it does not. It hangs where writes hang. statfs(2) does not tell: from Linux 6.15 on, an ext4 that the kernel has
// made read-only after an error is not marked as read-only there.
func (s FS) TakesWrites(step Step, dir *File, name string) error {
	f, _, err := s.openat2(step, dir, name, unix.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = s.WriteAt(step, f, nil, 0)
	return err
}

// Space tells how many bytes this process may still use on the file system of f, and the size of that file system in
// bytes. Some file systems answer 0 for both.
func (s FS) Space(step Step, f *File) (free, total int64, err error) {
	u, err := s.Usage(step, f)
	return u.Free, u.Total, err
}

// Files tells how many files and folders the file system of f has. Some file systems answer 0.
func (s FS) Files(step Step, f *File) (n int64, err error) {
	u, err := s.Usage(step, f)
	return u.Inodes - u.FreeInodes, err
}

// Clone makes dst share all blocks of src (ioctl FICLONE).
func (s FS) Clone(step Step, dst, src *File) error {
	return s.do(step, dst.path, func() error { return unix.IoctlFileClone(dst.fd, src.fd) })
}

// Segment is a part of a file that holds data: the bytes from Start up to, but without, End.
type Segment struct{ Start, End int64 }

// Segments returns the parts of a file that are not holes, as SEEK_DATA and SEEK_HOLE report them. Where the file system
// cannot report them, it returns the whole file. Some file systems have reported holes in files that were just
// written, so the caller must read the holes as well before it treats them as zeros.
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

// StartWriteback makes the kernel begin to write n bytes of a file. It does not wait, and it makes nothing durable:
// waiting here would consume an error that Fsync must report.
func (s FS) StartWriteback(step Step, f *File, off, n int64) error {
	return s.do(step, f.path, func() error {
		return unix.SyncFileRange(f.fd, off, n, unix.SYNC_FILE_RANGE_WRITE)
	})
}

// ReadAhead tells the kernel that the file will be read from start to end. It is advice and has no error.
func (s FS) ReadAhead(f *File) { _ = unix.Fadvise(f.fd, 0, 0, unix.FADV_SEQUENTIAL) }

// DropCache drops a file's clean pages from the page cache, so that the next read comes from the disk. Pages that were
// just written can be busy for a moment. Where cachestat(2) reports cached pages (Linux 6.5), DropCache therefore tries
// up to three times. Pages that remain belong to a file system in memory (tmpfs), or another process has mapped them.
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
