// Package tier opens and makes the folders where a level's files lie. A tier is known by the identity in its
// .tierflow/tier.json and by nothing else: a folder without it, or with another one, is a disk that is not
// mounted, or the wrong one, and is refused. Only Init writes identities.
package tier

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
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
	probeName    = "link-probe"

	writeProbeName = "write-probe"
)

// Identity is what tier.json holds.
type Identity struct {
	ID        string    `json:"id"`
	Level     string    `json:"level"`
	CreatedAt time.Time `json:"created_at"`
}

// Root is an open tier whose identity has been checked. Descriptors outlive mounts, so a Root is opened fresh for
// every job, or looked at again where jobs that overlap share it (Opener), asked to Check around what must not go
// astray, and closed.
type Root struct {
	Level      policy.Level
	ID         string
	Dir        *fsys.File   // the root; contents lie below it
	Tmp        *fsys.File   // .tierflow/tmp: attempts of moves
	Released   *fsys.File   // .tierflow/released: copies on their way out
	InReleased *fsys.Lister // what lies there

	fs       fsys.FS
	meta     *fsys.File
	st       unix.Stat_t
	identSt  unix.Stat_t // of tier.json, when it was read
	resolved func() (string, error)

	opener *Opener     // nil: of one job
	users  int         // guarded by the opener
	spares []string    // the same
	looked time.Time   // the same: before it was last looked at, as a whole
	idle   *time.Timer // the same: closes it when nobody has used it for a while
}

// Open opens the level's tier. Where the folder, or the identity that level.TierID asks for, is not there, the
// error is fault.TierRefused and says what to do. tmp/ and released/ are made again where only they are missing:
// the identity proves that this is the tier, and a lost scratch folder must not stop it.
func Open(fs fsys.FS, level policy.Level) (*Root, error) {
	if level.TierID == "" {
		return nil, refused(level, "run `relocator init-tiers`", errors.New("the level has no tier id yet"))
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

func (r *Root) finish(id *Identity) error {
	if id == nil {
		return refused(r.Level, "mount the disk; if the tier is new, clear the level's tier_id and run "+
			"`relocator init-tiers`", fmt.Errorf("there is no %s/%s", item.MetaFolder, identityName))
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

// open opens root and .tierflow and reads the identity: nil where there is none.
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
		return nil, st, refused(r.Level, "restore it from a backup: id and level stand in the table `level`",
			fmt.Errorf("%s cannot be read as an identity: %w", f.Path(), err))
	}
	return &id, st, nil
}

// Close closes all descriptors, of a shared Root when nobody needs it any more; nil is allowed.
func (r *Root) Close() {
	if r == nil || r.opener != nil && !r.opener.leave(r) {
		return
	}
	r.close()
}

func (r *Root) close() {
	for _, name := range r.spares {
		_ = r.fs.Rmdir(fsys.DeleteReleased, r.Released, name) // or the sweep
	}
	for _, f := range []*fsys.File{r.Released, r.Tmp, r.meta, r.Dir} {
		f.Close()
	}
}

// Check looks at the tier's path once more and tells whether it still leads to this folder with this identity. A
// disk unmounted or exchanged meanwhile is fault.TierRefused: what was written went somewhere else.
func (r *Root) Check(step fsys.Step) error {
	err := r.check(step)
	if err != nil && r.opener != nil {
		r.opener.distrust(r)
	}
	return err
}

func (r *Root) check(step fsys.Step) error {
	st, err := r.fs.StatRoot(step, r.Level.Path)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return refused(r.Level, "the tier went away during the job: mount the disk", err)
	}
	if err != nil {
		return fail(r.Level, err)
	}
	if !fsys.Same(&st, &r.st) {
		return refused(r.Level, "the tier was unmounted or exchanged during the job: mount the right disk there; the job "+
			"is done again", errors.New("the path leads to another folder now"))
	}
	if r.sameIdentity() { // it need not be read again
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

// sameIdentity tells whether tier.json is the file that was read, untouched.
func (r *Root) sameIdentity() bool {
	st, err := r.fs.Lstat(fsys.ReadIdentity, r.Dir, item.MetaFolder+"/"+identityName)
	was := &r.identSt
	return err == nil && fsys.Same(&st, was) && st.Size == was.Size && st.Mtim == was.Mtim && st.Ctim == was.Ctim
}

// SameFolder tells whether two roots are one folder, by whatever paths and mounts.
func (r *Root) SameFolder(o *Root) bool { return fsys.Same(&r.st, &o.st) }

// CheckDistinct refuses tiers that are the same folder, by a bind mount or a link, or that lie within each other by
// a link: there, the release of an old copy would delete the only one. A bind mount of a folder inside another
// tier is not seen.
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

// Probe tries whether the tier can be written to: hard links, without which nothing could be published without ever
// replacing a name, and a file that is synced. A tier that is only full passes.
func (r *Root) Probe() error {
	// EEXIST is the probe of somebody else, or one that a crash has left: proof enough.
	err := r.fs.Link(fsys.ProbeLink, r.meta, identityName, r.meta, probeName)
	if err != nil && !errors.Is(err, unix.EEXIST) && !full(err) {
		return refused(r.Level, "a tier needs a writable file system with hard links", err)
	}
	if err := r.fs.Unlink(fsys.ProbeUnlink, r.meta, probeName); err != nil && !errors.Is(err, unix.ENOENT) {
		return fail(r.Level, err)
	}
	return r.probeWrite()
}

func (r *Root) probeWrite() error {
	const hint = "look at the disk and the kernel's log"
	f, err := r.fs.Create(fsys.ProbeWrite, r.meta, writeProbeName)
	if errors.Is(err, unix.EEXIST) {
		// Of somebody else, who has it open and does not need the name, or left by a crash.
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
		serr = r.fs.Fsync(fsys.ProbeFsync, f) // whatever the error: what was written is lost
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

// fail gives an error of the file system its kind.
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
