// Package release removes copies that no row names: it handles entries of `committed`, step 8 of docs/design.md. It touches
// Redis through shared/state, MySQL through package placement, and tiers through package mover.
//
// What becomes of an entry:
//
//	the copy is gone, or is not to be removed  settled; the script of that step has acked it
//	the grace is not over                      stays pending until then; no attempt is counted
//	another worker has the item's lock         stays pending; no attempt is counted
//	another relocator reaches the tiers        is reassigned to it
//	a tier cannot be used, or has no slot      stays pending until it can, or has one; no attempt is counted
//	the work failed                            shared/failure decides
package release

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/relocator/internal/gate"
	"github.com/tierflow/tierflow/relocator/internal/handler"
	"github.com/tierflow/tierflow/relocator/internal/lease"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/relocator/internal/placement"
	"github.com/tierflow/tierflow/relocator/internal/tierhealth"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/failure"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
)

// Options of New. All are required.
type Options struct {
	handler.Parts
	Grace time.Duration // between a commit and the release of the old copy
	Gate  *gate.Gate    // of releases
}

// Handler handles entries of `committed`. It is safe for concurrent use.
type Handler struct {
	*handler.Base
	o     Options
	clock serverClocks
	seen  firstSeen
}

// New makes a Handler.
func New(o Options) *Handler {
	h := &Handler{o: o, clock: newServerClocks(o.Store, o.Grace, o.Log), seen: newFirstSeen(o.Grace)}
	h.Base = handler.New(o.Parts, state.GroupReleaser, failure.Release, h.forget)
	return h
}

// Handle is the handler of the consumer of `committed`.
func (h *Handler) Handle(ds []*stream.Delivery) {
	for _, d := range ds {
		h.handle(d)
	}
}

func (h *Handler) handle(d *stream.Delivery) {
	j := &job{Handler: h, d: d, random: lease.Random(), turn: h.o.Gate.Turn(d)}
	defer j.turn.End()
	c, err := event.ParseCommitted(d.Values)
	if !h.Admit(d, c.ID, err) {
		return
	}
	age, err := h.clock.age(d.Context, d, h.o.Grace)
	if err != nil {
		h.Fail(d, err)
		return
	}
	if wait := h.o.Grace - age; wait > 0 {
		d.Reason = state.WaitingGrace
		d.Later(wait)
		return
	}
	j.entry = c
	j.log = h.o.Log.WithLazy(zap.Stringer("cid", c.ID), zap.String("level", c.Clears()), zap.String("entry", d.ID))
	j.token = state.NewReleaseToken(h.o.WorkerID, j.random)
	j.run()
}

func (h *Handler) forget(d *stream.Delivery) {
	h.seen.forget(d)
	h.clock.seen.forget(d)
}

// job is the work on one entry.
type job struct {
	*Handler
	d      *stream.Delivery
	entry  event.Committed
	random string // names this attempt in the token and on disk
	token  state.Token
	turn   *gate.Turn
	log    *zap.Logger
}

func (j *job) run() {
	over := j.o.Mover.Expect()
	defer over()
	holder, err := j.o.Store.Lock(j.d.Context, j.entry.ID, j.token)
	if err != nil {
		j.Fail(j.d, err)
		return
	}
	if holder != "" {
		j.log.Debug("busy", zap.String("holder", holder))
		j.d.Reason, j.d.Cause = "lock", lease.HeldBy(holder)
		j.d.Later(0)
		return
	}
	ctx, release := j.Locks.Hold(j.d, j.entry.ID, j.token, func(context.Context) {})
	err = j.release(ctx)
	release()
	over()

	fenced, cancel := lease.Fenced(j.d)
	defer cancel()
	if err != nil {
		if uerr := j.o.Store.Unlock(fenced, j.entry.ID, j.token); uerr != nil {
			j.log.Warn("the lock was left to expire", zap.Error(uerr))
		}
		var g *inGrace
		switch {
		case errors.As(err, &g):
			j.d.Reason = state.WaitingGrace
			j.d.Later(g.wait)
		case errors.Is(err, gate.ErrNoSlot):
			j.d.Reason = "slot"
			j.d.AwaitTurn()
		case j.o.Reach.Reassign(j.d, state.GroupReleaser, err) || j.o.Tiers.Park(j.d, err):
		default:
			j.Fail(j.d, err)
		}
		return
	}
	j.forget(j.d)
	if err := j.o.Store.Released(fenced, j.entry.ID, j.token, j.d.ID); err != nil {
		j.Fail(j.d, err) // it is done again, and then there is nothing left to remove
		return
	}
	j.d.Settled()
}

// release removes the copy. Where the error is nil, nothing is left to do for this entry.
func (j *job) release(ctx context.Context) error {
	row, levels, err := j.Rows.Find(ctx, j.entry.ID)
	if fault.Is(err, fault.Unknown) {
		j.log.Info("not released: the item was deleted, and its files stay")
		return nil
	}
	if err != nil {
		return err
	}
	if row.Filename != j.entry.Filename {
		j.log.Warn("not released: the row has another filename now", zap.String("filename", j.entry.Filename),
			zap.String("row", row.Filename))
		return nil
	}
	level, ok := levels.Level(j.entry.Clears())
	if !ok {
		return fault.New(fault.Unprocessable, "release: no such level any more:", j.entry.Clears(), nil)
	}
	if err := j.o.Reach.Check(level.Name, row.Level); err != nil {
		return err
	}
	if row.Level != level.Name {
		if wait := j.o.Grace - j.seen.age(j.d, j.entry, row); wait > 0 {
			return &inGrace{wait}
		}
	}
	if err := j.takeSlot(level, levels, row.Level); err != nil {
		return err
	}
	working := j.d.Working() // whoever took the entry over would wait for the same disk
	outcome, err := j.o.Mover.Release(ctx, mover.ReleaseRequest{
		ID: j.entry.ID, Token: j.random, Filename: j.entry.Filename, Tier: level,
		Fence: func(ctx context.Context) (bool, error) {
			begun, now, err := j.Rows.BeginRelease(ctx, row, level.Name)
			if err == nil && begun {
				err = j.checkCurrent(ctx, now, levels)
			}
			return begun, err
		},
	})
	working()
	if err != nil {
		return j.o.Tiers.Failed(err, level)
	}
	if outcome == mover.RetryLater {
		return fault.New(fault.Busy, "release", j.entry.ID.String(), errors.New("a move to this tier needs the name"))
	}
	if outcome == mover.Released { // every other outcome has changed nothing on the tier, and shows nothing
		j.o.Tiers.Worked(level.Name)
	}
	j.o.Metrics.Released(outcome.String())
	j.log.Debug("released", zap.Stringer("outcome", outcome), zap.String("filename", j.entry.Filename))
	return nil
}

// takeSlot takes a slot of the tier that is cleared, and of the one whose copy is compared, where both can be used.
func (j *job) takeSlot(level policy.Level, levels policy.Policy, current string) error {
	needs := []tierhealth.Need{{Level: level, Use: tierhealth.Remove}}
	if l, ok := levels.Level(current); ok {
		needs = append(needs, tierhealth.Need{Level: l, Use: tierhealth.Read})
	}
	if err := j.o.Tiers.Check(needs...); err != nil {
		return err
	}
	if !j.turn.Take(gate.Need{Source: current, Target: level.Name}, j.d.Hangs, j.d.Wake) {
		return gate.ErrNoSlot
	}
	return nil
}

// checkCurrent makes sure that the release loses no bytes. The row's own file must be there. By the protocol it always is,
// but people restore rows from backups and change them by hand. Then the copy that no row names may be the last one. The
// row's file must also have the bytes of the other copy: who writes to a file while it is moved writes to the old copy.
func (j *job) checkCurrent(ctx context.Context, row catalog.Row, levels policy.Policy) error {
	current, ok := levels.Level(row.Level)
	if !ok {
		return fault.New(fault.Unavailable, "look up level", row.Level, nil)
	}
	old, _ := levels.Level(j.entry.Clears())
	there, err := j.o.Mover.Compare(ctx, mover.Comparison{Filename: row.Filename, Old: old, Current: current,
		OldIsOriginal: j.entry.Outcome == event.OutcomeCommitted, Digest: row.Digest})
	if err != nil || there {
		return err
	}
	now, err := j.o.Catalog.Row(ctx, j.entry.ID)
	if err != nil {
		return err
	}
	if now.Generation != row.Generation {
		return fault.New(fault.Busy, "release", j.entry.ID.String(), placement.ErrChanged)
	}
	return &fault.Error{Kind: fault.MissingFile, Op: "keep the last copy of", Subject: j.entry.ID.String(),
		Err:  fmt.Errorf("the row names level %s, and %s is not there", row.Level, row.Filename),
		Hint: "put the file there, or correct the row"}
}

// inGrace says that the grace is not over yet.
type inGrace struct{ wait time.Duration }

func (e *inGrace) Error() string { return fmt.Sprintf("the grace is not over for %v", e.wait) }
