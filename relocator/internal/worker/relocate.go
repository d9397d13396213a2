package worker

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/failure"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
)

// Options of all workers. All but Reach are required.
type Options struct {
	Store       *state.Store
	Catalog     *catalog.Catalog
	Mover       *mover.Mover
	WorkerID    string
	MaxAttempts int64
	Lease       time.Duration // of locks, the store's
	Grace       time.Duration // between a commit and the release of the old copy
	Reach       *Reach        // nil: all tiers
	Trouble     func()        // called when a server failed us: look what is missing
	Tiers       *Tiers
	Metrics     *Metrics
	Log         *zap.Logger
}

// Relocator moves contents to where their newest event wants them.
type Relocator struct {
	o       Options
	rows    *rows
	locks   locks
	failure *failure.Handler
}

// NewRelocator makes a Relocator.
func NewRelocator(o Options) *Relocator {
	return &Relocator{o: o, rows: newRows(o.Catalog, o.Store), locks: locks{o.Store, o.Lease, o.Log},
		failure: newFailure(o, state.GroupRelocator, failure.Relocate)}
}

// Handle is the handler of the consumer of `views`.
func (r *Relocator) Handle(ds []*stream.Delivery) {
	for _, d := range ds {
		r.relocate(d)
	}
}

func (r *Relocator) relocate(d *stream.Delivery) {
	view, err := event.ParseView(d.Values)
	if err == nil {
		err = r.o.Store.CheckPlace(d.Stream, view.ID)
	}
	if err != nil {
		r.fail(d, err)
		return
	}
	if poisoned(r.failure, d) {
		return
	}
	log := r.o.Log.WithLazy(zap.Stringer("cid", view.ID), zap.String("event_id", view.EventID), zap.String("entry", d.ID))

	random := random()
	token := state.NewToken(view.EventID, r.o.WorkerID, random)
	taken, holder, err := r.o.Store.Take(d.Context, d.ID, view.ID, token, r.o.WorkerID)
	switch {
	case err != nil:
		r.fail(d, err)
		return
	case taken == state.Settled:
		r.o.Metrics.settled("superseded")
		d.Settled()
		return
	case taken == state.Busy:
		log.Debug("busy", zap.String("holder", holder))
		d.Later(0)
		return
	}

	over := r.o.Mover.Expect() // a release will follow
	defer over()
	var p progress
	ctx, release := r.locks.hold(d, view.ID, token, func(ctx context.Context) { p.publish(ctx, r.o.Store, view.ID) })
	err = r.move(ctx, d, view, token, random, &p, over, log)
	release()
	if err != nil {
		over()
		uctx, cancel := soon(d)
		if uerr := r.o.Store.Unlock(uctx, view.ID, token); uerr != nil {
			log.Warn("lock was left to expire", zap.Error(uerr))
		}
		cancel()
		if !r.o.handOver(d, state.GroupRelocator, err) {
			r.fail(d, err)
		}
	}
}

// move does steps 3 to 5; the lock is ours. nil: the entry is settled.
func (r *Relocator) move(ctx context.Context, d *stream.Delivery, view event.View, token state.Token, random string, p *progress, over func(), log *zap.Logger) error {
	row, levels, err := r.rows.find(ctx, view.ID)
	if err != nil {
		return err
	}
	from, ok := levels.Level(row.Level)
	if !ok {
		return fault.New(fault.Unprocessable, "look up level", row.Level, nil)
	}
	decision := levels.Decide(row.Item(view.Count), time.Now())
	to, ok := levels.Level(decision.Target)
	if !ok {
		return fault.New(fault.Unprocessable, "look up pinned level", decision.Target, nil)
	}
	st := state.State{
		ID: view.ID, Count: view.Count, Target: to.Name, DBLevel: row.Level, Filename: row.Filename,
		EventID: view.EventID, EntryID: d.ID, UpdatedAt: time.Now(),
	}
	if to.Name == from.Name {
		over() // none will
		if err := r.rows.setCount(ctx, row, view.Count, token); err != nil {
			return err
		}
		if err := r.o.Store.Settle(ctx, st, token); err != nil {
			return err
		}
		r.o.Metrics.settled("in place")
		d.Settled()
		return nil
	}
	if err := r.o.Reach.check(from.Name, to.Name); err != nil {
		return err
	}
	if err := r.o.Tiers.check(from.Name, to.Name); err != nil {
		return err
	}

	started := time.Now()
	p.begin(state.Progress{EventID: view.EventID, From: from.Name, To: to.Name, Filename: row.Filename, WorkerID: r.o.WorkerID})
	made, err := r.o.Mover.Make(ctx, mover.Request{
		ID: view.ID, EventID: view.EventID, Token: random, Filename: row.Filename, From: from, To: to,
		Progress: func(done, total int64) { d.Progress(); p.set(done, total) },
	})
	stray := event.Committed{EventID: view.EventID, ID: view.ID, From: from.Name, To: to.Name, Filename: row.Filename,
		Generation: row.Generation}
	if err != nil {
		r.giveBack(d, made, stray, log)
		if fault.Is(err, fault.MissingFile) {
			err = r.missing(ctx, row, err)
		}
		return r.o.trouble(err, to)
	}
	r.o.Tiers.clear(from.Name, to.Name)

	finished := time.Now()
	st.UpdatedAt = finished
	emitted, err := r.emit(ctx, d, st, token, event.Relocated{
		EventID: view.EventID, ID: view.ID, From: from.Name, To: to.Name, Filename: row.Filename,
		Generation: row.Generation, Count: view.Count, Bytes: made.Bytes, Digest: made.Digest, Method: made.Method,
		WorkerID: r.o.WorkerID, StartedAt: started, FinishedAt: finished,
	})
	if err != nil {
		// Nobody knows whether it was emitted. The temporary stays as the record: a repeat or the sweep settles it.
		return err
	}
	if !emitted {
		r.giveBack(d, made, stray, log)
		return fault.New(fault.Lost, "emit", view.ID.String(), errLockLost)
	}
	d.Settled()
	if err := made.Discard(); err != nil {
		log.Warn("a temporary was left for the sweep", zap.Error(err))
	}
	r.o.Metrics.moved(made.Method, made.Bytes, finished.Sub(started))
	log.Info("relocated", zap.String("from", from.Name), zap.String("to", to.Name), zap.String("filename", row.Filename),
		zap.String("method", made.Method), zap.Int64("bytes", made.Bytes), zap.Duration("took", finished.Sub(started)))
	return nil
}

// emit tries again while the lock may still be ours: a repeat is answered as the first one was.
func (r *Relocator) emit(ctx context.Context, d *stream.Delivery, st state.State, token state.Token, e event.Relocated) (bool, error) {
	for wait := 50 * time.Millisecond; ; wait *= 2 {
		ectx, cancel := soon(d)
		ok, err := r.o.Store.Emit(ectx, st, token, e)
		cancel()
		if err == nil || wait > r.o.Lease/2 {
			return ok, err
		}
		select {
		case <-ctx.Done():
			return false, err
		case <-time.After(wait):
		}
	}
}

// giveBack has what was published cleared by the releaser, and only then removes its record.
func (r *Relocator) giveBack(d *stream.Delivery, made *mover.Copy, stray event.Committed, log *zap.Logger) {
	if made == nil {
		return
	}
	ctx, cancel := soon(d)
	defer cancel()
	stray.CommittedAt = time.Now()
	if err := r.o.Store.Stray(ctx, stray); err != nil {
		log.Warn("a stray copy is left for the sweep", zap.Error(err))
		return
	}
	if err := made.Discard(); err != nil {
		log.Warn("a temporary was left for the sweep", zap.Error(err))
	}
}

// trouble takes an error of a tier down. A tier that fails is no content's fault: where the one that was written to
// cannot be written to at all, the error becomes fault.TierRefused, and nobody loses an attempt.
func (o Options) trouble(err error, target policy.Level) error {
	o.Tiers.note(err, target.Name)
	var e *fault.Error
	if !errors.As(err, &e) || e.Kind != fault.Suspect || e.Level != target.Name || o.Mover.Probe(target) == nil {
		return err
	}
	return &fault.Error{Kind: fault.TierRefused, Op: "write to tier", Subject: target.Name, Err: err, Level: target.Name}
}

// missing tells a file that is really gone from one that was moved since the look-up.
func (r *Relocator) missing(ctx context.Context, row catalog.Row, err error) error {
	now, lerr := r.o.Catalog.Content(ctx, row.ID)
	if lerr != nil {
		return lerr
	}
	if now.Generation != row.Generation || now.Level != row.Level || now.Filename != row.Filename {
		return fault.New(fault.Busy, "relocate", row.ID.String(), err)
	}
	return err
}

func (r *Relocator) fail(d *stream.Delivery, err error) { failed(r.failure, d, err) }

func failed(h *failure.Handler, d *stream.Delivery, err error) failure.Action {
	ctx, cancel := soon(d)
	defer cancel()
	return h.Failed(ctx, d, err)
}

func poisoned(h *failure.Handler, d *stream.Delivery) bool {
	ctx, cancel := soon(d)
	defer cancel()
	return h.Poisoned(ctx, d)
}

// newFailure makes what decides what becomes of an entry whose work fails.
func newFailure(o Options, group string, stage failure.Stage) *failure.Handler {
	return failure.New(failure.Options{
		Store: o.Store, Group: group, Stage: stage, WorkerID: o.WorkerID, MaxAttempts: o.MaxAttempts,
		ServerFailed: o.Trouble, DeadLetter: func(reason string) { o.Metrics.dead(string(stage), reason) }, Log: o.Log,
	})
}

// random is the part of a token and of the names on disk that makes an attempt unlike any other.
func random() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails, says crypto/rand
	return hex.EncodeToString(b[:])
}

// progress is how far a move is, for those who watch.
type progress struct {
	mu    sync.Mutex
	p     state.Progress
	begun bool
	done  atomic.Int64
	total atomic.Int64
}

func (p *progress) begin(s state.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.p, p.begun = s, true
}

func (p *progress) set(done, total int64) { p.done.Store(done); p.total.Store(total) }

func (p *progress) publish(ctx context.Context, store *state.Store, id item.ID) {
	p.mu.Lock()
	s, begun := p.p, p.begun
	p.mu.Unlock()
	if !begun {
		return
	}
	s.BytesDone, s.BytesTotal = p.done.Load(), p.total.Load()
	_ = store.SetProgress(ctx, id, s) // only for the eye; the next tick tells again
}
