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
	// manyInodes is from where on one syncfs is cheaper than so many fsyncs (docs/performance.md has the figures).
	manyInodes = 8
	// fewDirty is how much may wait to be written on the whole machine, in bytes, for a syncfs: it waits for other
	// people's data as well.
	fewDirty = 16 << 20
	// small is the size in bytes up to which a file's sync is shared. A larger one may take its time: alone, it holds up
	// nobody.
	small = 1 << 20
	// syncMost bounds what is synced together.
	syncMost = 1024
)

// Syncs lets operations that are under way at the same time share the calls that make them durable: a folder that many
// publish into is synced once for all of them, and many small files by one syncfs. A call that serves an operation
// begins after it; one that fails fails all whom it serves. It is safe for concurrent use.
//
// Syncs of one file system take turns; every file system has its own.
type Syncs struct {
	always bool // syncfs, where it says what has failed
	mu     sync.Mutex
	of     map[uint64]*batch.Runner[[]Unsynced, []error] // by device
	honest map[uint64]bool                               // by device: see honest
	failed map[uint64]uint64                             // by device: what had been opened when a syncfs failed last
}

// NewSyncs makes Syncs. alwaysWhole takes syncfs for any number of files: it is for tests, whose moves come alone.
func NewSyncs(alwaysWhole bool) *Syncs {
	return &Syncs{always: alwaysWhole, of: map[uint64]*batch.Runner[[]Unsynced, []error]{}, honest: map[uint64]bool{},
		failed: map[uint64]uint64{}}
}

// Unsynced is something that is to be made durable, and the step that does it.
type Unsynced struct {
	Step Step
	File *File
}

// Fsync makes a file's bytes and metadata, or a folder's entries, durable. After an error nothing is known
// about them any more, and a second call would lie.
func (s FS) Fsync(step Step, f *File) error { return s.FsyncAll(Unsynced{step, f}) }

// FsyncAll is Fsync of several at once: none is durable before it returns, and all are afterwards.
func (s FS) FsyncAll(all ...Unsynced) error {
	left := make([]Unsynced, 0, len(all))
	for _, u := range all {
		skip, err := s.ask(u.Step, u.File.path)
		if err != nil {
			return err
		}
		if !skip {
			left = append(left, u)
		}
	}
	if s.Syncs != nil {
		var err error
		if left, err = s.Syncs.share(left); err != nil {
			return err
		}
	}
	for _, u := range left {
		if err := fsync(u.File); err != nil {
			return pathError(u.Step, u.File.path, err)
		}
	}
	return nil
}

// share syncs what others may be served with as well, and returns the rest.
func (s *Syncs) share(all []Unsynced) (left []Unsynced, err error) {
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
		if i, err := worst(s.together(dev, together)); err != nil {
			return nil, pathError(together[i].Step, together[i].File.path, err)
		}
	}
	return left, nil
}

// SharedError is the error of a sync of a whole file system for a file of which nothing bad is known: most likely others'
// bytes were lost. It is not durable all the same, as far as anybody knows.
type SharedError struct{ Err error }

func (e *SharedError) Error() string {
	return e.Err.Error() + " (a sync of the whole file system has failed)"
}
func (e *SharedError) Unwrap() error { return e.Err }

// worst picks the error that says most: a file's own before one that it shares.
func worst(errs []error) (at int, err error) {
	for i, e := range errs {
		var shared *SharedError
		if e != nil && (err == nil || errors.As(err, &shared)) {
			at, err = i, e
		}
	}
	return at, err
}

// large tells whether a sync of the file may take its time.
func (f *File) large() (bool, error) {
	if f.folder {
		return false, nil
	}
	var st unix.Stat_t
	err := unix.Fstat(f.fd, &st)
	return st.Size > small, err
}

func fsync(f *File) error {
	for {
		if err := unix.Fsync(f.fd); err != unix.EINTR {
			return err
		}
	}
}

// together waits for a sync that begins from now on and covers the targets; an error for each.
func (s *Syncs) together(dev uint64, targets []Unsynced) []error {
	s.mu.Lock()
	r := s.of[dev]
	if r == nil {
		r = batch.New(syncMost, s.syncAll)
		s.of[dev] = r
	}
	s.mu.Unlock()
	errs, _ := r.Do(context.Background(), targets) // who gave up waiting would know nothing
	return errs
}

// syncAll syncs what many ask for, on one file system.
func (s *Syncs) syncAll(asked [][]Unsynced) [][]error {
	byInode := map[uint64]*File{} // by its oldest descriptor, which knows of the most errors
	oldest := asked[0][0].File
	for _, targets := range asked {
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
	if (s.always || len(byInode) >= manyInodes && dirty() <= fewDirty) && s.isHonest(oldest) && s.tells(oldest) {
		// A descriptor is told of the errors since it was opened, each of them once. So it is the oldest one: who has it open
		// had not written anything yet, and neither had the others.
		if err := syncfs(oldest); err != nil {
			s.noteFailure(oldest.dev)
			// Each file's own descriptor has not been told yet. One that knows of nothing may have lost what is no byte of it.
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
	answers := make([][]error, len(asked))
	for i, targets := range asked {
		for _, t := range targets {
			answers[i] = append(answers[i], failed[t.File.ino])
		}
	}
	return answers
}

// isHonest tells whether a syncfs of f's file system makes durable what an fsync of each file would, and says so where it
// cannot. It does not with FUSE, which passes it on to nobody, nor with an overlay, whose upper files fail unseen (both seen
// on 6.18), and before Linux 5.17 errors of the file system's own part, such as a journal that was given up, were dropped.
func (s *Syncs) isHonest(f *File) bool {
	s.mu.Lock()
	is, known := s.honest[f.dev]
	s.mu.Unlock()
	if known {
		return is
	}
	var st unix.Statfs_t
	if err := uninterrupted(func() error { return unix.Fstatfs(f.fd, &st) }); err != nil { // it may hang: nobody else waits for it
		return false
	}
	is = syncfsTellsErrors() && (st.Type == unix.EXT4_SUPER_MAGIC || st.Type == unix.XFS_SUPER_MAGIC || st.Type == unix.BTRFS_SUPER_MAGIC)
	s.mu.Lock()
	s.honest[f.dev] = is
	s.mu.Unlock()
	return is
}

// syncfsTellsErrors tells whether this is Linux 5.17 or later.
var syncfsTellsErrors = sync.OnceValue(func() bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	return atLeast(unix.ByteSliceToString(u.Release[:]), 5, 17)
})

// atLeast compares a kernel's release, such as 6.1.0-13-amd64.
func atLeast(release string, major, minor int) bool {
	var a, b int
	n, _ := fmt.Sscanf(release, "%d.%d", &a, &b)
	return n == 2 && (a > major || a == major && b >= minor)
}

// noteFailure notes that a syncfs of the device has failed: what was open then may have lost bytes, and a second one would not say
// so.
func (s *Syncs) noteFailure(dev uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed[dev] = opens.Load()
}

// tells tells whether a syncfs can speak for a file and all that were opened after it. Where it cannot, each file's own
// descriptor does.
func (s *Syncs) tells(oldest *File) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return oldest.opened > s.failed[oldest.dev]
}

// fsyncEach syncs all at once, so that a journal commits once for them.
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

// dirty is how many bytes wait to be written, or are being written, on the whole machine.
func dirty() int64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return fewDirty + 1
	}
	return meminfo(b, "Dirty:") + meminfo(b, "Writeback:")
}

// meminfo reads one line of /proc/meminfo, in bytes.
func meminfo(b []byte, name string) int64 {
	_, after, ok := bytes.Cut(b, append([]byte("\n"), name...))
	fields := bytes.Fields(after[:min(len(after), 40)])
	if !ok || len(fields) == 0 {
		return fewDirty + 1
	}
	kib, err := strconv.ParseInt(string(fields[0]), 10, 64)
	if err != nil {
		return fewDirty + 1
	}
	return kib << 10
}
