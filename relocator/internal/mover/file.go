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

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/tier"
	"github.com/tierflow/tierflow/shared/fault"
)

// file makes dst/name a hard link to src, or a durable copy of it. sum is the SHA-256 of the bytes; nil for a link.
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

// link tries to make dst/name a hard link to src. Only the kernel knows whether two folders share a file system:
// st_dev is wrong for bind mounts and subvolumes. The file is synced after the link, while nobody reads the name. If
// the sync came first, the name would need a sync of its own.
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
	// linkat(2) takes a name. Another file, or a symbolic link, may have had it at that moment.
	st, err := j.fs.Lstat(fsys.LinkTemp, dst, name)
	if err != nil {
		return false, err
	}
	if !fsys.Same(&st, &src.st) {
		return false, changed(src.file.Path())
	}
	return true, j.fsyncFound(src.file, &src.st, func() error { return j.fsync(fsys.FsyncSource, src.file, dst) })
}

// fsync makes a file durable that was made or linked in dst. Where dst is tmp/, the file's name is the record of the
// attempt. The record must become durable before the copy is published, so dst is synced as well.
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

// copy makes a durable copy of a file: bytes, holes, owner, mode, attributes and times. It then checks the copy and that
// the source did not change.
func (j *job) copy(ctx context.Context, src *opened, dst *fsys.File, name string) (string, []byte, error) {
	if j.total > LargeSize && !j.asked && j.r.Large != nil {
		if err := j.r.Large(); err != nil {
			return "", nil, err
		}
		j.asked = true
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
	// An fsync cannot be cancelled. Write-back began early, so that the fsync is short.
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
			return "", nil, suspect("read back", fmt.Errorf("%s reads back differently: %d bytes with sha256 %x, "+
				"%d bytes with sha256 %x were written", f.Path(), n, got, src.st.Size, sum))
		}
		sum = got
	}
	// Most uploaders never call fsync. If a power cut damaged the source after the copy became durable, the two would
	// differ, and the next attempt would report a conflict.
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

// metadata gives a copy the owner, mode, attributes and times of its source. Some file systems answer ENOSPC for an
// attribute that is too large for them. metadata reports that as Unsupported, because the tier is not full.
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
		Hint: "the target's file system cannot hold this attribute: remove it, or use another file system"}
}

// unchanged tells whether a file is as it was. A new ctime may come from a new link or permission only. But it is also
// the only sign of a rewrite whose mtime was put back, so it counts as a change.
func unchanged(a, b *unix.Stat_t) bool {
	return fsys.Same(a, b) && a.Size == b.Size && a.Mtim == b.Mtim && a.Ctim == b.Ctim
}

var zeros [chunkSize]byte

// data copies the bytes and returns their SHA-256, in which holes are zeros. It reads holes as well, because file
// systems have reported holes where there was data. It leaves out only chunks that are in a hole and all zeros.
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
	written := int64(0) // the offset up to which write-back has begun
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
			if err := j.throttle(ctx, len(p)); err != nil {
				return nil, err
			}
			if err := j.writeFull(dst, p, pos); err != nil {
				return nil, err
			}
		}
		pos += int64(len(p))
		if pos-written >= writebackSize {
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

// checkSpace refuses an item that does not fit, before any of its files is copied. One percent of the tier, but at most
// 64 MiB, stays free for whatever else writes there.
func (j *job) checkSpace() error {
	free, total, err := j.fs.Space(fsys.Reserve, j.to.Tmp)
	if err != nil || total == 0 { // total 0: the file system does not report its size
		return err
	}
	if spare := tier.Spare(total); free < j.need+spare {
		return &fault.Error{Kind: fault.NoSpace, Op: "reserve", Subject: j.r.To.Name,
			Err: fmt.Errorf("it needs %d bytes; %d bytes are free, of which %d must stay free", j.need, free, min(spare, free))}
	}
	j.need = 0 // the check covers all files of the item
	return nil
}

// reserve sets the length and allocates the segments, so that a full tier fails before any byte is copied. It allocates
// in parts of 256 MiB and checks the context between them: some file systems write zeros, which takes time.
func (j *job) reserve(ctx context.Context, dst *fsys.File, segs []fsys.Segment, size int64) error {
	const part = 256 << 20
	if j.need > 0 {
		if err := j.checkSpace(); err != nil {
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

// throttle takes n bytes from the limiter, in portions of at most a hundredth of a second. The limiter serves moves in
// turn, so they share the bandwidth evenly. One large item at a time waits for the limiter, so a small one waits for one
// portion of a large one, however many are copied. throttle reports progress after each portion.
func (j *job) throttle(ctx context.Context, n int) error {
	if j.limiter == nil {
		return nil
	}
	for n > 0 && j.limiter.Limit() != rate.Inf {
		k := min(n, max(1, min(j.limiter.Burst(), int(j.limiter.Limit()/100))))
		if err := j.takeBandwidth(ctx, k); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if _, ok := ctx.Deadline(); ok { // the limiter fails at once where the deadline would come first
				return errors.Join(context.DeadlineExceeded, err)
			}
			return err
		}
		n -= k
		j.progress()
	}
	return nil
}

func (j *job) takeBandwidth(ctx context.Context, n int) error {
	if j.total > LargeSize {
		select {
		case j.turn <- struct{}{}:
			defer func() { <-j.turn }()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return j.limiter.WaitN(ctx, n)
}

// version identifies a file with its present bytes.
type version struct {
	dev, ino uint64
	size     int64
	mtime    unix.Timespec
}

// fsyncFound calls sync for a file that another process wrote. The kernel reports an fsync error once and drops the
// pages; later calls succeed. fsyncFound therefore remembers a failed file and refuses it until its bytes change or this
// process restarts.
func (m *Mover) fsyncFound(f *fsys.File, st *unix.Stat_t, sync func() error) error {
	v := version{st.Dev, st.Ino, st.Size, st.Mtim}
	m.mu.Lock()
	failed := m.failedFsync[v]
	m.mu.Unlock()
	if failed {
		return &fault.Error{Kind: fault.Suspect, Op: "fsync",
			Err: &fs.PathError{Op: "fsync", Path: f.Path(),
				Err: errors.New("an fsync of this file has failed before: its bytes may not be on the disk")},
			Hint: "look at the disk and the kernel's log, restore the file, restart the relocator"}
	}
	err := sync()
	if err == nil {
		return nil
	}
	// An error of the folder, or one that other files share, says nothing about this file's bytes.
	var shared *fsys.SharedError
	if at := new(fs.PathError); errors.As(err, &at) && at.Path == f.Path() && !errors.As(err, &shared) {
		m.mu.Lock()
		m.failedFsync[v] = true
		m.mu.Unlock()
	}
	return err
}

// readFull reads until p is full or the file ends, and returns how many bytes it read.
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

// sum reads a file to its end and returns its SHA-256 and length. It calls progress after every chunk. size is the
// expected length; it only chooses the buffer.
func (m *Mover) sum(ctx context.Context, step fsys.Step, f *fsys.File, size int64, progress func()) ([]byte, int64, error) {
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
		progress()
		if n < len(buf) {
			return hash.Sum(nil), pos, nil
		}
	}
}

// digest formats a SHA-256 as events and MySQL hold it: "sha256:<hex>", or "" for nil.
func digest(sum []byte) string {
	if sum == nil {
		return ""
	}
	return "sha256:" + hex.EncodeToString(sum)
}
