package worker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/failure"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
)

// Releaser clears copies that no row names (step 8).
type Releaser struct {
	o       Options
	rows    *rows
	locks   locks
	clock   clock
	seen    sightings
	failure *failure.Handler
}

// NewReleaser makes a Releaser.
func NewReleaser(o Options) *Releaser {
	return &Releaser{o: o, failure: newFailure(o, state.GroupReleaser, failure.Release), rows: newRows(o.Catalog, o.Store), locks: locks{o.Store, o.Lease, o.Log},
		seen: sightings{of: map[sighted]*sighting{}, grace: o.Grace}}
}

// Handle is the handler of the consumer of `committed`.
func (r *Releaser) Handle(ds []*stream.Delivery) {
	for _, d := range ds {
		r.release(d)
	}
}

func (r *Releaser) release(d *stream.Delivery) {
	c, err := event.ParseCommitted(d.Values)
	if err == nil {
		err = r.o.Store.CheckPlace(d.Stream, c.ID)
	}
	if err != nil {
		r.fail(d, err)
		return
	}
	if poisoned(r.failure, d) {
		r.seen.forget(d)
		return
	}
	log := r.o.Log.WithLazy(zap.Stringer("cid", c.ID), zap.String("level", c.Clears()), zap.String("entry", d.ID))
	age, err := r.clock.age(d.Context, r.o.Store, d.Stream, d.ID)
	if err != nil {
		r.fail(d, err)
		return
	}
	if wait := r.o.Grace - age; wait > 0 {
		d.Later(wait)
		return
	}

	over := r.o.Mover.Expect()
	defer over()
	random := random()
	token := state.NewReleaseToken(r.o.WorkerID, random)
	holder, err := r.o.Store.Lock(d.Context, c.ID, token)
	if err != nil {
		r.fail(d, err)
		return
	}
	if holder != "" {
		log.Debug("busy", zap.String("holder", holder))
		d.Later(0)
		return
	}
	ctx, release := r.locks.hold(d, c.ID, token, func(context.Context) {})
	err = r.clear(ctx, d, c, random, log)
	release()
	over()

	uctx, cancel := soon(d)
	defer cancel()
	if err != nil {
		if uerr := r.o.Store.Unlock(uctx, c.ID, token); uerr != nil {
			log.Warn("lock was left to expire", zap.Error(uerr))
		}
		var yet *early
		if errors.As(err, &yet) {
			d.Later(yet.wait)
			return
		}
		if r.o.handOver(d, state.GroupReleaser, err) {
			return
		}
		r.fail(d, err)
		return
	}
	r.seen.forget(d)
	if err := r.o.Store.Released(uctx, c.ID, token, d.ID); err != nil {
		r.fail(d, err) // done again, and then there is nothing left to clear
		return
	}
	d.Settled()
}

// clear removes the copy; nil: there is nothing left to do for this entry.
func (r *Releaser) clear(ctx context.Context, d *stream.Delivery, c event.Committed, random string, log *zap.Logger) error {
	row, levels, err := r.rows.find(ctx, c.ID)
	if fault.Is(err, fault.Unknown) {
		log.Info("not cleared: the content was forgotten, its files stay")
		return nil
	}
	if err != nil {
		return err
	}
	if row.Filename != c.Filename {
		log.Warn("not cleared: the row has another filename by now", zap.String("filename", c.Filename),
			zap.String("row", row.Filename))
		return nil
	}
	level, ok := levels.Level(c.Clears())
	if !ok {
		return fault.New(fault.Unprocessable, "clear: no such level any more:", c.Clears(), nil)
	}
	if err := r.o.Reach.check(level.Name, row.Level); err != nil {
		return err
	}
	if row.Level != level.Name {
		if wait := r.o.Grace - r.seen.age(d, c, row); wait > 0 {
			return &early{wait}
		}
	}
	outcome, err := r.o.Mover.Release(ctx, mover.ReleaseRequest{
		ID: c.ID, Token: random, Filename: c.Filename, Tier: level,
		Fence: func(ctx context.Context) (bool, error) {
			d.Progress()
			begun, now, err := r.rows.beginRelease(ctx, row, level.Name)
			if err == nil && begun {
				err = r.kept(ctx, d, c, now, levels)
			}
			return begun, err
		},
	})
	if err != nil {
		return r.o.trouble(err, level)
	}
	if outcome == mover.RetryLater {
		return fault.New(fault.Busy, "clear", c.ID.String(), errors.New("a mover wants the name"))
	}
	if outcome == mover.Released { // any other one has changed nothing there, and shows nothing
		r.o.Tiers.clear(level.Name)
	}
	r.o.Metrics.released(outcome.String())
	log.Debug("cleared", zap.Stringer("outcome", outcome), zap.String("filename", c.Filename))
	return nil
}

// kept makes sure that nothing goes that is not elsewhere. The row's own file must be there before another copy goes: by
// the protocol it always is, but rows are restored from backups and changed by hand, and then the copy that nobody names
// may be the last one. And it must have the other's bytes: whoever writes to a file that is being moved writes to the
// old copy.
func (r *Releaser) kept(ctx context.Context, d *stream.Delivery, c event.Committed, row catalog.Row, levels policy.Policy) error {
	named, ok := levels.Level(row.Level)
	if !ok {
		return fault.New(fault.Unavailable, "look up level", row.Level, nil)
	}
	old, _ := levels.Level(c.Clears())
	there, err := r.o.Mover.Compare(ctx, mover.Comparison{Filename: row.Filename, Old: old, Current: named,
		OldIsOriginal: c.Outcome == event.OutcomeCommitted, Digest: row.Digest, Progress: d.Progress})
	if err != nil || there {
		return err
	}
	now, err := r.o.Catalog.Content(ctx, c.ID)
	if err != nil {
		return err
	}
	if now.Generation != row.Generation {
		return fault.New(fault.Busy, "clear", c.ID.String(), errChanged)
	}
	return &fault.Error{Kind: fault.MissingFile, Op: "keep the last copy of", Subject: c.ID.String(),
		Err:  fmt.Errorf("the row names level %s, and %s is not there", row.Level, row.Filename),
		Hint: "put the file there, or correct the row"}
}

func (r *Releaser) fail(d *stream.Delivery, err error) {
	if failed(r.failure, d, err) == failure.DeadLetter {
		r.seen.forget(d)
	}
}

// early says that the grace is not over yet.
type early struct{ wait time.Duration }

func (e *early) Error() string { return fmt.Sprintf("the grace is not over for %v", e.wait) }

// sightings know since when the row of an entry has been as it is. The grace begins with the entry, but when the entry
// is late (its content was locked, its worker paused), the content may have been back at the copy in question meanwhile:
// a reader may have been led there a moment ago. So the grace must have passed since the last commit as well. Whose
// commit that was, the row tells; when it was, only somebody's clock: hence it counts from when it was first seen.
type sightings struct {
	mu    sync.Mutex
	of    map[sighted]*sighting
	grace time.Duration
	swept time.Time
}

// sighted is an entry of a stream: in two partitions ids may be the same.
type sighted struct{ stream, id string }

type sighting struct {
	level   string
	updated time.Time
	at      time.Time
	looked  time.Time // for the last time
}

// maxSightings bounds memory. Where there are as many, others must wait until one of them has got through: if they took its
// place, nobody would.
const maxSightings = 10_000

// age is for how long the row is known to be unchanged. Where the entry's own commit was the last one, the entry's age
// says it.
func (s *sightings) age(d *stream.Delivery, c event.Committed, row catalog.Row) time.Duration {
	if c.Outcome == event.OutcomeCommitted && row.Updated.Equal(c.CommittedAt) {
		return math.MaxInt64
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key, now := sighted{d.Stream, d.ID}, time.Now()
	was := s.of[key]
	if was == nil {
		if len(s.of) >= maxSightings {
			s.sweep(now)
		}
		if len(s.of) >= maxSightings {
			return 0
		}
		was = &sighting{}
		s.of[key] = was
	}
	if was.level != row.Level || !was.updated.Equal(row.Updated) {
		was.level, was.updated, was.at = row.Level, row.Updated, now
	}
	was.looked = now
	return now.Sub(was.at)
}

// sweep forgets what nobody has come for in a time in which every entry is handed out again: others have settled it.
func (s *sightings) sweep(now time.Time) {
	if now.Sub(s.swept) < time.Second {
		return
	}
	s.swept = now
	maps.DeleteFunc(s.of, func(_ sighted, was *sighting) bool { return now.Sub(was.looked) > 2*s.grace+15*time.Minute })
}

func (s *sightings) forget(d *stream.Delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.of, sighted{d.Stream, d.ID})
}

// clock knows how far the clocks of Redis' servers are from ours: entry ids are in their time, and the grace must not
// shrink because two clocks differ. In a cluster each partition's server has its own.
type clock struct {
	mu sync.Mutex
	of map[string]*reading // by stream
}

type reading struct {
	mu     sync.Mutex // held while Redis is asked: a server that is away holds up no other's entries
	offset time.Duration
	asked  time.Time
}

func (c *clock) reading(key string) *reading {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.of[key]
	if r == nil {
		r = &reading{}
		if c.of == nil {
			c.of = map[string]*reading{}
		}
		c.of[key] = r
	}
	return r
}

func (c *clock) age(ctx context.Context, store *state.Store, key, entryID string) (time.Duration, error) {
	r := c.reading(key)
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.asked) > 10*time.Second {
		now, err := store.Now(ctx, key)
		if err != nil {
			return 0, err
		}
		r.offset, r.asked = time.Until(now), time.Now()
	}
	added, err := stream.Added(entryID)
	if err != nil {
		return 0, fault.New(fault.Malformed, "read entry id", entryID, err)
	}
	return time.Since(added) + r.offset, nil
}
