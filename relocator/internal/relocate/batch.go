package relocate

import (
	"cmp"
	"context"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/relocator/internal/placement"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/entryid"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
)

// MaxBatch is how many entries of views are best handled at once. The rows of a batch are locked for some milliseconds.
const MaxBatch = 500

// maxBatchAttempts is how many attempts an entry may have had and still be one of a batch. An entry that crashes its workers must
// not cost those of its batch all their attempts.
const maxBatchAttempts = 3

// counting works on the batches of one partition, one after the other. It settles the events that need no move, and sets all
// others apart (stream.Delivery.Alone), so that each fails, or waits, by itself.
type counting struct {
	*Handler
	mu    sync.Mutex
	items paces
	quiet *time.Timer // calls hurry
}

// what becomes of the newest event of an item in a batch. The zero value sets it apart.
type what int

const (
	alone what = iota
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
	apart   bool               // it was set apart before its row was looked up
	what    what
	wait    time.Duration
	review  time.Time    // when the item must be looked at again, where the count is written
	state   *state.State // to be set when the event is settled; nil: it is right as it stands
	seen    state.Seen
}

// batch settles what it can of a batch. Of each item only the newest event counts.
//
//  1. One transaction locks the rows. Nobody else changes them before their counts are written.
//  2. One MGET reads the states and locks of the items, after the look-up. A state that names an event shows that Redis was not
//     wiped before the look-up. So the entry id and the row's are comparable. Beside it the levels are read, also after the rows.
//  3. The counts of events that need no move are written into the rows, and the transaction ends.
//  4. Scripts ack these events and the superseded ones, and let their states expire (state.Store.SettleAll).
//
// An entry that needs anything else, or that something fails for, is set apart.
func (c *counting) batch(ds []*stream.Delivery) {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.sort(ds, time.Now())
	if len(all) == 0 {
		return
	}
	var ids []item.ID // of the rows to look up
	for _, e := range all {
		if !e.apart {
			ids = append(ids, e.view.ID)
		}
	}
	var err error
	if len(ids) > 0 {
		err = c.Rows.WriteCounts(ids, func(ctx context.Context, look placement.Look) ([]placement.Count, error) {
			var levels policy.Policy
			var levelsErr error
			var reading sync.WaitGroup
			reading.Go(func() { levels, levelsErr = look.Policy(ctx) })
			err := c.see(ctx, all)
			reading.Wait()
			if err := cmp.Or(err, levelsErr); err != nil {
				return nil, err
			}
			return c.choose(all, look.Rows, levels), nil
		})
	} else {
		ctx, cancel := context.WithTimeout(context.Background(), redisTimeout)
		err = c.see(ctx, all)
		cancel()
	}
	if err != nil {
		c.batches.Failed(err, zap.Int("entries", len(ds)))
		c.giveUp(all)
		return
	}
	c.finish(all)
}

// redisTimeout bounds one call of Redis outside of the transaction.
const redisTimeout = 5 * time.Second

// sort returns the newest event of each item, in the order of their items' first events. It sets apart what seems to need a move
// at once, so that no batch delays a move.
func (c *counting) sort(ds []*stream.Delivery, now time.Time) []*candidate {
	var all []*candidate
	of := map[item.ID]*candidate{}
	fresh := false
	for _, d := range ds {
		view, err := event.ParseView(d.Values)
		waited := err == nil && c.items.returned(view.ID, d)
		fresh = fresh || !waited
		if !c.Admit(d, view.ID, err) {
			continue
		}
		if d.Attempt > maxBatchAttempts {
			d.Alone()
			continue
		}
		e := of[view.ID]
		switch {
		case e == nil:
			e = &candidate{d: d, view: view}
			of[view.ID], all = e, append(all, e)
		case newer(d, e.d):
			e.older = append(e.older, e.d)
			e.d, e.view = d, view
		default:
			e.older = append(e.older, d)
		}
	}
	for _, e := range all {
		e.waiting = c.items.superseded(e.view.ID, e.d)
		if e.apart = e.view.Target != e.view.DBLevel; e.apart {
			e.d.Alone()
		}
	}
	if fresh {
		c.items.posted(now)
		if c.quiet == nil {
			c.quiet = time.AfterFunc(quietAfter, c.hurry)
		} else {
			c.quiet.Reset(quietAfter)
		}
	}
	return all
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

// choose decides what becomes of each event whose row was looked up, and returns the counts to write.
func (c *counting) choose(all []*candidate, rows map[item.ID]catalog.Row, levels policy.Policy) (counts []placement.Count) {
	now := time.Now()
	for _, e := range all {
		if e.apart {
			continue
		}
		row, ok := rows[e.view.ID]
		e.what = c.decide(e, row, ok, levels, now)
		if e.what == written && row.CountEntry != e.d.ID { // else an earlier attempt has written it
			counts = append(counts, placement.Count{Row: row, Count: e.view.Count, Entry: e.d.ID, ReviewAt: e.review})
		}
	}
	return counts
}

func (c *counting) decide(e *candidate, row catalog.Row, ok bool, levels policy.Policy, now time.Time) what {
	st := e.seen.State
	// An unsettled event has a state. Where there is none, or an older one, Redis was wiped.
	if st == nil || entryid.Newer(e.d.ID, st.EntryID) {
		return alone
	}
	later := st.EntryID != e.d.ID
	stays := false
	if i := row.Item(e.view.Count); ok && e.seen.Lock == "" && !entryid.Newer(row.CountEntry, e.d.ID) && levels.Knows(i) {
		d := levels.Decide(i, now)
		stays, e.review = d.Target == row.Level, d.ReviewAt
	}
	switch {
	case later && (!stays || !c.items.overdue(e.view.ID, now)):
		return superseded
	case !stays:
		return alone
	case later:
		return written
	}
	if e.wait = c.items.wait(e.view.ID, now); e.wait > 0 && row.CountEntry != e.d.ID {
		return waits
	}
	want := stateOf(e.view, row, row.Level, e.d.ID)
	if st.Status != state.Done || st.WorkerID != "" || st.Target != want.Target || st.DBLevel != want.DBLevel || st.Filename != want.Filename {
		e.state = &want
	}
	return written
}

// isNewer reports whether the item of a candidate has a newer event than this one.
func (e *candidate) isNewer(than *stream.Delivery) bool {
	return e.seen.State != nil && entryid.Newer(e.seen.State.EntryID, than.ID)
}

// finish settles the events whose counts are written, and those that are superseded.
func (c *counting) finish(all []*candidate) {
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
		c.batches.Failed(err, zap.Int("entries", len(done)))
		c.giveUp(all)
		return
	}
	c.batches.Succeeded()
	now := time.Now()
	for _, e := range all {
		c.end(e, now)
	}
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
