// Package tier opens and makes the folders that hold a level's files. It touches the root folder of a tier and what lies
// in its .tierflow folder, never an item.
//
// The identity in .tierflow/tier.json is the only proof that a folder is a certain tier. A folder without an identity
// is a disk that is not mounted; a folder with another identity is the wrong disk. Both are refused. Only Init writes
// identities.
package tier

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
)

// Names inside item.MetaFolder.
const (
	identityName = "tier.json"
	tmpName      = "tmp"
	releasedName = "released"
	reserveName  = "reserve"
	probeName    = "link-probe"

	writeProbeName = "write-probe"
)

// Causes of errors of Open.
var (
	ErrNoID       = errors.New("the level has no tier id yet")
	ErrNoIdentity = fmt.Errorf("there is no %s/%s", item.MetaFolder, identityName) // its disk is not mounted, or the tier is new
)

// Identity is what tier.json says.
type Identity struct {
	ID        string    `json:"id"`
	Level     string    `json:"level"`
	CreatedAt time.Time `json:"created_at"`
}

// Root is an open tier whose identity was checked. An open descriptor stays valid after an unmount. So each job opens a
// Root of its own, or shares one that an Opener checks again. A job calls Check before and after an operation that must
// not happen on another disk, and closes the Root at its end.
type Root struct {
	Level      policy.Level
	ID         string
	Dir        *fsys.File   // the root folder; the items lie below it
	Tmp        *fsys.File   // .tierflow/tmp: temporaries of moves
	Released   *fsys.File   // .tierflow/released: old copies that are being deleted
	InReleased *fsys.Lister // lists Released

	fs       fsys.FS
	meta     *fsys.File // .tierflow
	st       unix.Stat_t
	identSt  unix.Stat_t // the stat of tier.json when it was read
	resolved func() (string, error)
	naming   naming
	own      Traits       // where there is no opener
	reserves atomic.Int32 // releases that have the reserve

	opener *Opener // nil: one job has the Root to itself

	// The opener's mutex guards the rest.
	users   int
	spares  []string    // names of empty folders in released/, for reuse
	checked time.Time   // the start of the last check
	idle    *time.Timer // closes the Root when nobody has used it for a while
}

// Open opens the level's tier. Kinds: TierRefused where the folder is missing or does not have the identity of
// level.TierID, and where the relocator may not use it; the hint says what to do. Suspect for an error of the disk.
//
// Open makes tmp/ and released/ again where they are missing: the identity proves that this is the right tier.
func Open(fs fsys.FS, level policy.Level) (*Root, error) {
	if level.TierID == "" {
		return nil, refused(level, "run `relocator init-tiers`", ErrNoID)
	}
	r, id, err := open(fs, level)
	if err != nil {
		return nil, err
	}
	if err := r.finish(id); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// finish checks the identity and opens the folders tmp and released.
func (r *Root) finish(id *Identity) error {
	if id == nil {
		return refused(r.Level, "mount the disk; if the tier is new, clear the level's tier_id and run "+
			"`relocator init-tiers`", ErrNoIdentity)
	}
	if err := id.check(r.Level); err != nil {
		return err
	}
	r.ID = id.ID
	for _, d := range []struct {
		name string
		file **fsys.File
	}{{tmpName, &r.Tmp}, {releasedName, &r.Released}} {
		f, err := r.folder(r.meta, d.name, 0o700)
		if err != nil {
			return fail(r.Level, err)
		}
		*d.file = f
	}
	r.InReleased = fsys.NewLister(r.Released)
	if err := r.keepReserve(); err != nil {
		return fail(r.Level, err)
	}
	if err := r.lookAtNames(); err != nil {
		return fail(r.Level, err)
	}
	return nil
}

func (id *Identity) check(level policy.Level) error {
	const hint = "another tier is mounted here: mount the right disk, or set the level's path"
	if id.Level != level.Name {
		return refused(level, hint, fmt.Errorf("its identity is of level %q", id.Level))
	}
	if level.TierID != "" && id.ID != level.TierID {
		return refused(level, hint, fmt.Errorf("its identity is %s, the level's tier_id is %s", id.ID, level.TierID))
	}
	return nil
}

// open opens the root and .tierflow, and reads the identity. The identity is nil where there is none.
func open(fs fsys.FS, level policy.Level) (*Root, *Identity, error) {
	dir, st, err := fs.OpenRoot(fsys.OpenTier, level.Path)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil, refused(level, "make the folder or mount the disk", err)
	}
	if err != nil {
		return nil, nil, fail(level, err)
	}
	r := &Root{Level: level, Dir: dir, fs: fs, st: st}
	r.resolved = sync.OnceValues(func() (string, error) { return fsys.Resolved(dir) })
	r.meta, _, err = fs.OpenDir(fsys.OpenTier, dir, item.MetaFolder)
	if errors.Is(err, unix.ENOENT) {
		return r, nil, nil
	}
	if err != nil {
		r.Close()
		return nil, nil, fail(level, err)
	}
	id, st, err := r.identity()
	if err != nil {
		r.Close()
		return nil, nil, err
	}
	r.identSt = st
	return r, id, nil
}

func (r *Root) identity() (*Identity, unix.Stat_t, error) {
	f, st, err := r.fs.Open(fsys.ReadIdentity, r.meta, identityName)
	if errors.Is(err, unix.ENOENT) {
		return nil, st, nil
	}
	if err != nil {
		return nil, st, fail(r.Level, err)
	}
	defer f.Close()
	if !fsys.IsFile(&st) {
		return nil, st, refused(r.Level, "", &fsys.KindError{Path: f.Path(), Kind: fsys.Kind(&st)})
	}
	buf := make([]byte, 4<<10)
	n, err := r.fs.ReadAt(fsys.ReadIdentity, f, buf, 0)
	if err != nil {
		return nil, st, fail(r.Level, err)
	}
	var id Identity
	err = json.Unmarshal(buf[:n], &id)
	if err == nil && id.ID == "" {
		err = errors.New("it has no id")
	}
	if err != nil {
		return nil, st, refused(r.Level, "restore it from a backup: the table `level` holds its id and level",
			fmt.Errorf("%s is not an identity: %w", f.Path(), err))
	}
	return &id, st, nil
}

// Close closes the Root; nil is allowed. A shared Root stays open until nobody uses it any more.
func (r *Root) Close() {
	if r == nil || r.opener != nil && !r.opener.leave(r) {
		return
	}
	r.close()
}

func (r *Root) close() {
	for _, name := range r.spares {
		_ = r.fs.Rmdir(fsys.DeleteReleased, r.Released, name) // else the sweep removes it
	}
	for _, f := range []*fsys.File{r.Released, r.Tmp, r.meta, r.Dir} {
		f.Close()
	}
}

// Check tells whether the tier's path still leads to this folder with this identity. The error is fault.TierRefused where
// the disk was unmounted or exchanged meanwhile. What was written may then be on another disk.
func (r *Root) Check(step fsys.Step) error {
	err := r.check(step)
	if err != nil && r.opener != nil {
		r.opener.expire(r)
	}
	return err
}

func (r *Root) check(step fsys.Step) error {
	st, err := r.fs.StatRoot(step, r.Level.Path)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return refused(r.Level, "the tier was unmounted during the job: mount the disk", err)
	}
	if err != nil {
		return fail(r.Level, err)
	}
	if !fsys.Same(&st, &r.st) {
		return refused(r.Level, "the tier was unmounted or exchanged during the job: mount the right disk there; the job "+
			"is retried", errors.New("the path leads to another folder now"))
	}
	if r.sameIdentity() { // no need to read it again
		return nil
	}
	id, _, err := r.identity()
	if err != nil {
		return err
	}
	if id == nil || id.ID != r.ID || id.Level != r.Level.Name {
		return refused(r.Level, "mount the right disk, or put its tier.json back", errors.New("its identity changed during the job"))
	}
	return nil
}

// sameIdentity tells whether tier.json is still the file that was read, unchanged.
func (r *Root) sameIdentity() bool {
	st, err := r.fs.Lstat(fsys.ReadIdentity, r.Dir, item.MetaFolder+"/"+identityName)
	was := &r.identSt
	return err == nil && fsys.Same(&st, was) && st.Size == was.Size && st.Mtim == was.Mtim && st.Ctim == was.Ctim
}

// SameFolder tells whether two roots are one folder, whatever their paths and mounts.
func (r *Root) SameFolder(o *Root) bool { return fsys.Same(&r.st, &o.st) }

// CheckDistinct refuses tiers that are the same folder, or of which one lies within the other. There, the release of an
// old copy would delete the only copy. CheckDistinct resolves symbolic links and notices bind mounts of a whole tier. It
// does not notice a bind mount of a folder inside another tier. Kind: TierRefused.
func CheckDistinct(roots ...*Root) error {
	paths := make([]string, len(roots))
	for i, a := range roots {
		p, err := a.resolved()
		if err != nil {
			return fail(a.Level, err)
		}
		paths[i] = p
		for j, b := range roots[:i] {
			var what string
			switch {
			case a.SameFolder(b):
				what = "are the same folder"
			case a.ID == b.ID:
				what = "have the same identity " + a.ID
			case within(p, paths[j]) || within(paths[j], p):
				what = "lie within each other"
			default:
				continue
			}
			return refused(a.Level, "give every level a folder of its own",
				fmt.Errorf("levels %q (%s) and %q (%s) %s", b.Level.Name, b.Level.Path, a.Level.Name, a.Level.Path, what))
		}
	}
	return nil
}

func within(p, parent string) bool { return strings.HasPrefix(p+"/", parent+"/") }

// Usage tells how full the tier's file system is. It may belong to others as well.
func (r *Root) Usage() (fsys.Usage, error) {
	u, err := r.fs.Usage(fsys.LookSpace, r.Dir)
	if err != nil {
		err = fail(r.Level, err)
	}
	return u, err
}

// CheckWritable tells whether the tier's file system takes writes, without one. It hangs where writes hang. Kind: Suspect. What
// only a write shows, Probe finds out.
func (r *Root) CheckWritable() error {
	err := r.fs.TakesWrites(fsys.LookWritable, r.meta, identityName)
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EIO) || errors.Is(err, unix.EUCLEAN) {
		return fail(r.Level, err)
	}
	return nil // this user may be allowed to read the identity alone
}

// Spare is how many of a tier's bytes stay free for whatever else writes there. total is the size of its file system.
func Spare(total int64) int64 { return min(total/100, 64<<20) }

// Probe tests whether the tier accepts writes: it makes a hard link, finds out the Traits, and writes and syncs a file.
// Only a hard link can publish a file without replacing an existing one. A full tier passes. Kinds: TierRefused, Suspect.
func (r *Root) Probe() error {
	// EEXIST: another process, or one that crashed, has made the link. That is proof enough.
	err := r.fs.Link(fsys.ProbeLink, r.meta, identityName, r.meta, probeName)
	if err != nil && !errors.Is(err, unix.EEXIST) && !full(err) {
		return refused(r.Level, "a tier needs a writable file system with hard links", err)
	}
	if err := r.fs.Unlink(fsys.ProbeUnlink, r.meta, probeName); err != nil && !errors.Is(err, unix.ENOENT) {
		return fail(r.Level, err)
	}
	if _, err := r.Traits(); err != nil {
		return err
	}
	return r.probeWrite()
}

// probeWrite writes and syncs a file, and removes it.
func (r *Root) probeWrite() error {
	const hint = "look at the disk and the kernel's log"
	f, err := r.fs.Create(fsys.ProbeWrite, r.meta, writeProbeName)
	if errors.Is(err, unix.EEXIST) {
		// Another process has it open and does not need its name any more, or a crash has left it.
		if err := r.fs.Unlink(fsys.ProbeUnlink, r.meta, writeProbeName); err != nil && !errors.Is(err, unix.ENOENT) {
			return refused(r.Level, hint, err)
		}
		f, err = r.fs.Create(fsys.ProbeWrite, r.meta, writeProbeName)
	}
	if full(err) || errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err != nil {
		return refused(r.Level, hint, err)
	}
	defer f.Close()
	_, werr := r.fs.WriteAt(fsys.ProbeWrite, f, make([]byte, 4096), 0)
	var serr error
	if werr == nil {
		serr = r.fs.Fsync(fsys.ProbeFsync, f)
	} else if full(werr) {
		werr = nil
	}
	uerr := r.fs.Unlink(fsys.ProbeUnlink, r.meta, writeProbeName)
	if errors.Is(uerr, unix.ENOENT) {
		uerr = nil
	}
	if err := errors.Join(werr, serr, uerr); err != nil {
		return refused(r.Level, hint, err)
	}
	return nil
}

func full(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

func subject(level policy.Level) string { return fmt.Sprintf("%s (%s)", level.Name, level.Path) }

func refused(level policy.Level, hint string, err error) error {
	return &fault.Error{Kind: fault.TierRefused, Op: "use tier", Subject: subject(level), Hint: hint, Err: err, Level: level.Name}
}

// fail gives a file system error its kind. It returns faults unchanged.
func fail(level policy.Level, err error) error {
	var known *fault.Error
	if errors.As(err, &known) {
		return err
	}
	var kind *fsys.KindError
	if errors.As(err, &kind) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return refused(level, "the relocator must own the tier's folder and .tierflow", err)
	}
	k := fault.Internal
	switch {
	case errors.Is(err, unix.EIO) || errors.Is(err, unix.EUCLEAN) || errors.Is(err, unix.EROFS):
		k = fault.Suspect
	case full(err):
		k = fault.NoSpace
	}
	return &fault.Error{Kind: k, Op: "use tier", Subject: subject(level), Err: err, Level: level.Name}
}
