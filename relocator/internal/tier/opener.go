package tier

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/shared/policy"
)

const (
	// maxIdle is how long a Root stays open that nobody uses.
	maxIdle = 200 * time.Millisecond
	// maxCheckAge is how long a check of a shared Root is valid. A job notices a disk that is exchanged within that time
	// as it notices one that is exchanged during the job: by Check.
	maxCheckAge = 10 * time.Millisecond
	// maxClose is how long the last expected job waits until Roots are closed.
	maxClose = time.Second
)

// Opener opens tiers for jobs that run at the same time. They share one Root for each tier, which the Opener checks again
// and again. An open Root prevents the unmount of its disk. So the Opener closes a Root when no job uses it, or a moment
// later where further jobs are expected.
type Opener struct {
	fs       fsys.FS
	mu       sync.Mutex
	open     map[policy.Level]*Root
	expected int                     // jobs; see Expect
	closing  map[*Root]chan struct{} // Roots that are being closed; each channel is closed at the end
	traits   map[place]Traits
}

// place is a tier in its folder. A tier that was copied to another disk has its old id, and other traits.
type place struct {
	id       string
	dev, ino uint64
}

func (r *Root) place() place { return place{r.ID, r.st.Dev, r.st.Ino} }

// NewOpener makes an Opener.
func NewOpener(fs fsys.FS) *Opener {
	return &Opener{fs: fs, open: map[policy.Level]*Root{}, closing: map[*Root]chan struct{}{}, traits: map[place]Traits{}}
}

// Expect tells the Opener that a release will come, or a move that a release will follow. The release may wait for
// servers before it opens a tier. Until done is called, a Root and its spare folders stay for up to maxIdle after its
// last user. When the last expected job is done, the Opener closes every Root without users and removes its spare
// folders. It waits for that, but no longer than a second: a tier that hangs must not hold up jobs of others. A second call
// of done does nothing.
func (o *Opener) Expect() (done func()) {
	o.mu.Lock()
	o.expected++
	o.mu.Unlock()
	return sync.OnceFunc(func() {
		o.mu.Lock()
		o.expected--
		for _, r := range o.open {
			if o.expected == 0 && r.users == 0 {
				o.closeUnused(r)
			}
		}
		var closing []chan struct{}
		if o.expected == 0 {
			closing = slices.Collect(maps.Values(o.closing))
		}
		o.mu.Unlock()
		enough := time.After(maxClose)
		for _, closed := range closing {
			select {
			case <-closed:
			case <-enough:
				return
			}
		}
	})
}

// closeUnused begins to close a Root without users. The caller has the lock.
func (o *Opener) closeUnused(r *Root) {
	delete(o.open, r.Level)
	closed := make(chan struct{})
	o.closing[r] = closed
	go func() {
		r.close()
		o.mu.Lock()
		delete(o.closing, r)
		o.mu.Unlock()
		close(closed)
	}()
}

// Open opens the level's tier as the function Open does, or returns the Root that other jobs use. The caller must close it
// in both cases.
func (o *Opener) Open(level policy.Level) (*Root, error) {
	now := time.Now()
	o.mu.Lock()
	r := o.open[level]
	var checked bool
	if r != nil {
		r.users++
		checked = now.Sub(r.checked) < maxCheckAge
	}
	o.mu.Unlock()
	if r != nil {
		if checked {
			return r, nil
		}
		if r.current() {
			o.mu.Lock()
			r.checked = now
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
	r.opener, r.users, r.checked = o, 1, now
	o.mu.Lock()
	older := o.open[level]
	o.open[level] = r
	idle := older != nil && older.users == 0 // with users, it stays open until the last of them closes it
	o.mu.Unlock()
	if idle {
		older.close()
	}
	return r, nil
}

// leave removes one user of the Root and tells whether the caller must close it.
func (o *Opener) leave(r *Root) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	r.users--
	switch {
	case r.users > 0:
		return false
	case o.open[r.Level] != r:
		return true
	case o.expected > 0:
		if r.idle == nil {
			r.idle = time.AfterFunc(maxIdle, func() { o.closeIdle(r) })
		} else {
			r.idle.Reset(maxIdle)
		}
		return false
	}
	delete(o.open, r.Level)
	return true
}

// closeIdle closes a Root that nobody has used for a while.
func (o *Opener) closeIdle(r *Root) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.open[r.Level] == r && r.users == 0 {
		o.closeUnused(r)
	}
}

// expire makes the next Open check the Root again.
func (o *Opener) expire(r *Root) {
	o.mu.Lock()
	defer o.mu.Unlock()
	r.checked = time.Time{}
}

// traits returns the traits as far as they are known.
func (r *Root) traits() Traits {
	if r.opener == nil {
		return r.own
	}
	r.opener.mu.Lock()
	defer r.opener.mu.Unlock()
	return r.opener.traits[r.place()]
}

func (r *Root) remember(t Traits) {
	if r.opener == nil {
		r.own = t
		return
	}
	r.opener.mu.Lock()
	defer r.opener.mu.Unlock()
	r.opener.traits[r.place()] = t
}

// PutSpare keeps an empty folder in released/, whose attempt is over, for reuse. It returns false where no other job
// shares the Root and none is expected: the caller must then remove the folder. To make and remove a folder takes longer
// than the rest of a small file's release, above all on a file system that discards freed blocks.
func (r *Root) PutSpare(name string) bool {
	if r.opener == nil {
		return false
	}
	r.opener.mu.Lock()
	defer r.opener.mu.Unlock()
	if r.users < 2 && r.opener.expected < 2 {
		return false
	}
	r.spares = append(r.spares, name)
	return true
}

// TakeSpare returns the name of a kept folder. A mover may have removed the folder meanwhile.
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

// current tells whether opening the tier now would give the same Root: its path leads here, its identity is unchanged, and
// tmp and released are the open folders.
func (r *Root) current() bool {
	return r.isOpen(tmpName, r.Tmp) && r.isOpen(releasedName, r.Released) && r.leadsHere() && r.sameIdentity()
}

// isOpen tells whether name in .tierflow is the open folder f.
func (r *Root) isOpen(name string, f *fsys.File) bool {
	st, err := r.fs.Lstat(fsys.OpenTier, r.meta, name)
	return err == nil && f.Is(&st)
}

func (r *Root) leadsHere() bool {
	st, err := r.fs.StatRoot(fsys.OpenTier, r.Level.Path)
	return err == nil && r.Dir.Is(&st)
}
