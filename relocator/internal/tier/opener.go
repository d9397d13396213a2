package tier

import (
	"sync"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/shared/content"
)

// Opener opens tiers for jobs that overlap. They share one Root, which is looked at afresh for each of them; when no job
// has it any more, nothing stays open that would keep a disk from being unmounted.
type Opener struct {
	fs   fsys.FS
	mu   sync.Mutex
	open map[content.Level]*Root
}

// NewOpener makes an Opener.
func NewOpener(fs fsys.FS) *Opener { return &Opener{fs: fs, open: map[content.Level]*Root{}} }

// Open is the function Open. The Root is to be closed all the same.
func (o *Opener) Open(level content.Level) (*Root, error) {
	o.mu.Lock()
	r := o.open[level]
	if r != nil {
		r.users++
	}
	o.mu.Unlock()
	if r != nil {
		if r.current() {
			return r, nil
		}
		r.Close()
	}
	r, err := Open(o.fs, level)
	if err != nil {
		return nil, err
	}
	r.opener, r.users = o, 1
	o.mu.Lock()
	defer o.mu.Unlock()
	o.open[level] = r // an older one lives on until its last user has closed it
	return r, nil
}

// leave tells whether that was the last user.
func (o *Opener) leave(r *Root) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	r.users--
	if r.users > 0 {
		return false
	}
	if o.open[r.Level] == r {
		delete(o.open, r.Level)
	}
	return true
}

// Keep takes an empty folder in released/ whose attempt is over, for the next attempt; false where no other job shares the
// Root: then it is to be removed. Making and removing a folder costs more than all the rest of a small file's release, by
// far where a file system discards what is freed.
func (r *Root) Keep(name string) bool {
	if r.opener == nil {
		return false
	}
	r.opener.mu.Lock()
	defer r.opener.mu.Unlock()
	if r.users < 2 {
		return false
	}
	r.spares = append(r.spares, name)
	return true
}

// Spare gives a folder away that was kept. Whoever wants its old name may have removed it meanwhile.
func (r *Root) Spare() (name string, ok bool) {
	if r.opener == nil {
		return "", false
	}
	r.opener.mu.Lock()
	defer r.opener.mu.Unlock()
	n := len(r.spares)
	if n == 0 {
		return "", false
	}
	name, r.spares = r.spares[n-1], r.spares[:n-1]
	return name, true
}

// current tells whether opening the tier now would give the same: its path leads here, its identity is the one that was
// read, and its scratch folders are there.
func (r *Root) current() bool {
	for name, f := range map[string]*fsys.File{tmpName: r.Tmp, releasedName: r.Released} {
		there, err := r.fs.Lstat(fsys.OpenTier, r.meta, name)
		if err != nil {
			return false
		}
		have, err := r.fs.Stat(fsys.OpenTier, f)
		if err != nil || !fsys.Same(&there, &have) {
			return false
		}
	}
	return r.sameIdentity() && r.Check(fsys.OpenTier) == nil
}
