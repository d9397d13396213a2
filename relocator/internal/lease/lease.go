// Package lease keeps the lock of an item alive while a job works on the item, and cancels the job when the lock is lost.
// It touches Redis, through shared/state, and nothing else. Relocations and releases use it.
package lease

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/outage"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
)

// ErrLost is the cause with which a job's context ends when somebody else has the lock. It counts no attempt.
var ErrLost error = fault.New(fault.Lost, "hold the lock", "", errors.New("somebody else has it now"))

// HeldBy says why an entry waits that finds the lock of its item busy. holder is the lock's value.
func HeldBy(holder string) error {
	return fmt.Errorf("another worker has the lock of the item: %s", holder)
}

// fencedTime is how long the steps of Fenced may take.
const fencedTime = 5 * time.Second

// Keeper renews locks. It is safe for concurrent use.
type Keeper struct {
	store    *state.Store
	lease    time.Duration
	renewals *outage.Outage
}

// NewKeeper makes a Keeper. lease is the life of a lock between two renewals, as the store has it.
func NewKeeper(store *state.Store, lease time.Duration, log *zap.Logger) *Keeper {
	return &Keeper{store, lease, outage.New("renewals of locks", log)}
}

// Hold renews the lock every third of the lease until release is called, as long as the delivery shows progress. The
// returned context ends when the lock is lost. each is called at every renewal, and about once a second between two
// renewals. Most jobs end before the first one.
func (k *Keeper) Hold(d *stream.Delivery, id item.ID, token state.Token, each func(context.Context)) (ctx context.Context, release func()) {
	ctx, cancel := context.WithCancelCause(d.Context)
	ticks := max(1, k.lease/3/time.Second) // from one renewal to the next
	every := max(k.lease/3/ticks, time.Millisecond)
	n := time.Duration(0)
	var mu sync.Mutex // held while a renewal is under way
	var timer *time.Timer
	mu.Lock()
	timer = time.AfterFunc(every, func() {
		mu.Lock()
		defer mu.Unlock()
		if n++; n%ticks != 0 {
			if ctx.Err() == nil {
				tick, stop := context.WithTimeout(ctx, every)
				each(tick)
				stop()
				timer.Reset(every)
			}
			return
		}
		// A job that hangs outside of a file operation must not hold up its item: without progress the lock expires.
		if ctx.Err() == nil && !d.Stalled(k.lease) && !k.renew(ctx, id, token, each) {
			cancel(ErrLost)
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

// renew says whether the lock is ours. Where Redis does not answer, the lock may still be ours.
func (k *Keeper) renew(ctx context.Context, id item.ID, token state.Token, each func(context.Context)) bool {
	short, stop := context.WithTimeout(ctx, k.lease/3)
	defer stop()
	mine, err := k.store.Renew(short, id, token)
	if err != nil {
		if ctx.Err() == nil {
			k.renewals.Failed(err, zap.Stringer("cid", id))
		}
		return true
	}
	k.renewals.Succeeded()
	if mine {
		each(short)
	}
	return mine
}

// Fenced returns a context for the short steps at the end of a job. They are tried even when the job was cancelled: the
// lock's token fences them, and leaving them out would only leave more work to others.
func Fenced(d *stream.Delivery) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(d.Context), fencedTime)
}

// Random returns the part of a lock's token, and of the names on disk, that makes an attempt unlike any other: 16 hex
// digits.
func Random() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails, says crypto/rand
	return hex.EncodeToString(b[:])
}
