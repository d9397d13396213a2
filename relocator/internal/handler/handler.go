// Package handler has what relocations and releases share: the parts that they work with, the first look at an entry, and
// what becomes of an entry that fails. It writes to Redis through shared/failure alone.
package handler

import (
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/relocator/internal/lease"
	"github.com/tierflow/tierflow/relocator/internal/metrics"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/relocator/internal/placement"
	"github.com/tierflow/tierflow/relocator/internal/reach"
	"github.com/tierflow/tierflow/relocator/internal/tierhealth"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/failure"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/outage"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
)

// Parts are what a handler works with. All are required.
type Parts struct {
	Store        *state.Store
	Catalog      *catalog.Catalog
	Mover        *mover.Mover
	WorkerID     string
	MaxAttempts  int64
	Lease        time.Duration  // of locks
	ServerFailed func()         // called when Redis or MySQL failed
	Writes       *outage.Outage // gets to know how writes of rows end
	Reach        *reach.Reach
	Tiers        *tierhealth.Tiers
	Metrics      *metrics.Metrics
	Log          *zap.Logger
}

// Base is what both handlers are made of. It is safe for concurrent use.
type Base struct {
	Rows  *placement.Rows
	Locks *lease.Keeper

	store   *state.Store
	failure *failure.Handler
	forget  func(*stream.Delivery)
}

// New makes a Base for the entries of a group. forget is called for each entry that becomes a dead letter.
func New(p Parts, group string, stage failure.Stage, forget func(*stream.Delivery)) *Base {
	return &Base{
		Rows: placement.New(p.Catalog, p.Store, p.Writes), Locks: lease.NewKeeper(p.Store, p.Lease, p.Log),
		store: p.Store, forget: forget,
		failure: failure.New(failure.Options{
			Store: p.Store, Group: group, Stage: stage, WorkerID: p.WorkerID, MaxAttempts: p.MaxAttempts, ServerFailed: p.ServerFailed,
			DeadLetter: func(reason string) { p.Metrics.DeadLetter(string(stage), reason) }, Log: p.Log,
		}),
	}
}

// Admit reports whether the work on an entry may begin. err is the error of its parsing. Where it is false, the verdict of the
// delivery is set: the entry cannot be read, is in another item's stream, or has ended too many workers.
func (b *Base) Admit(d *stream.Delivery, id item.ID, err error) bool {
	if err == nil {
		err = b.store.CheckPlace(d.Stream, id)
	}
	if err != nil {
		b.Fail(d, err)
		return false
	}
	ctx, cancel := lease.Fenced(d)
	defer cancel()
	poisoned := b.failure.Poisoned(ctx, d)
	if poisoned {
		b.forget(d)
	}
	return !poisoned
}

// Fail says what becomes of an entry whose work ended with err.
func (b *Base) Fail(d *stream.Delivery, err error) {
	ctx, cancel := lease.Fenced(d)
	defer cancel()
	if b.failure.Failed(ctx, d, err) == failure.DeadLetter {
		b.forget(d)
	}
}
