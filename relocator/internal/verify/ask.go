package verify

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
)

// hangs is how long one call of the kernel may take before its tier is taken to hang, where Options sets no other bound.
const hangs = 30 * time.Second

// errNotLooked says that a tier is not looked at any more.
var errNotLooked = errors.New("the tier is not looked at")

// Unseen is a tier that was not looked at, or not to its end.
type Unseen struct {
	Level string
	Why   string
}

// watch notes when the last call of the kernel began.
type watch struct{ last atomic.Int64 }

// over makes an FS whose calls w notes.
func (w *watch) over(fs fsys.FS) fsys.FS {
	hook := fs.Hook
	fs.Hook = func(step fsys.Step, path string) error {
		w.touch()
		if hook != nil {
			return hook(step, path)
		}
		return nil
	}
	return fs
}

// processStart makes times comparable whatever happens to the clock of this machine.
var processStart = time.Now()

func (w *watch) touch() { w.last.Store(int64(time.Since(processStart))) }

func (w *watch) since() time.Duration { return time.Since(processStart) - time.Duration(w.last.Load()) }

// ask calls f, which works on a level's tier only, and waits for it as long as the tier answers. After an error of f, and when
// one call of the kernel takes too long, the tier is not looked at any more, and the error is errNotLooked. f may go on then,
// so nobody may use what it writes. A cancelled context gives its own error.
func (r *run) ask(ctx context.Context, level string, f func() error) error {
	if r.isUnseen(level) {
		return errNotLooked
	}
	done := make(chan error, 1)
	go func() { done <- f() }()
	err, aerr := await(ctx, r, level, done)
	if aerr != nil {
		return aerr
	}
	return r.answered(ctx, level, err)
}

// answered returns the error with which a call ended, as ask does.
func (r *run) answered(ctx context.Context, level string, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	r.leave(level, err.Error())
	return errNotLooked
}

// await waits for a value that work on a level's tier sends.
func await[T any](ctx context.Context, r *run, level string, c <-chan T) (v T, err error) {
	r.watch.touch()
	tick := time.NewTicker(r.o.Hangs / 4)
	defer tick.Stop()
	for {
		select {
		case v := <-c:
			return v, nil
		case <-ctx.Done():
			return v, ctx.Err()
		case <-tick.C:
			if r.watch.since() > r.o.Hangs {
				r.hung[level] = true
				r.leave(level, fmt.Sprintf("it has not answered for %v", r.o.Hangs))
				return v, errNotLooked
			}
		}
	}
}

// leave notes why a tier is not looked at any more.
func (r *run) leave(level, why string) {
	if !r.isUnseen(level) {
		r.sum.Unseen = append(r.sum.Unseen, Unseen{level, why})
	}
}

func (r *run) isUnseen(level string) bool {
	for _, u := range r.sum.Unseen {
		if u.Level == level {
			return true
		}
	}
	return false
}

// each calls fn with the names in a folder of a level's tier, as fsys.FS.Each does. fn may ask other tiers.
func (r *run) each(ctx context.Context, level string, dir *fsys.File, fn func(names []string) error) error {
	type part struct {
		names []string
		end   bool
		err   error
	}
	parts, stop := make(chan part), make(chan struct{})
	defer close(stop)
	go func() {
		err := r.fs.Each(fsys.ReadDigest, dir, func(names []string) error {
			select {
			case parts <- part{names: names}:
				return nil
			case <-stop:
				return errNotLooked
			}
		})
		select {
		case parts <- part{end: true, err: err}:
		case <-stop:
		}
	}()
	for {
		p, err := await(ctx, r, level, parts)
		switch {
		case err != nil:
			return err
		case p.end && isMissing(p.err): // a release has removed the empty folder meanwhile
			return nil
		case p.end:
			return r.answered(ctx, level, p.err)
		}
		if err := fn(p.names); err != nil {
			return err
		}
	}
}
