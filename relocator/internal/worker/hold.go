package worker

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
)

// errLockLost is the cause with which a job's context ends when its lock is not ours any more. It is no failed attempt.
var errLockLost error = fault.New(fault.Lost, "hold the lock", "", errors.New("it is not ours any more"))

// locks renews the locks of jobs.
type locks struct {
	store *state.Store
	lease time.Duration
	log   *zap.Logger
}

// hold renews the lock of a job until release is called, as long as the entry's delivery shows progress; the returned
// context ends when the lock is lost. each is called at every renewal, and about once a second between two. Most jobs end
// before the first one.
func (l locks) hold(d *stream.Delivery, id item.ID, token state.Token, each func(context.Context)) (ctx context.Context, release func()) {
	ctx, cancel := context.WithCancelCause(d.Context)
	looks := max(1, l.lease/3/time.Second) // from one renewal to the next
	every := max(l.lease/3/looks, time.Millisecond)
	n := time.Duration(0)
	var mu sync.Mutex // held while a renewal is under way
	var timer *time.Timer
	mu.Lock()
	timer = time.AfterFunc(every, func() {
		mu.Lock()
		defer mu.Unlock()
		if n++; n%looks != 0 {
			if ctx.Err() == nil {
				rctx, stop := context.WithTimeout(ctx, every)
				each(rctx)
				stop()
				timer.Reset(every)
			}
			return
		}
		// Without a sign of life the lock is left to expire: a job that hangs must not hold up its content.
		if ctx.Err() == nil && !d.Stalled(l.lease) && !l.renew(ctx, id, token, each) {
			cancel(errLockLost)
		}
		if ctx.Err() == nil {
			timer.Reset(every)
		}
	})
	mu.Unlock()
	return ctx, func() {
		cancel(nil)
		mu.Lock() // a renewal that is under way ends first
		defer mu.Unlock()
		timer.Stop()
	}
}

// renew tells whether the lock is ours, as far as one can know.
func (l locks) renew(ctx context.Context, id item.ID, token state.Token, each func(context.Context)) bool {
	rctx, stop := context.WithTimeout(ctx, l.lease/3)
	defer stop()
	mine, err := l.store.Renew(rctx, id, token)
	if err != nil {
		if ctx.Err() == nil {
			l.log.Warn("lock was not renewed", zap.Stringer("cid", id), zap.Error(err))
		}
		return true
	}
	if mine {
		each(rctx)
	}
	return mine
}

// soon is the context of the short steps that must be tried even when the job was cancelled: they are fenced, and
// leaving them out would only leave more to others.
func soon(d *stream.Delivery) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(d.Context), 5*time.Second)
}
