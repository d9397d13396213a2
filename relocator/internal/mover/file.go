package mover

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/shared/fault"
)

// file makes dst/name one more name of src's file, or a durable copy of it.
func (j *job) file(ctx context.Context, src *opened, dst *fsys.File, name string) (method string, sum []byte, err error) {
	if ctx.Err() != nil {
		return "", nil, context.Cause(ctx)
	}
	linked, err := j.link(src, dst, name)
	if err != nil {
		return "", nil, err
	}
	if linked {
		j.done += src.st.Size
		j.progress()
		return Linked, nil, nil
	}
	return j.copy(ctx, src, dst, name)
}

// link tries: only the kernel knows whether two folders share a file system (bind mounts and subvolumes lie
// about it). The file is synced after it has the name, which nobody reads yet: the other way round the name would
// need a sync of its own, and files that cannot be linked would be synced for nothing.
func (j *job) link(src *opened, dst *fsys.File, name string) (bool, error) {
	if j.noLink {
		return false, nil
	}
	err := j.fs.Link(fsys.LinkTemp, src.parent, src.base, dst, name)
	if isAny(err, unix.EXDEV, unix.EPERM, unix.EOPNOTSUPP, unix.EMLINK) {
		j.noLink = errors.Is(err, unix.EXDEV)
		return false, nil
	}
	if errors.Is(err, unix.ENOENT) {
		return false, changed(src.file.Path())
	}
	if err != nil {
		return false, err
	}
	// The link was made by name: it may have met another file, or a symbolic link, than the one that was opened.
	st, err := j.fs.Lstat(fsys.LinkTemp, dst, name)
	if err != nil {
		return false, err
	}
	if !fsys.Same(&st, &src.st) {
		return false, changed(src.file.Path())
	}
	return true, j.fsyncFound(src.file, &src.st, func() error { return j.fsync(fsys.FsyncSource, src.file, dst) })
}

// fsync makes a file durable that is made or linked in dst. Where that is tmp/ itself, its name is the record of what is
// going to be published, which must not be less durable than the publication.
func (j *job) fsync(step fsys.Step, f, dst *fsys.File) error {
	var all []fsys.Unsynced
	if dst == j.to.Tmp {
		all = append(all, fsys.Unsynced{Step: fsys.FsyncRecord, File: dst})
	}
	all = append(all, fsys.Unsynced{Step: step, File: f})
	if err := j.fs.FsyncAll(all...); err != nil {
		return suspect("fsync", err)
	}
	return nil
}

// copy makes a durable copy: bytes, holes, owner, mode, attributes, times, one fsync, and the check of it all.
func (j *job) copy(ctx context.Context, src *opened, dst *fsys.File, name string) (string, []byte, error) {
	if src.st.Size > chunk {
		if err := j.turn(ctx); err != nil {
			return "", nil, err
		}
		defer func() { <-j.large }()
	}
	f, err := j.fs.Create(fsys.CreateTemp, dst, name)
	if err != nil {
		return "", nil, err
	}
	defer f.Close()

	method, sum := Cloned, []byte(nil)
	err = j.fs.Clone(fsys.Clone, f, src.file)
	if isAny(err, unix.EOPNOTSUPP, unix.EXDEV, unix.EINVAL, unix.ENOTTY, unix.ENOSYS, unix.EPERM) {
		method = Copied
		sum, err = j.data(ctx, src, f)
	} else if err == nil {
		j.done += src.st.Size
	}
	if err != nil {
		return "", nil, err
	}
	if err := j.metadata(f, src.file, &src.st); err != nil {
		return "", nil, err
	}
	// Here a long wait is out of the context's hands; write-back began early to keep it short.
	if err := j.fsync(fsys.FsyncTemp, f, dst); err != nil {
		return "", nil, err
	}
	if j.verify == ReadBack {
		if err := j.fs.DropCache(fsys.DropCache, f); err != nil {
			return "", nil, err
		}
	}
	if j.verify == ReadBack || method == Cloned {
		got, n, err := j.sum(ctx, fsys.ReadBack, f, src.st.Size, j.progress)
		switch {
		case err != nil:
			return "", nil, err
		case method == Cloned && n != src.st.Size:
			return "", nil, changed(src.file.Path())
		case method == Copied && (n != src.st.Size || !bytes.Equal(got, sum)):
			return "", nil, suspect("read back", fmt.Errorf("%s reads back differently: %d bytes, sha256 %x, of %d bytes, "+
				"sha256 %x", f.Path(), n, got, src.st.Size, sum))
		}
		sum = got
	}
	// Most uploaders never sync. A copy that is durable must not differ from a source that a power cut has damaged: the
	// two would be a conflict.
	err = j.fsyncFound(src.file, &src.st, func() error { return j.fsync(fsys.FsyncSource, src.file, nil) })
	if err != nil {
		return "", nil, err
	}
	now, err := j.fs.Stat(fsys.RecheckSource, src.file)
	if err != nil {
		return "", nil, err
	}
	if !unchanged(&now, &src.st) {
		return "", nil, changed(src.file.Path())
	}
	return method, sum, nil
}

// turn waits until a large file may be copied; to wait is no stall.
func (j *job) turn(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case j.large <- struct{}{}:
			return nil
		case <-tick.C:
			j.progress()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// metadata gives a copy what else belongs to its source. An attribute that is too large for the target's file system is
// no full tier, though some call it so.
func (j *job) metadata(dst, src *fsys.File, st *unix.Stat_t) error {
	err := j.fs.SetMetadata(fsys.SetMetadata, dst, src, st)
	var attribute *fsys.XattrError
	if !errors.As(err, &attribute) || !isAny(err, unix.E2BIG, unix.ERANGE, unix.ENOSPC) {
		return err
	}
	if free, _, serr := j.fs.Space(fsys.SetMetadata, dst); errors.Is(err, unix.ENOSPC) && (serr != nil || free < 1<<20) {
		return err
	}
	return &fault.Error{Kind: fault.Unsupported, Op: "set metadata of", Subject: dst.Path(), Err: err,
		Hint: "the target's file system holds no such attribute: remove it, or use another file system"}
}

// unchanged tells whether a file is as it was. The time of change alone may be a new link or permission as well;
// it is also all that tells a rewrite with its times put back.
func unchanged(a, b *unix.Stat_t) bool {
	return fsys.Same(a, b) && a.Size == b.Size && a.Mtim == b.Mtim && a.Ctim == b.Ctim
}

var zeros [chunk]byte

// data copies the bytes and returns their SHA-256, holes counted as the zeros they are. Holes are read as well:
// file systems have claimed holes where there was data. Only what is both called a hole and all zeros is left out.
func (j *job) data(ctx context.Context, src *opened, dst *fsys.File) ([]byte, error) {
	size := src.st.Size
	segs := []fsys.Segment{{Start: 0, End: size}}
	if src.st.Blocks*512 < size {
		var err error
		if segs, err = j.fs.Segments(fsys.ReadSource, src.file, size); err != nil {
			return nil, err
		}
	}
	if err := j.reserve(ctx, dst, segs, size); err != nil {
		return nil, err
	}
	j.fs.ReadAhead(src.file)
	buf, done := j.buffer(size)
	defer done()
	hash := sha256.New()
	written := int64(0) // write-back has begun up to here
	for pos := int64(0); pos < size; {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		for len(segs) > 0 && segs[0].End <= pos {
			segs = segs[1:]
		}
		end, hole := size, true
		if len(segs) > 0 {
			if hole = pos < segs[0].Start; hole {
				end = segs[0].Start
			} else {
				end = segs[0].End
			}
		}
		p := buf[:min(end-pos, int64(len(buf)))]
		if n, err := j.readFull(fsys.ReadSource, src.file, p, pos); err != nil {
			return nil, err
		} else if n < len(p) {
			return nil, changed(src.file.Path())
		}
		hash.Write(p)
		if !hole || !bytes.Equal(p, zeros[:len(p)]) {
			if err := j.wait(ctx, len(p)); err != nil {
				return nil, err
			}
			if err := j.writeFull(dst, p, pos); err != nil {
				return nil, err
			}
		}
		pos += int64(len(p))
		if pos-written >= writeback {
			err := j.fs.StartWriteback(fsys.StartWriteback, dst, written, pos-written)
			if err != nil && !isAny(err, unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP) {
				return nil, err
			}
			written = pos
		}
		j.done += int64(len(p))
		j.progress()
	}
	return hash.Sum(nil), nil
}

// room refuses a content that will not fit, all its files together, before any byte of it is copied. A hundredth of the
// tier, 64 MiB at most, stays free: a release, which makes room, needs a folder of its own first.
func (j *job) room() error {
	free, total, err := j.fs.Space(fsys.Reserve, j.to.Tmp)
	if err != nil || total == 0 { // some file systems do not tell
		return err
	}
	if spare := min(total/100, 64<<20); free < j.need+spare {
		return &fault.Error{Kind: fault.NoSpace, Op: "reserve", Subject: j.r.To.Name, Hint: "free space on the target tier",
			Err: fmt.Errorf("it needs %d bytes, and %d of the %d that are free stay so", j.need, min(spare, free), free)}
	}
	j.need = 0 // what is copied from now on has been counted
	return nil
}

// reserve sets the length and allocates what the source has allocated, so that a full tier is noticed before any
// byte is copied. It goes by parts because some file systems clear what they allocate.
func (j *job) reserve(ctx context.Context, dst *fsys.File, segs []fsys.Segment, size int64) error {
	const part = 256 << 20
	if j.need > 0 {
		if err := j.room(); err != nil {
			return err
		}
	}
	if err := j.fs.Truncate(fsys.Reserve, dst, size); err != nil {
		return err
	}
	for _, s := range segs {
		for off := s.Start; off < s.End; off += part {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			err := j.fs.Allocate(fsys.Reserve, dst, off, min(part, s.End-off))
			if isAny(err, unix.EOPNOTSUPP, unix.ENOSYS) {
				return nil
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// wait takes n bytes from the limiter, in portions of a hundredth of a second at most. Who waits is served in turn, so
// moves share evenly, and a small file does not wait for chunks of large ones. Each portion is a sign of life: being held
// back is no stall.
func (j *job) wait(ctx context.Context, n int) error {
	if j.limiter == nil {
		return nil
	}
	for n > 0 && j.limiter.Limit() != rate.Inf {
		k := min(n, max(1, min(j.limiter.Burst(), int(j.limiter.Limit()/100))))
		if err := j.limiter.WaitN(ctx, k); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if _, ok := ctx.Deadline(); ok { // the limiter does not wait for what the deadline will not let happen
				return errors.Join(context.DeadlineExceeded, err)
			}
			return err
		}
		n -= k
		j.progress()
	}
	return nil
}

// version tells a file, as it is, from all others that this process meets.
type version struct {
	dev, ino uint64
	size     int64
	mtime    unix.Timespec
}

// fsyncFound has sync make durable what somebody else has written. The kernel tells a failed fsync once, drops what it
// could not write, and from then on says that all is well: so a file whose fsync has failed is not believed again until
// its bytes are others, or this process has been started anew.
func (m *Mover) fsyncFound(f *fsys.File, st *unix.Stat_t, sync func() error) error {
	v := version{st.Dev, st.Ino, st.Size, st.Mtim}
	m.mu.Lock()
	distrusted := m.distrusted[v]
	m.mu.Unlock()
	if distrusted {
		return &fault.Error{Kind: fault.Suspect, Op: "fsync",
			Err: &fs.PathError{Op: "fsync", Path: f.Path(),
				Err: errors.New("it has failed before: what can be read may not be on the disk")},
			Hint: "look at the disk and the kernel's log, restore the file, restart the relocator"}
	}
	err := sync()
	if err == nil {
		return nil
	}
	var shared *fsys.SharedError                                                                         // by which others' bytes were lost
	if at := new(fs.PathError); errors.As(err, &at) && at.Path == f.Path() && !errors.As(err, &shared) { // nor of its folder
		m.mu.Lock()
		m.distrusted[v] = true
		m.mu.Unlock()
	}
	return err
}

// readFull reads until p is full or the file ends.
func (m *Mover) readFull(step fsys.Step, f *fsys.File, p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		k, err := m.fs.ReadAt(step, f, p[n:], off+int64(n))
		if err != nil {
			return n, err
		}
		if k == 0 {
			return n, nil
		}
		n += k
	}
	return n, nil
}

func (m *Mover) writeFull(f *fsys.File, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := m.fs.WriteAt(fsys.WriteTemp, f, p, off)
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("%s: %w", f.Path(), io.ErrShortWrite)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// sum reads a file to its end, calling alive after every chunk, and returns its SHA-256 and length. size is what its length
// should be.
func (m *Mover) sum(ctx context.Context, step fsys.Step, f *fsys.File, size int64, alive func()) ([]byte, int64, error) {
	m.fs.ReadAhead(f)
	buf, done := m.buffer(size)
	defer done()
	hash := sha256.New()
	for pos := int64(0); ; {
		if ctx.Err() != nil {
			return nil, 0, context.Cause(ctx)
		}
		n, err := m.readFull(step, f, buf, pos)
		if err != nil {
			return nil, 0, err
		}
		hash.Write(buf[:n])
		pos += int64(n)
		alive()
		if n < len(buf) {
			return hash.Sum(nil), pos, nil
		}
	}
}

// digest is the form in which events and MySQL hold a sum; "" for none.
func digest(sum []byte) string {
	if sum == nil {
		return ""
	}
	return "sha256:" + hex.EncodeToString(sum)
}
