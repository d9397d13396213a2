package tier

import (
	"sync"
	"time"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/shared/policy"
)

const (
	// linger bounds how long a Root stays open that nobody uses.
	linger = 200 * time.Millisecond
	// look is for how long one look at a shared Root serves. A tier that is exchanged meanwhile is like one that is
	// exchanged during a job: Check, around what must not go astray, finds it.
	look = 10 * time.Millisecond
)

// Opener opens tiers for jobs that overlap. They share one Root, which is looked at afresh again and again; when no job
// has it any more, nothing stays open that would keep a disk from being unmounted, but for a moment where more is coming.
type Opener struct {
	fs     fsys.FS
	mu     sync.Mutex
	open   map[policy.Level]*Root
	coming int // jobs, see Expect
}

// NewOpener makes an Opener.
func NewOpener(fs fsys.FS) *Opener { return &Opener{fs: fs, open: map[policy.Level]*Root{}} }

// Expect announces a release, which may have to wait for servers before it opens a tier, or a move, which a release will
// follow. Until done is called, a Root outlives its users, for linger at most, and so do its folders to spare; when the last
// one is done there are none any more, but of Roots that still have users.
func (o *Opener) Expect() (done func()) {
	o.mu.Lock()
	o.coming++
	o.mu.Unlock()
	return sync.OnceFunc(func() {
		o.mu.Lock()
		o.coming--
		var idle []*Root
		for level, r := range o.open {
			if o.coming == 0 && r.users == 0 {
				delete(o.open, level)
				idle = append(idle, r)
			}
		}
		o.mu.Unlock()
		for _, r := range idle {
			r.close()
		}
	})
}

// Open is the function Open. The Root is to be closed all the same.
func (o *Opener) Open(level policy.Level) (*Root, error) {
	now := time.Now()
	o.mu.Lock()
	r := o.open[level]
	var looked bool
	if r != nil {
		r.users++
		looked = now.Sub(r.looked) < look
	}
	o.mu.Unlock()
	if r != nil {
		if looked {
			return r, nil
		}
		if r.current() {
			o.mu.Lock()
			r.looked = now
			o.mu.Unlock()
			return r, nil
		}
		o.mu.Lock()
		if o.open[level] == r {
			delete(o.open, level)
		}
		o.mu.Unlock()
		r.Close()
	}
	r, err := Open(o.fs, level)
	if err != nil {
		return nil, err
	}
	r.opener, r.users, r.looked = o, 1, now
	o.mu.Lock()
	older := o.open[level]
	o.open[level] = r
	idle := older != nil && older.users == 0 // else it lives on until its last user has closed it
	o.mu.Unlock()
	if idle {
		older.close()
	}
	return r, nil
}

// leave tells whether the Root is to be closed.
func (o *Opener) leave(r *Root) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	r.users--
	switch {
	case r.users > 0:
		return false
	case o.open[r.Level] != r:
		return true
	case o.coming > 0:
		if r.idle == nil {
			r.idle = time.AfterFunc(linger, func() { o.closeIdle(r) })
		} else {
			r.idle.Reset(linger)
		}
		return false
	}
	delete(o.open, r.Level)
	return true
}

// closeIdle closes a Root that nobody has used for a while. Nobody else gets the lock meanwhile: when the last release is
// over, its spare folders must be gone.
func (o *Opener) closeIdle(r *Root) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.open[r.Level] == r && r.users == 0 {
		delete(o.open, r.Level)
		r.close()
	}
}

// distrust has the Root looked at by whoever opens it next.
func (o *Opener) distrust(r *Root) {
	o.mu.Lock()
	defer o.mu.Unlock()
	r.looked = time.Time{}
}

// PutSpare takes an empty folder in released/ whose attempt is over, for the next attempt; false where no other job shares the
// Root, and none is coming: then it is to be removed. Making and removing a folder costs more than all the rest of a small
// file's release, by far where a file system discards what is freed.
func (r *Root) PutSpare(name string) bool {
	if r.opener == nil {
		return false
	}
	r.opener.mu.Lock()
	defer r.opener.mu.Unlock()
	if r.users < 2 && r.opener.coming < 2 {
		return false
	}
	r.spares = append(r.spares, name)
	return true
}

// TakeSpare gives a folder away that was kept. Whoever wants its old name may have removed it meanwhile.
func (r *Root) TakeSpare() (name string, ok bool) {
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
	return r.there(tmpName, r.Tmp) && r.there(releasedName, r.Released) && r.leadsHere() && r.sameIdentity()
}

func (r *Root) there(name string, f *fsys.File) bool {
	st, err := r.fs.Lstat(fsys.OpenTier, r.meta, name)
	return err == nil && f.Is(&st)
}

func (r *Root) leadsHere() bool {
	st, err := r.fs.StatRoot(fsys.OpenTier, r.Level.Path)
	return err == nil && r.Dir.Is(&st)
}
