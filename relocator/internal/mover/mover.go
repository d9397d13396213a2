package mover

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/tier"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
)

// Verify says how a copy is checked before it is published.
type Verify string

// ReadBack reads the copy back from the disk and compares its SHA-256. Stream trusts the results of write and fsync.
const (
	ReadBack Verify = "readback"
	Stream   Verify = "stream"
)

// The methods by which a copy is made: a hard link, a clone that shares blocks, or a copy of the bytes. Found: it was there,
// and no mover has made it (Claim).
const (
	Linked = "link"
	Cloned = "clone"
	Copied = "copy"
	Found  = "found"
)

const (
	maxTries      = 4         // for a source that changes while it is read, and for a folder that others remove
	chunkSize     = 256 << 10 // bytes that are read, hashed and written between two checks of the context
	maxDepth      = 100       // of nested folders; each open one costs a descriptor
	smallSize     = 64 << 10  // bytes; smaller files use smaller buffers
	writebackSize = 8 << 20   // bytes that are written before write-back begins
	treeName      = "tree"    // of a directory's copy inside the attempt's folder in tmp/
	copyName      = "copy"    // of the old copy inside the attempt's folder in released/
)

// Options of New. The zero value is usable.
type Options struct {
	Verify  Verify        // ReadBack by default
	Limiter *rate.Limiter // limits the bytes per second that all moves together copy; nil: no limit
	FS      fsys.FS
}

// Mover makes, releases and sweeps copies. It is safe for concurrent use.
type Mover struct {
	verify  Verify
	limiter *rate.Limiter
	fs      fsys.FS
	tiers   *tier.Opener
	buffers sync.Pool
	smalls  sync.Pool
	turn    chan struct{} // holds an element while a large item waits for the limiter

	mu          sync.Mutex
	failedFsync map[version]bool // files whose fsync failed
}

// New makes a Mover.
func New(o Options) *Mover {
	if o.Verify == "" {
		o.Verify = ReadBack
	}
	if o.FS.Syncs == nil {
		o.FS.Syncs = fsys.NewSyncs(false)
	}
	return &Mover{verify: o.Verify, limiter: o.Limiter, fs: o.FS, tiers: tier.NewOpener(o.FS),
		failedFsync: map[version]bool{},
		turn:        make(chan struct{}, 1),
		buffers:     sync.Pool{New: func() any { return newBuffer(chunkSize) }},
		smalls:      sync.Pool{New: func() any { return newBuffer(smallSize) }}}
}

func newBuffer(n int) *[]byte {
	b := make([]byte, n)
	return &b
}

// buffer returns a buffer to read a file of size bytes. done puts it back into its pool.
func (m *Mover) buffer(size int64) (buf []byte, done func()) {
	pool := &m.buffers
	if size < smallSize { // not <=: a read that does not fill the buffer shows the end of the file
		pool = &m.smalls
	}
	b := pool.Get().(*[]byte)
	return *b, func() { pool.Put(b) }
}

// Look tests whether the level's tier is there. Kinds: TierRefused, Suspect.
func (m *Mover) Look(level policy.Level) error {
	root, err := m.tiers.Open(level)
	root.Close()
	return err
}

// Probe tests whether the level's tier accepts writes. It shows whether a failed move is the tier's fault or the item's.
// Kinds: TierRefused, Suspect.
func (m *Mover) Probe(level policy.Level) error {
	root, err := m.tiers.Open(level)
	if err != nil {
		return err
	}
	defer root.Close()
	return root.Probe()
}

// LargeSize is the size in bytes above which an item is large. Large items must not hold up others.
const LargeSize = chunkSize

// Request asks for a copy of an item on the level To.
type Request struct {
	ID       item.ID
	EventID  string
	Token    string // names this attempt; never used twice
	Filename string
	From, To policy.Level

	// Large, when set, is called once where an item larger than LargeSize is to be copied, before any byte is. Where it
	// returns an error, Make ends with that error.
	Large func() error

	// Progress, when set, is called from within Make with the bytes copied so far and their total, at least once for each
	// chunk of 256 KiB. It is called neither while a call of the kernel takes long, nor while a directory is listed.
	Progress func(done, total int64)
}

// Copy is a copy that is published and durable.
type Copy struct {
	Method  string // Linked, Cloned or Copied
	Bytes   int64  // the item's size
	Digest  string // "sha256:<hex>", as Mover.Digest gives it; "" where no byte was read
	Adopted bool   // the copy was already there

	mover   *Mover
	level   policy.Level
	attempt string // "" where nothing was left in tmp/
}

// Discard removes the attempt's record in tmp/. Call it after the emit, or after the stray was reported.
func (m *Copy) Discard() error {
	if m.attempt == "" {
		return nil
	}
	root, err := m.mover.tiers.Open(m.level)
	if err != nil {
		return err
	}
	defer root.Close()
	err = m.mover.fs.RemoveAll(context.Background(), fsys.RemoveTemp, root.Tmp, m.attempt)
	return wrap("discard", m.attempt, err)
}

// Make is step 4 of the protocol: it makes a copy on r.To that is durable and visible under its name. The caller must
// look up the row, which names r.From, before it calls Make.
//
// Without an error the copy is published: emit, then Discard. With an error and a Copy, the copy is published, or may
// be: report a stray, then Discard. With an error and no Copy, nothing was published and the temporary is removed.
//
// Kinds: InvalidName, MissingFile (look up the row again: another move may have been faster), Unsupported, Conflict,
// TierRefused, NoSpace, Suspect, Changed, Lost (the sweep removed the attempt), Busy (another attempt removed a file or
// folder at the same time). A cancelled context gives its cause.
func (m *Mover) Make(ctx context.Context, r Request) (*Copy, error) {
	made, err := m.make(ctx, r)
	err = wrap("move", fmt.Sprintf("%d (%s) from %s to %s", r.ID, r.Filename, r.From.Name, r.To.Name), err)
	return made, setLevel(err, r.To, r.From)
}

// job is one call of Make.
type job struct {
	*Mover
	r        Request
	from, to *tier.Root
	attempt  string
	done     int64
	total    int64
	need     int64 // bytes of disk space that the copy needs; 0 once checkSpace has found them
	asked    bool  // Large was called
	noLink   bool  // a link failed with EXDEV: further files are not tried
}

func (m *Mover) make(ctx context.Context, r Request) (*Copy, error) {
	if err := item.CheckFilename(r.Filename); err != nil {
		return nil, fault.New(fault.InvalidName, "move", r.ID.String(), err)
	}
	if err := errors.Join(checkPart(r.EventID), checkPart(r.Token)); err != nil {
		return nil, err
	}
	from, err := m.tiers.Open(r.From)
	if err != nil {
		return nil, err
	}
	defer from.Close()
	to, err := m.tiers.Open(r.To)
	if err != nil {
		return nil, err
	}
	defer to.Close()
	if err := tier.CheckDistinct(from, to); err != nil {
		return nil, err
	}
	traits, err := to.Traits()
	if err != nil {
		return nil, err
	}

	j := &job{Mover: m, r: r, from: from, to: to, attempt: tempName(r.ID, r.EventID, r.Token)}
	src, err := j.source(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { src.Close() }()
	if err := j.clearReleased(ctx); err != nil {
		return nil, err
	}
	if made, err := j.adopt(ctx, src); made != nil || err != nil {
		return made, err
	}
	if src.tree != nil && traits.NoRename { // found out before the copy is made, not after it
		return nil, j.noDirectories(tier.NoDirectories)
	}
	made := &Copy{Bytes: j.total, mover: m, level: r.To, attempt: j.attempt}
	for try := 1; ; try++ {
		err := j.prepare(ctx, src, made)
		if err == nil {
			break
		}
		j.clean(ctx)
		if !fault.Is(err, fault.Changed) || try == maxTries {
			return nil, err
		}
		src.Close()
		if src, err = j.source(ctx); err != nil {
			return nil, err
		}
		made.Bytes = j.total
	}
	made, err = j.publish(ctx, src, made)
	if made == nil {
		j.clean(ctx)
	}
	return made, err
}

// clean removes the attempt's temporary. It ignores errors, because the sweep removes what is left.
func (j *job) clean(ctx context.Context) {
	_ = j.fs.RemoveAll(context.WithoutCancel(ctx), fsys.RemoveTemp, j.to.Tmp, j.attempt)
}

func (j *job) progress() {
	if j.r.Progress != nil {
		j.r.Progress(j.done, j.total)
	}
}

// opened is an open file or folder, with the folder that holds its name.
type opened struct {
	parent *fsys.File
	base   string
	file   *fsys.File
	st     unix.Stat_t
	tree   *node // the entries of a source that is a folder
}

// Close closes the file and its folder; nil is allowed.
func (i *opened) Close() {
	if i != nil {
		i.file.Close()
		i.parent.Close()
	}
}

// find opens an item's file or folder on a tier. A *fsys.SpellingError: what is there has another name.
func (m *Mover) find(ctx context.Context, step fsys.Step, root *tier.Root, filename string) (*opened, error) {
	parent, _, err := m.fs.OpenDir(step, root.Dir, path.Dir(filename))
	if err != nil {
		return nil, err
	}
	i := &opened{parent: parent, base: path.Base(filename)}
	if i.file, i.st, err = m.openIn(step, parent, i.base); err != nil {
		parent.Close()
		return nil, err
	}
	if err := m.CheckSpelling(ctx, step, root, filename); err != nil {
		i.Close()
		return nil, err
	}
	return i, nil
}

// openIn opens a file or folder. It checks the type first, because opening a device can have side effects.
func (m *Mover) openIn(step fsys.Step, dir *fsys.File, name string) (*fsys.File, unix.Stat_t, error) {
	st, err := m.fs.Lstat(step, dir, name)
	if err != nil {
		return nil, st, err
	}
	if !fsys.IsFile(&st) && !fsys.IsDir(&st) {
		return nil, st, &fsys.KindError{Path: dir.At(name), Kind: fsys.Kind(&st)}
	}
	return m.fs.Open(step, dir, name)
}

// inPlace tells whether a file or folder that was opened earlier still has its name. A releaser may have renamed it and
// deleted half of it since, and the open descriptor does not show that. The entries read from a directory therefore
// count only if it is in place afterwards. The open descriptor prevents the reuse of the inode number.
func (m *Mover) inPlace(step fsys.Step, root *tier.Root, filename string, i *opened) (bool, error) {
	now, err := m.fs.StatPath(step, root.Dir, filename)
	var kind *fsys.KindError
	if missing(err) || errors.As(err, &kind) {
		return false, nil
	}
	return err == nil && fsys.Same(&now, &i.st), err
}

// source opens the item on its present tier and adds up its size.
func (j *job) source(ctx context.Context) (*opened, error) {
	src, err := j.find(ctx, fsys.OpenSource, j.from, j.r.Filename)
	if missing(err) || otherSpelling(err) {
		return nil, fault.New(fault.MissingFile, "read", j.from.Dir.At(j.r.Filename), err)
	}
	if err != nil {
		return nil, err
	}
	j.done, j.total, j.need = 0, src.st.Size, allocated(&src.st)
	if fsys.IsDir(&src.st) {
		if src.tree, err = j.walk(ctx, fsys.OpenSource, src.file, &src.st, 0); err != nil {
			src.Close()
			return nil, err
		}
		j.total, j.need = src.tree.size()
	}
	j.progress()
	return src, nil
}

// clearReleased removes every folder of the item in the target's released/, so that no earlier releaser can rename a copy
// into it. Where the target folds names, an earlier releaser of another item could rename this copy: it checked the
// spelling of its own copy, which was there then. So clearReleased removes the folders of all items there.
func (j *job) clearReleased(ctx context.Context) error {
	m, root, mine := j.Mover, j.to, j.r.ID.String()+"."
	folds, err := j.folds()
	if err != nil {
		return err
	}
	for removed := false; ; removed = true {
		names, err := m.fs.ListShared(fsys.ClearReleased, root.InReleased)
		if err != nil {
			return err
		}
		left := false
		for _, n := range names {
			if folds || strings.HasPrefix(n, mine) {
				left = true
				if err := m.fs.RemoveAll(ctx, fsys.ClearReleased, root.Released, n); err != nil {
					return err
				}
			}
		}
		if left {
			continue
		}
		if removed {
			if err := m.fs.Fsync(fsys.FsyncReleased, root.Released); err != nil {
				return suspect("clear "+root.Released.Path(), err)
			}
		}
		return nil
	}
}

// prepare makes the attempt's temporary complete, checked and durable. Its name is durable as well.
func (j *job) prepare(ctx context.Context, src *opened, made *Copy) error {
	if src.tree != nil {
		if err := j.prepareTree(ctx, src, made); err != nil {
			return err
		}
		if err := j.fs.Fsync(fsys.FsyncRecord, j.to.Tmp); err != nil {
			return suspect("fsync", err)
		}
	} else {
		method, sum, err := j.file(ctx, src, j.to.Tmp, j.attempt)
		if err != nil {
			return err
		}
		made.Method, made.Digest = method, digest(sum)
	}
	if there, err := j.inPlace(fsys.RecheckSource, j.from, j.r.Filename, src); err != nil {
		return err
	} else if !there {
		return changed(src.file.Path())
	}
	if err := j.from.Check(fsys.RecheckTier); err != nil {
		return err
	}
	return j.to.Check(fsys.RecheckTier)
}
