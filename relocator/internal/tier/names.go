package tier

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
)

// bcachefsMagic is BCACHEFS_STATFS_MAGIC, which golang.org/x/sys does not have.
const bcachefsMagic = 0xca451a4e

// naming says where a tier's folders may take two names for one.
type naming int

const (
	anyFolder     naming = iota // unknown: FUSE and overlays show folders of other file systems
	flaggedFolder               // in folders with the flag of chattr +F
	noFolder                    // nowhere
	everyFolder                 // everywhere
)

// lookAtNames finds out what can be known of the tier's naming without writing.
func (r *Root) lookAtNames() error {
	// Some file systems fold case on the whole disk (xfs with version=ci; most FUSE file systems for disks of other
	// systems). There, tier.json has this name as well.
	folded, err := r.fs.Lstat(fsys.OpenTier, r.meta, strings.ToUpper(identityName))
	switch {
	case err == nil && fsys.Same(&folded, &r.identSt):
		r.naming = everyFolder
		return nil
	case err != nil && !errors.Is(err, unix.ENOENT):
		return err
	}
	kind, err := r.fs.Type(fsys.OpenTier, r.Dir)
	switch kind {
	case unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC:
		r.naming = noFolder
	case unix.EXT4_SUPER_MAGIC, unix.TMPFS_MAGIC, unix.F2FS_SUPER_MAGIC, bcachefsMagic:
		r.naming = flaggedFolder
	}
	return err
}

// ComparesBytes tells whether two names are two names in every folder of the tier. Spellings need no check then.
func (r *Root) ComparesBytes() bool { return r.naming == noFolder }

// Folds tells whether dir, a folder of the tier, is known to take two names for one.
func (r *Root) Folds(step fsys.Step, dir *fsys.File) (bool, error) {
	if r.naming == flaggedFolder {
		return r.fs.CaseFolded(step, dir)
	}
	return r.naming == everyFolder || r.traits().FoldsCase || r.traits().FoldsForms, nil
}

// CheckSpelling compares a name in dir, a folder of the tier, with the folder's own spelling of it. It reads the folder
// only where the folder may fold the name. A *fsys.SpellingError: the entry has another name. A missing name may be an
// error or not.
func (r *Root) CheckSpelling(ctx context.Context, step fsys.Step, dir *fsys.File, name string) error {
	if r.naming == noFolder {
		return nil
	}
	folds, err := r.Folds(step, dir)
	if err != nil || !folds && r.naming == flaggedFolder {
		return err
	}
	if !folds && isPlain(name) {
		// A union of several file systems may have folders that fold, whatever the probe has found. What folds case finds
		// the name in its other case as well. It may be another file, so the folder decides.
		_, err := r.fs.Lstat(step, dir, swapCase(name))
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return r.fs.CheckSpelling(ctx, step, dir, name)
}

// isPlain tells whether only file systems that fold case can take another name for this one. Unicode has a second K (the
// Kelvin sign), which is one with the letter in every normal form.
func isPlain(name string) bool {
	for i := range len(name) {
		c := name[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-' || c == ' ') ||
			c == 'K' {
			return false
		}
	}
	return true
}

// swapCase gives each ASCII letter its other case. A name without letters stays as it is.
func swapCase(name string) string {
	b := []byte(name)
	for i, c := range b {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' {
			b[i] = c ^ 0x20
		}
	}
	return string(b)
}

// Traits is what a probe has found out about a tier's file system. Some traits of a full tier stay unknown, and false.
type Traits struct {
	FoldsCase  bool // it takes names for one that differ in case only
	FoldsForms bool // it takes names for one that differ in their Unicode normal form only (NFC, NFD)
	Rewrites   bool // its folders list a name in another spelling than it was given
	NoRename   bool // it cannot rename without replacing (RENAME_NOREPLACE)

	complete bool
}

// NoDirectories says why a tier without RENAME_NOREPLACE takes no directories.
var NoDirectories = errors.New("its file system cannot rename without replacing (RENAME_NOREPLACE), so no directory can be moved there")

// Warnings says in sentences what the tier cannot do. Empty: it can do everything.
func (t Traits) Warnings() (all []string) {
	if t.NoRename {
		all = append(all, NoDirectories.Error()+"; files can")
	}
	var what []string
	if t.FoldsCase {
		what = append(what, "case")
	}
	if t.FoldsForms {
		what = append(what, "Unicode normal form")
	}
	if len(what) > 0 {
		all = append(all, "its file system takes names for one that differ in "+strings.Join(what, " or ")+
			" only: of two such items it holds only one, and the move of the other becomes a dead letter")
	}
	return all
}

// The names of the probe: the second differs in case from the first, the third in its normal form, which is NFD.
const (
	probeSpelling = "Probe-\u00e9"
	probeOther    = "pROBE-\u00e9"
	probeNFD      = "Probe-e\u0301"
)

// probePrefix begins the names of the folders of probeTraits in .tierflow. The rest is different for each.
const probePrefix = "names-probe."

// dropOldProbes removes what probes have left that were cut short. It ignores errors, because the next one tries again.
func (r *Root) dropOldProbes() {
	names, _ := r.fs.List(fsys.ProbeNames, r.meta)
	for _, name := range names {
		st, err := r.fs.Lstat(fsys.ProbeNames, r.meta, name)
		if err == nil && strings.HasPrefix(name, probePrefix) && time.Since(time.Unix(st.Ctim.Unix())) > time.Hour {
			_ = r.fs.RemoveAll(context.Background(), fsys.ProbeUnlink, r.meta, name)
		}
	}
}

// Traits returns the tier's traits. The first call for a tier probes it, which writes to .tierflow; an Opener remembers the
// traits of each tier. Kind: TierRefused where the file system rewrites names: no item would ever be found under its own.
func (r *Root) Traits() (Traits, error) {
	t := r.traits()
	if !t.complete {
		var err error
		if t, err = r.probeTraits(); err != nil {
			return t, err
		}
		r.remember(t)
	}
	if t.Rewrites {
		return t, refused(r.Level, "mount it with an option that keeps names as they are, or use another file system",
			fmt.Errorf("its folders list a name in another spelling than it was given (%+q)", probeSpelling))
	}
	return t, nil
}

// probeTraits finds out the traits with a folder of its own. Where the tier cannot be written to now, the traits stay
// unknown: whatever needs to write says so itself.
func (r *Root) probeTraits() (t Traits, err error) {
	r.dropOldProbes()
	name := probePrefix + newID()
	defer func() {
		_ = r.fs.RemoveAll(context.Background(), fsys.ProbeUnlink, r.meta, name)
		if err != nil && !full(err) && !errors.Is(err, unix.EROFS) {
			err = fail(r.Level, err)
		} else {
			err = nil
		}
	}()
	if err := r.fs.Mkdir(fsys.ProbeNames, r.meta, name, 0o700); err != nil {
		return t, err
	}
	dir, _, err := r.fs.OpenDir(fsys.ProbeNames, r.meta, name)
	if err != nil {
		return t, err
	}
	defer dir.Close()
	if err := r.fs.Mkdir(fsys.ProbeNames, dir, probeSpelling, 0o700); err != nil {
		return t, err
	}
	names, err := r.fs.List(fsys.ProbeNames, dir)
	if err != nil {
		return t, err
	}
	t.Rewrites = len(names) != 1 || names[0] != probeSpelling
	for other, folds := range map[string]*bool{probeOther: &t.FoldsCase, probeNFD: &t.FoldsForms} {
		_, err := r.fs.Lstat(fsys.ProbeNames, dir, other)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return t, err
		}
		*folds = err == nil
	}
	err = r.fs.RenameNew(fsys.ProbeNames, dir, probeSpelling, dir, "renamed")
	if t.NoRename = fsys.CannotRenameNew(err); t.NoRename {
		err = nil
	}
	t.complete = err == nil
	return t, err
}
