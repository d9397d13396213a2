package worker

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/content"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
)

// errLockLost is the cause with which a job's context ends when its lock is not ours any more.
var errLockLost = errors.New("the lock is not ours any more")

// locks renews the locks of jobs.
type locks struct {
	store *state.Store
	lease time.Duration
	log   *zap.Logger
}

// hold renews the lock of a job until release is called, as long as the entry's delivery shows progress; the returned
// context ends when the lock is lost. each is called at every renewal.
func (l locks) hold(d *stream.Delivery, id content.ID, token state.Token, each func(context.Context)) (ctx context.Context, release func()) {
	ctx, cancel := context.WithCancelCause(d.Context)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(max(l.lease/3, time.Millisecond))
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			// Without a sign of life the lock is left to expire: a job that hangs must not hold up its content.
			if d.Stalled(l.lease) {
				continue
			}
			rctx, stop := context.WithTimeout(ctx, l.lease/3)
			mine, err := l.store.Renew(rctx, id, token)
			if err == nil && mine {
				each(rctx)
			}
			stop()
			switch {
			case ctx.Err() != nil:
				return
			case err != nil:
				l.log.Warn("lock was not renewed", zap.Stringer("cid", id), zap.Error(err))
			case !mine:
				cancel(errLockLost)
				return
			}
		}
	}()
	return ctx, func() { cancel(nil); <-done }
}

// soon is the context of the short steps that must be tried even when the job was cancelled: they are fenced, and
// leaving them out would only leave more to others.
func soon(d *stream.Delivery) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(d.Context), 5*time.Second)
}
