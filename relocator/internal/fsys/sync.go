package fsys

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/shared/batch"
)

const (
	// minSyncfsInodes is the number of inodes from which on one syncfs is cheaper than an fsync of each.
	minSyncfsInodes = 8
	// maxDirtyBytes is how much data may wait to be written on the whole machine before a syncfs is not used: it writes
	// the data of other processes as well.
	maxDirtyBytes = 16 << 20
	// maxSharedSize is the size in bytes up to which a file shares a sync. The sync of a larger one takes longer, and
	// would hold up the others.
	maxSharedSize = 1 << 20
	// maxSyncBatch bounds how many callers share one sync.
	maxSyncBatch = 1024
)

// Syncs lets operations that run at the same time share the calls that make them durable. A folder that many operations
// publish into is synced once for all of them, and many small files by one syncfs. The sync that serves an operation
// begins after the operation. A sync that fails fails all operations that it serves. Syncs is safe for concurrent use.
//
// Each file system has one sync at a time. Different file systems do not wait for each other.
type Syncs struct {
	alwaysSyncfs bool // where syncfs reports errors
	mu           sync.Mutex
	runners      map[uint64]*batch.Runner[[]Unsynced, []error] // by device
	reliable     map[uint64]bool                               // by device: the result of syncfsIsReliable
	failed       map[uint64]uint64                             // by device: the value of opens when a syncfs last failed
}

// NewSyncs makes Syncs. alwaysSyncfs uses syncfs for any number of files. It is for tests, which move one file at a time.
func NewSyncs(alwaysSyncfs bool) *Syncs {
	return &Syncs{alwaysSyncfs: alwaysSyncfs, runners: map[uint64]*batch.Runner[[]Unsynced, []error]{},
		reliable: map[uint64]bool{}, failed: map[uint64]uint64{}}
}

// Unsynced is a file or folder that must become durable, and the step that does it.
type Unsynced struct {
	Step Step
	File *File
}

// Fsync makes a file's bytes and metadata, or a folder's entries, durable. After an error the state of the data is
// unknown, and the caller must not call Fsync for it again. The kernel reports an fsync error once and drops the pages;
// the next fsync reports success (fsync(2); "fsyncgate", Linux 4.13 and later).
func (s FS) Fsync(step Step, f *File) error { return s.FsyncAll(Unsynced{step, f}) }

// FsyncAll is Fsync of several files and folders at once. When it returns without an error, all of them are durable.
func (s FS) FsyncAll(all ...Unsynced) error {
	left := make([]Unsynced, 0, len(all))
	for _, u := range all {
		o := s.InFlight.begin(u.File.path)
		skip, err := s.callHook(u.Step, u.File.path)
		o.end()
		if err != nil {
			return err
		}
		if !skip {
			left = append(left, u)
		}
	}
	if s.Syncs != nil {
		var err error
		if left, err = s.Syncs.syncShared(s.InFlight, left); err != nil {
			return err
		}
	}
	for _, u := range left {
		o := s.InFlight.begin(u.File.path)
		err := fsync(u.File)
		o.end()
		if err != nil {
			return pathError(u.Step, u.File.path, err)
		}
	}
	return nil
}

// syncShared syncs folders and small files together with those of other callers. It returns the large files, which the
// caller syncs itself.
func (s *Syncs) syncShared(flying *InFlight, all []Unsynced) (left []Unsynced, err error) {
	for len(all) > 0 {
		dev := all[0].File.dev
		var together, others []Unsynced
		for _, u := range all {
			if u.File.dev != dev {
				others = append(others, u)
				continue
			}
			large, err := u.File.large()
			switch {
			case err != nil:
				return nil, pathError(u.Step, u.File.path, err)
			case large:
				left = append(left, u)
			default:
				together = append(together, u)
			}
		}
		all = others
		if len(together) == 0 {
			continue
		}
		o := flying.begin(together[0].File.path)
		errs := s.syncOnDevice(dev, together)
		o.end()
		if i, err := pickError(errs); err != nil {
			return nil, pathError(together[i].Step, together[i].File.path, err)
		}
	}
	return left, nil
}

// SharedError is the error of a syncfs for a file whose own fsync reported no error. The kernel most likely lost data of
// other files. The file must be treated as not durable all the same.
type SharedError struct{ Err error }

func (e *SharedError) Error() string {
	return e.Err.Error() + " (a sync of the whole file system has failed)"
}
func (e *SharedError) Unwrap() error { return e.Err }

// pickError picks the error that says most: a file's own error before a SharedError. at is its index.
func pickError(errs []error) (at int, err error) {
	for i, e := range errs {
		var shared *SharedError
		if e != nil && (err == nil || errors.As(err, &shared)) {
			at, err = i, e
		}
	}
	return at, err
}

// large tells whether a file is too large to share a sync.
func (f *File) large() (bool, error) {
	if f.folder {
		return false, nil
	}
	var st unix.Stat_t
	err := unix.Fstat(f.fd, &st)
	return st.Size > maxSharedSize, err
}

func fsync(f *File) error {
	for {
		if err := unix.Fsync(f.fd); err != unix.EINTR {
			return err
		}
	}
}

// syncOnDevice waits for a sync that begins after this call and covers all targets. It returns an error for each.
func (s *Syncs) syncOnDevice(dev uint64, targets []Unsynced) []error {
	s.mu.Lock()
	r := s.runners[dev]
	if r == nil {
		r = batch.New(maxSyncBatch, s.syncAll)
		s.runners[dev] = r
	}
	s.mu.Unlock()
	// There is no way to give up waiting: a caller that did would not know whether its data is durable.
	errs, _ := r.Do(context.Background(), targets)
	return errs
}

// syncAll syncs the targets of many callers on one file system.
func (s *Syncs) syncAll(requests [][]Unsynced) [][]error {
	byInode := map[uint64]*File{} // the oldest descriptor of each inode: it reports the most errors
	oldest := requests[0][0].File
	for _, targets := range requests {
		for _, t := range targets {
			if f := byInode[t.File.ino]; f == nil || t.File.opened < f.opened {
				byInode[t.File.ino] = t.File
			}
			if t.File.opened < oldest.opened {
				oldest = t.File
			}
		}
	}
	var failed map[uint64]error
	if s.useSyncfs(len(byInode), oldest) {
		// syncfs reports the errors since its descriptor was opened, each of them once (syncfs(2)). The oldest descriptor
		// was opened before any of these files was written, so it reports every error that concerns them.
		if err := syncfs(oldest); err != nil {
			s.recordFailure(oldest.dev)
			// The descriptor of each file has not reported its error yet. Where a file's own fsync reports none, the lost
			// data may still be metadata that the file needs.
			failed = fsyncEach(byInode)
			for ino := range byInode {
				if failed[ino] == nil {
					failed[ino] = &SharedError{err}
				}
			}
		}
	} else {
		failed = fsyncEach(byInode)
	}
	answers := make([][]error, len(requests))
	for i, targets := range requests {
		for _, t := range targets {
			answers[i] = append(answers[i], failed[t.File.ino])
		}
	}
	return answers
}

// useSyncfs tells whether one syncfs through the oldest descriptor is cheaper than an fsync of each inode, and as safe.
func (s *Syncs) useSyncfs(inodes int, oldest *File) bool {
	return (s.alwaysSyncfs || inodes >= minSyncfsInodes && dirtyBytes() <= maxDirtyBytes) &&
		s.syncfsIsReliable(oldest) && s.reportsAll(oldest)
}

// syncfsIsReliable tells whether a syncfs of f's file system makes durable what an fsync of each file would, and reports
// an error where it cannot. It is not reliable on FUSE, which does not pass it on, nor on an overlay, which does not
// report errors of its upper layer (both observed on Linux 6.18). Before Linux 5.17 the kernel dropped errors of the
// file system itself, such as an aborted journal.
func (s *Syncs) syncfsIsReliable(f *File) bool {
	s.mu.Lock()
	is, known := s.reliable[f.dev]
	s.mu.Unlock()
	if known {
		return is
	}
	var st unix.Statfs_t
	// Fstatfs may hang on a broken disk, so it runs without the lock.
	if err := uninterrupted(func() error { return unix.Fstatfs(f.fd, &st) }); err != nil {
		return false
	}
	is = syncfsReportsErrors() && (st.Type == unix.EXT4_SUPER_MAGIC || st.Type == unix.XFS_SUPER_MAGIC || st.Type == unix.BTRFS_SUPER_MAGIC)
	s.mu.Lock()
	s.reliable[f.dev] = is
	s.mu.Unlock()
	return is
}

// syncfsReportsErrors tells whether this is Linux 5.17 or later.
var syncfsReportsErrors = sync.OnceValue(func() bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	return isVersion(unix.ByteSliceToString(u.Release[:]), 5, 17)
})

// isVersion reports whether a kernel release, such as 6.1.0-13-amd64, is major.minor or later.
func isVersion(release string, major, minor int) bool {
	var a, b int
	n, _ := fmt.Sscanf(release, "%d.%d", &a, &b)
	return n == 2 && (a > major || a == major && b >= minor)
}

// recordFailure records that a syncfs of the device failed. Files that were open then may have lost bytes, and a second
// syncfs would not report it.
func (s *Syncs) recordFailure(dev uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed[dev] = opens.Load()
}

// reportsAll tells whether a syncfs reports every error of a file and of all files opened after it. Where it does not,
// the fsync of each file must.
func (s *Syncs) reportsAll(oldest *File) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return oldest.opened > s.failed[oldest.dev]
}

// fsyncEach syncs all files at the same time, so that the journal commits once for many.
func fsyncEach(byInode map[uint64]*File) map[uint64]error {
	var mu sync.Mutex
	var wg sync.WaitGroup
	failed := make(map[uint64]error, len(byInode))
	for ino, f := range byInode {
		wg.Go(func() {
			if err := fsync(f); err != nil {
				mu.Lock()
				failed[ino] = err
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return failed
}

// syncfs makes the whole file system of f durable.
func syncfs(f *File) error {
	for {
		if err := unix.Syncfs(f.fd); err != unix.EINTR {
			return err
		}
	}
}

// dirtyBytes is how many bytes wait to be written, or are being written, on the whole machine. Where it is unknown, it is
// more than maxDirtyBytes.
func dirtyBytes() int64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return maxDirtyBytes + 1
	}
	return meminfo(b, "Dirty:") + meminfo(b, "Writeback:")
}

// meminfo returns the value of one line of /proc/meminfo, in bytes.
func meminfo(b []byte, name string) int64 {
	_, after, ok := bytes.Cut(b, append([]byte("\n"), name...))
	fields := bytes.Fields(after[:min(len(after), 40)])
	if !ok || len(fields) == 0 {
		return maxDirtyBytes + 1
	}
	kib, err := strconv.ParseInt(string(fields[0]), 10, 64)
	if err != nil {
		return maxDirtyBytes + 1
	}
	return kib << 10
}
