package relocate

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/tierflow/tierflow/relocator/internal/placement"
	"github.com/tierflow/tierflow/shared/batch"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/entryid"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
)

const (
	// MaxBatch is how many entries of views are best read and handled at once. The rows of a batch are locked for some
	// milliseconds.
	MaxBatch = 1000
	// batchEvery lets more events share a batch: each batch costs the same round trips. Moves do not wait for it.
	batchEvery = 25 * time.Millisecond
	// Reads is how many reads are best in hand at once: while one batch runs, moves are found in what was read meanwhile. A crash
	// makes all that is in hand wait until it is taken over.
	Reads = 6
)

// maxBatchAttempts is how many attempts an entry may have had and still be one of a batch. An entry that crashes its workers must
// not cost those of its batch all their attempts.
const maxBatchAttempts = 3

// counting settles the events of one partition that need no move, in one batch after the other. What is read while a batch runs
// gathers for the next one. It sets all other events apart (stream.Delivery.Alone), so that each fails, or waits, by itself.
type counting struct {
	*Handler
	reads *batch.Runner[[]*candidate, struct{}]
	mu    sync.Mutex // is held while a batch runs
	items paces
	quiet *time.Timer // calls hurry
}

func newCounting(h *Handler) *counting {
	c := &counting{Handler: h}
	c.reads = batch.New(Reads, c.run)
	return c
}

// what becomes of the newest event of an item in a batch. The zero value sets it apart.
type what int

const (
	alone   what = iota
	looksUp      // the item's row decides
	superseded
	waits   // for its item's next write
	written // its count goes into the row
)

// candidate is the newest event of an item in a batch.
type candidate struct {
	d       *stream.Delivery
	view    event.View
	older   []*stream.Delivery // of the same item and batch
	waiting *stream.Delivery   // an older one that waits for the item's next write
	apart   bool               // it was set apart before its item was looked at
	what    what
	wait    time.Duration
	review  time.Time    // when the item must be looked at again, where the count is written
	state   *state.State // to be set when the event is settled; nil: it is right as it stands
	seen    state.Seen
}

// handle sets apart at once what seems to need a move, so that no batch delays it, and returns when the rest was in a batch.
func (c *counting) handle(ds []*stream.Delivery) {
	if all := c.sort(ds); len(all) > 0 {
		_, _ = c.reads.Do(context.Background(), all) // which never ends early
	}
}

// run handles what has gathered. Batches that are not full begin batchEvery apart.
func (c *counting) run(reads [][]*candidate) []struct{} {
	began, all := time.Now(), join(reads)
	for some := range slices.Chunk(all, MaxBatch) {
		c.batch(some)
	}
	if len(all) < MaxBatch {
		time.Sleep(batchEvery - time.Since(began))
	}
	return make([]struct{}, len(reads))
}

// batch settles what it can of a batch. Of each item only the newest event counts.
//
//  1. One MGET reads the states and locks of the items. Most events end here where posts come fast: a newer one has superseded
//     them, or their item's row was written a moment ago.
//  2. One transaction locks the rows of the others. Nobody else changes them before their counts are written.
//  3. Another MGET reads the states and locks, after the look-up. A state that names an event shows that Redis was not wiped
//     before the look-up. So the entry id and the row's are comparable. Beside it the levels are read, also after the rows.
//  4. The counts of events that need no move are written into the rows, and the transaction ends.
//  5. Scripts ack these events and the superseded ones, and let their states expire (state.Store.SettleAll).
//
// An entry that needs anything else, or that something fails for, is set apart.
func (c *counting) batch(all []*candidate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.note(all)
	ctx, cancel := context.WithTimeout(context.Background(), redisTimeout)
	err := c.see(ctx, all)
	cancel()
	if err != nil {
		c.giveUp(all)
	} else {
		err = c.lookUp(c.glance(all))
		err = cmp.Or(c.finish(all), err)
	}
	c.batches.Note(err)
}

// glance decides what the states and locks suffice for, and returns the candidates whose rows must be looked up.
func (c *counting) glance(all []*candidate) (rows []*candidate) {
	now := time.Now()
	for _, e := range all {
		switch {
		case e.apart:
		case e.isNewer(e.d) && !c.items.overdue(e.view.ID, now):
			e.what = superseded
		case e.seen.Entry == e.d.ID && e.seen.Lock == "" && c.mustWait(e, now):
			e.what = waits
		default:
			e.what = looksUp
			rows = append(rows, e)
		}
	}
	return rows
}

// mustWait reports whether an event waits for its item's next write, and sets how long.
func (c *counting) mustWait(e *candidate, now time.Time) bool {
	e.wait = c.items.wait(e.view.ID, now)
	return e.wait > 0
}

// lookUp decides by the rows, and writes the counts of the events that need no move. After an error, all of them are set apart.
func (c *counting) lookUp(some []*candidate) error {
	if len(some) == 0 {
		return nil
	}
	ids := make([]item.ID, len(some))
	for i, e := range some {
		ids[i] = e.view.ID
	}
	err := c.Rows.WriteCounts(ids, func(ctx context.Context, look placement.Look) ([]placement.Count, error) {
		var levels policy.Policy
		var levelsErr error
		var reading sync.WaitGroup
		reading.Go(func() { levels, levelsErr = look.Policy(ctx) })
		err := c.see(ctx, some)
		reading.Wait()
		if err := cmp.Or(err, levelsErr); err != nil {
			return nil, err
		}
		return c.choose(some, look.Rows, levels), nil
	})
	if err != nil {
		for _, e := range some {
			e.what = alone
		}
	}
	return err
}

// redisTimeout bounds one call of Redis outside of the transaction.
const redisTimeout = 5 * time.Second

// sort returns the newest event of each item, in the order of their items' first events. It sets apart those that seem to need a
// move.
func (c *counting) sort(ds []*stream.Delivery) []*candidate {
	var one []*candidate
	for _, d := range ds {
		view, err := event.ParseView(d.Values)
		if !c.Admit(d, view.ID, err) {
			continue
		}
		if d.Attempt > maxBatchAttempts {
			d.Alone()
			continue
		}
		one = append(one, &candidate{d: d, view: view})
	}
	all := join([][]*candidate{one})
	for _, e := range all {
		if e.apart = e.view.Target != e.view.DBLevel; e.apart {
			e.d.Alone()
		}
	}
	return all
}

// join returns one candidate for each item, in the order of the first ones.
func join(reads [][]*candidate) (all []*candidate) {
	of := map[item.ID]*candidate{}
	for _, read := range reads {
		for _, e := range read {
			first := of[e.view.ID]
			if first == nil {
				of[e.view.ID], all = e, append(all, e)
				continue
			}
			if newer(e.d, first.d) {
				*first, *e = *e, *first
			}
			first.older = append(first.older, e.older...)
			if !e.apart {
				first.older = append(first.older, e.d)
			}
		}
	}
	return all
}

// note tells the paces which events have come.
func (c *counting) note(all []*candidate) {
	fresh := false
	for _, e := range all {
		for _, d := range e.older {
			fresh = !c.items.returned(e.view.ID, d) || fresh
		}
		fresh = !c.items.returned(e.view.ID, e.d) || fresh
		e.waiting = c.items.superseded(e.view.ID, e.d)
	}
	if !fresh {
		return
	}
	c.items.posted(time.Now())
	if c.quiet == nil {
		c.quiet = time.AfterFunc(quietAfter, c.hurry)
	} else {
		c.quiet.Reset(quietAfter)
	}
}

// hurry lets waiting events begin when no new ones come.
func (c *counting) hurry() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.items.hurry(time.Now())
}

func newer(d, than *stream.Delivery) bool { return entryid.Newer(d.ID, than.ID) }

func (c *counting) see(ctx context.Context, all []*candidate) error {
	ids := make([]item.ID, len(all))
	for i, e := range all {
		ids[i] = e.view.ID
	}
	seen, err := c.o.Store.See(ctx, ids)
	for i := range seen {
		all[i].seen = seen[i]
	}
	return err
}

// choose decides what becomes of each event by its item's row, and returns the counts to write.
func (c *counting) choose(some []*candidate, rows map[item.ID]catalog.Row, levels policy.Policy) (counts []placement.Count) {
	now := time.Now()
	for _, e := range some {
		row, ok := rows[e.view.ID]
		e.what = c.decide(e, row, ok, levels, now)
		if e.what == written && row.CountEntry != e.d.ID { // else an earlier attempt has written it
			counts = append(counts, placement.Count{Row: row, Count: e.view.Count, Entry: e.d.ID, ReviewAt: e.review})
		}
	}
	return counts
}

func (c *counting) decide(e *candidate, row catalog.Row, ok bool, levels policy.Policy, now time.Time) what {
	stays := false
	if i := row.Item(e.view.Count); ok && e.seen.Lock == "" && !entryid.Newer(row.CountEntry, e.d.ID) && levels.Knows(i) {
		d := levels.Decide(i, now)
		stays, e.review = d.Target == row.Level, d.ReviewAt
	}
	later := e.isNewer(e.d)
	switch {
	case later && (!stays || !c.items.overdue(e.view.ID, now)):
		return superseded
	case !stays:
		return alone
	case later:
		return written
	}
	// An unsettled event has a state. Where there is none, or an older one, Redis was wiped.
	if e.seen.Entry != e.d.ID {
		return alone
	}
	if want := stateOf(e.view, row, row.Level, e.d.ID); !e.seen.Says(want) {
		e.state = &want
	}
	return written
}

// isNewer reports whether the item of a candidate has a newer event than this one.
func (e *candidate) isNewer(than *stream.Delivery) bool { return e.seen.Newer(than.ID) }

// finish settles the events whose counts are written, and those that are superseded. After an error, all are set apart.
func (c *counting) finish(all []*candidate) error {
	var done []state.Settlement
	ack := func(e *candidate, d *stream.Delivery) {
		done = append(done, state.Settlement{ID: e.view.ID, EntryID: d.ID, Superseded: true})
	}
	for _, e := range all {
		for _, d := range e.older {
			if e.isNewer(d) {
				ack(e, d)
			}
		}
		if e.waiting != nil && e.isNewer(e.waiting) {
			ack(e, e.waiting)
		}
		switch {
		case e.what == superseded || e.what == written && e.isNewer(e.d):
			ack(e, e.d)
		case e.what == written:
			done = append(done, state.Settlement{ID: e.view.ID, EntryID: e.d.ID, State: e.state})
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), redisTimeout)
	defer cancel()
	if err := c.o.Store.SettleAll(ctx, done); err != nil {
		c.giveUp(all)
		return err
	}
	now := time.Now()
	for _, e := range all {
		c.end(e, now)
	}
	return nil
}

// end gives the deliveries of a candidate their verdicts.
func (c *counting) end(e *candidate, now time.Time) {
	for _, d := range e.older {
		if e.isNewer(d) {
			c.settled(d, "superseded")
		} else {
			d.Alone()
		}
	}
	if e.waiting != nil && e.isNewer(e.waiting) {
		c.o.Metrics.Settled("superseded")
		e.waiting.Acked()
	} else if e.waiting != nil {
		e.waiting.Hurry()
	}
	switch {
	case e.apart:
	case e.what == superseded:
		c.settled(e.d, "superseded")
	case e.what == written:
		c.items.wrote(e.view.ID, now)
		c.settled(e.d, "in place")
	case e.what == waits:
		e.d.Reason = "count"
		e.d.Later(e.wait)
		c.items.waits(e.view.ID, e.d)
	default:
		e.d.Alone()
	}
}

func (c *counting) settled(d *stream.Delivery, how string) {
	c.o.Metrics.Settled(how)
	d.Settled()
}

// giveUp sets apart all entries that are not apart yet.
func (c *counting) giveUp(all []*candidate) {
	for _, e := range all {
		for _, d := range e.older {
			d.Alone()
		}
		if e.waiting != nil {
			e.waiting.Hurry()
		}
		if !e.apart {
			e.d.Alone()
		}
	}
}
