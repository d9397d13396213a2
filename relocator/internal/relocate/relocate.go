// Package relocate moves items to the level that their newest view event calls for: it handles entries of `views`, steps 1
// to 5 of docs/design.md. Batches of events that need no move are settled without locks (batch.go). On average the count of an
// item is written at most once a second (pace.go). Every other event is handled alone (relocate.go). The package touches Redis
// through shared/state, MySQL through package placement, and tiers through package mover.
//
// What becomes of an entry:
//
//	no move is needed, or the copy is emitted  settled; the script of that step has acked it
//	the item's row was written a moment ago    stays pending for three seconds at most, unless a newer event supersedes it
//	the item was forgotten                     settled
//	the row has a newer count                  settled: superseded
//	another worker has the item's lock         stays pending; no attempt is counted
//	another relocator reaches the tiers        is reassigned to it
//	a tier cannot be used, or has no slot      stays pending until it can, or has one; no attempt is counted
//	the work failed                            shared/failure decides
package relocate

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/relocator/internal/gate"
	"github.com/tierflow/tierflow/relocator/internal/handler"
	"github.com/tierflow/tierflow/relocator/internal/lease"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/relocator/internal/placement"
	"github.com/tierflow/tierflow/relocator/internal/tierhealth"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/entryid"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/failure"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/outage"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
)

// Options of New. All are required.
type Options struct {
	handler.Parts
	Gate *gate.Gate // of moves
}

// Handler handles entries of `views`. It is safe for concurrent use.
type Handler struct {
	*handler.Base
	o       Options
	batches *outage.Outage

	mu       sync.Mutex
	counting map[string]*counting // by stream
}

// New makes a Handler.
func New(o Options) *Handler {
	return &Handler{Base: handler.New(o.Parts, state.GroupRelocator, failure.Relocate, func(*stream.Delivery) {}), o: o,
		batches:  outage.Say("batches of view events are not settled; they go on one by one", "batches of view events are settled again", o.Log),
		counting: map[string]*counting{}}
}

// Handle is the handler of the consumer of `views`, whose Options.Alone must be set.
func (h *Handler) Handle(ds []*stream.Delivery) {
	if ds[0].Single {
		h.handle(ds[0])
		return
	}
	h.mu.Lock()
	c := h.counting[ds[0].Stream]
	if c == nil {
		c = newCounting(h)
		h.counting[ds[0].Stream] = c
	}
	h.mu.Unlock()
	c.handle(ds)
}

func (h *Handler) handle(d *stream.Delivery) {
	j := &job{Handler: h, d: d, random: lease.Random(), turn: h.o.Gate.Turn(d)}
	defer j.turn.End()
	view, err := event.ParseView(d.Values)
	if !h.Admit(d, view.ID, err) {
		return
	}
	j.view = view
	j.log = h.o.Log.WithLazy(zap.Stringer("cid", view.ID), zap.String("event_id", view.EventID), zap.String("entry", d.ID))
	j.token = state.NewToken(view.EventID, h.o.WorkerID, j.random)
	taken, holder, err := h.o.Store.Take(d.Context, d.ID, view.ID, j.token, h.o.WorkerID)
	switch {
	case err != nil:
		h.Fail(d, err)
	case taken == state.Settled:
		h.o.Metrics.Settled("superseded")
		d.Settled()
	case taken == state.Busy:
		j.log.Debug("busy", zap.String("holder", holder))
		d.Reason, d.Cause = "lock", lease.HeldBy(holder)
		d.Later(0)
	default:
		j.run()
	}
}

// job is the work on one entry whose item's lock is ours.
type job struct {
	*Handler
	d        *stream.Delivery
	view     event.View
	random   string // names this attempt in the token and on disk
	token    state.Token
	progress progress
	turn     *gate.Turn
	log      *zap.Logger
}

func (j *job) run() {
	over := j.o.Mover.Expect() // a release will follow
	defer over()
	ctx, release := j.Locks.Hold(j.d, j.view.ID, j.token, func(ctx context.Context) { j.progress.publish(ctx, j.o.Store, j.view.ID) })
	err := j.relocate(ctx, over)
	release()
	if err == nil {
		return
	}
	over()
	fenced, cancel := lease.Fenced(j.d)
	if uerr := j.o.Store.Unlock(fenced, j.view.ID, j.token); uerr != nil {
		j.log.Warn("the lock was left to expire", zap.Error(uerr))
	}
	cancel()
	switch {
	case errors.Is(err, gate.ErrNoSlot):
		j.d.Reason = "slot"
		j.d.AwaitTurn()
	case j.o.Reach.Reassign(j.d, state.GroupRelocator, err) || j.o.Tiers.Park(j.d, err):
	default:
		j.Fail(j.d, err)
	}
}

// relocate does steps 3 to 5. Where the error is nil, the entry is settled. It calls over as soon as it knows that no
// release will follow.
func (j *job) relocate(ctx context.Context, over func()) error {
	row, levels, err := j.Rows.Find(ctx, j.view.ID)
	if fault.Is(err, fault.Unknown) {
		over()
		return j.forgotten(ctx, err)
	}
	if err != nil {
		return err
	}
	if entryid.Newer(row.CountEntry, j.d.ID) {
		over()
		return j.older(ctx, row)
	}
	from, ok := levels.Level(row.Level)
	if !ok {
		return fault.New(fault.Unprocessable, "look up level", row.Level, nil)
	}
	decision := levels.Decide(row.Item(j.view.Count), time.Now())
	to, ok := levels.Level(decision.Target)
	if !ok {
		return fault.New(fault.Unprocessable, "look up pinned level", decision.Target, nil)
	}
	if to.Name == from.Name {
		over()
		return j.settle(ctx, row, decision.ReviewAt)
	}
	if err := j.o.Reach.Check(from.Name, to.Name); err != nil {
		return err
	}
	if err := j.o.Tiers.Check(tierhealth.Need{Level: from, Use: tierhealth.Read}, tierhealth.Need{Level: to, Use: tierhealth.Write}); err != nil {
		return err
	}
	if !j.turn.Take(gate.Need{Source: from.Name, Target: to.Name}, j.d.Hangs, j.d.Wake) {
		return gate.ErrNoSlot
	}
	return j.move(ctx, row, from, to, decision.Reason)
}

var errEntryGone = errors.New("views has not reached the id of this entry: Redis was wiped")

// older ends the work on an event whose item has a newer count in its row, going by the entry ids. An id that `views` has
// not reached yet is of another Redis: of one that was wiped and whose clock was ahead, or of another partition. Such an id
// in the row says nothing about the age of its count, and is forgotten. LastView must be read after the row.
func (j *job) older(ctx context.Context, row catalog.Row) error {
	last, err := j.o.Store.LastView(ctx, row.ID)
	if err != nil {
		return err
	}
	switch {
	case !entryid.Newer(row.CountEntry, last):
		if err := j.o.Store.Supersede(ctx, row.ID, j.token, j.d.ID); err != nil {
			return err
		}
		j.o.Metrics.Settled("superseded")
		j.d.Settled()
		return nil
	case entryid.Newer(j.d.ID, last):
		return fault.New(fault.Lost, "relocate", row.ID.String(), errEntryGone)
	}
	if err := j.Rows.ForgetEntry(ctx, row); err != nil {
		return err
	}
	j.log.Warn("the count of this item is from a Redis that was wiped; the new count is taken", zap.String("count_entry", row.CountEntry),
		zap.String("last_entry", last))
	return fault.New(fault.Busy, "relocate", row.ID.String(), placement.ErrChanged)
}

// stateOf is the item's state once this event needs a relocator no more.
func stateOf(v event.View, row catalog.Row, target, entry string) state.State {
	return state.State{
		ID: v.ID, Count: v.Count, Target: target, DBLevel: row.Level, Filename: row.Filename,
		EventID: v.EventID, EntryID: entry, UpdatedAt: time.Now(),
	}
}

// forgotten settles an event whose item has neither a row nor a state: DELETE /v1/contents/{cid} has removed both, and the
// item's events go with it. Where there is a state, nobody has forgotten the item: the missing row is an error.
func (j *job) forgotten(ctx context.Context, missing error) error {
	st, ok, err := j.o.Store.Get(ctx, j.view.ID)
	if err != nil {
		return err
	}
	if ok && entryid.Newer(st.EntryID, j.d.ID) { // the item is registered again: the next look at its lock finds this event superseded
		return fault.New(fault.Busy, "relocate", j.view.ID.String(), missing)
	}
	if ok {
		return missing
	}
	if err := j.o.Store.Forgotten(ctx, j.view.ID, j.token, j.d.ID); err != nil {
		return err
	}
	j.log.Info("not moved: the item was forgotten")
	j.o.Metrics.Settled("forgotten")
	j.d.Settled()
	return nil
}

// settle ends the work on an event that needs no move. review is when the item must be looked at again.
func (j *job) settle(ctx context.Context, row catalog.Row, review time.Time) error {
	st := stateOf(j.view, row, row.Level, j.d.ID)
	if err := j.Rows.SetCount(ctx, placement.Count{Row: row, Count: j.view.Count, Entry: j.d.ID, ReviewAt: review}, j.token); err != nil {
		return err
	}
	if err := j.o.Store.Settle(ctx, st, j.token); err != nil {
		return err
	}
	j.o.Metrics.Settled("in place")
	j.d.Settled()
	return nil
}

// move makes the copy and emits it.
func (j *job) move(ctx context.Context, row catalog.Row, from, to policy.Level, reason policy.Reason) error {
	started := time.Now()
	j.progress.begin(state.Progress{EventID: j.view.EventID, From: from.Name, To: to.Name, Filename: row.Filename, WorkerID: j.o.WorkerID})
	working := j.d.Working() // whoever took the entry over would wait for the same disk
	made, err := j.o.Mover.Make(ctx, mover.Request{
		ID: j.view.ID, EventID: j.view.EventID, Token: j.random, Filename: row.Filename, From: from, To: to,
		Progress: j.progress.set, Large: j.large,
	})
	working()
	stray := event.Committed{EventID: j.view.EventID, ID: j.view.ID, From: from.Name, To: to.Name, Filename: row.Filename,
		Generation: row.Generation}
	if err != nil {
		j.reportStray(made, stray)
		if fault.Is(err, fault.MissingFile) {
			err = j.missing(ctx, row, err)
		}
		return j.o.Tiers.Failed(err, to)
	}
	j.o.Tiers.Worked(from.Name, to.Name)

	st := stateOf(j.view, row, to.Name, j.d.ID)
	finished := st.UpdatedAt
	emitted, err := j.emit(ctx, st, event.Relocated{
		EventID: j.view.EventID, ID: j.view.ID, From: from.Name, To: to.Name, Filename: row.Filename,
		Generation: row.Generation, Count: j.view.Count, Bytes: made.Bytes, Digest: made.Digest, Method: made.Method,
		WorkerID: j.o.WorkerID, StartedAt: started, FinishedAt: finished, CountEntry: j.d.ID,
		Rule: string(reason),
	})
	if err != nil {
		// Nobody knows whether it was emitted. The temporary stays as the record: a repeat or the sweep settles it.
		return err
	}
	if !emitted {
		j.reportStray(made, stray)
		return fault.New(fault.Lost, "emit", j.view.ID.String(), lease.ErrLost)
	}
	j.d.Settled()
	if err := made.Discard(); err != nil {
		j.log.Warn("a temporary was left for the sweep", zap.Error(err))
	}
	j.o.Metrics.Moved(made.Method, made.Bytes, finished.Sub(started))
	j.log.Info("relocated", zap.String("from", from.Name), zap.String("to", to.Name), zap.String("filename", row.Filename),
		zap.String("method", made.Method), zap.Int64("bytes", made.Bytes), zap.Duration("took", finished.Sub(started)))
	return nil
}

// large makes the job's slot one of a large item.
func (j *job) large() error {
	if !j.turn.Grow(j.d.Wake) {
		return gate.ErrNoSlot
	}
	return nil
}

// emit tries again while the lock may still be ours. Redis answers a repeat as it answered the first call.
func (j *job) emit(ctx context.Context, st state.State, e event.Relocated) (bool, error) {
	for wait := 50 * time.Millisecond; ; wait *= 2 {
		fenced, cancel := lease.Fenced(j.d)
		ok, err := j.o.Store.Emit(fenced, st, j.token, e)
		cancel()
		if err == nil || wait > j.o.Lease/2 {
			return ok, err
		}
		select {
		case <-ctx.Done():
			return false, err
		case <-time.After(wait):
		}
	}
}

// reportStray has the releaser remove what was published, and only then removes the record of it.
func (j *job) reportStray(made *mover.Copy, stray event.Committed) {
	if made == nil {
		return
	}
	ctx, cancel := lease.Fenced(j.d)
	defer cancel()
	stray.CommittedAt = time.Now()
	if err := j.o.Store.Stray(ctx, stray); err != nil {
		j.log.Warn("a stray copy is left for the sweep", zap.Error(err))
		return
	}
	if err := made.Discard(); err != nil {
		j.log.Warn("a temporary was left for the sweep", zap.Error(err))
	}
}

// missing returns err where the file is really missing, and an error of kind fault.Busy where the row has changed since
// the look-up: then another worker has moved the file.
func (j *job) missing(ctx context.Context, row catalog.Row, err error) error {
	now, rowErr := j.o.Catalog.Row(ctx, row.ID)
	if rowErr != nil {
		return rowErr
	}
	if now.Generation != row.Generation || now.Level != row.Level || now.Filename != row.Filename {
		return fault.New(fault.Busy, "relocate", row.ID.String(), err)
	}
	return err
}
