package live

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tierflow/tierflow/shared/entryid"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/state"
)

const (
	// page is how many entries of a stream catchUp reads at once.
	page = 1000
	// catchUps is how often a watcher may read the streams itself until the ring has what it needs next.
	catchUps = 3
)

// errSlow ends a watcher that cannot keep up.
var errSlow = errors.New("the watcher is too slow")

// watcher gets the events after a position.
type watcher struct {
	hub  *Hub
	at   Position
	beat <-chan time.Time
	send func(*Event, Position) error
}

// Watch calls send with every event after the position, and with the event's position, until ctx ends or send fails. It
// returns the error of send. It also calls send with a nil event, a heartbeat, at least every beat.
//
// The events come from the ring. Where the ring does not reach back to the position, older events come from Redis first. Where Redis
// has trimmed events after it, an event Reset comes before the others. A watcher that falls out of the ring gets a last event
// Slow, and the result is errSlow. It can continue from the position of that event.
func (h *Hub) Watch(ctx context.Context, from Position, beat time.Duration, send func(*Event, Position) error) error {
	ticker := time.NewTicker(beat)
	defer ticker.Stop()
	h.enter()
	defer h.leave()
	from.ids = slices.Clone(from.ids)
	w := &watcher{hub: h, at: from, beat: ticker.C, send: send}
	next, live, err := w.begin(ctx)
	for err == nil {
		events, more, ok := h.ring.from(next)
		if !ok {
			return w.slow()
		}
		for _, e := range events {
			if e.ID != "" || next >= live { // old progress is of no use
				if err := w.deliver(e); err != nil {
					return err
				}
			}
			next++
		}
		if len(events) > 0 && ctx.Err() == nil {
			continue
		}
		err = w.wait(ctx, more)
	}
	return err
}

// begin sees to it that the ring has everything after the watcher's position.
func (w *watcher) begin(ctx context.Context) (first, live uint64, err error) {
	for caughtUp := 0; ; {
		first, live, floor, more := w.hub.ring.start()
		switch {
		case floor == nil:
			err = w.wait(ctx, more)
		case w.at.reaches(floor):
			return first, live, nil
		case caughtUp == catchUps:
			err = w.slow()
		default:
			if err = w.fromRedis(ctx); err == nil {
				caughtUp++
				w.at.raise(floor) // what there still is up to there was read just now
			} else if fault.Is(err, fault.Unavailable) && ctx.Err() == nil {
				// Redis is away. The watcher stays connected, and the heartbeat shows that the api is alive.
				pause(ctx, retryAfter)
				err = w.send(nil, w.at)
			}
		}
		if err != nil {
			return 0, 0, err
		}
	}
}

// wait waits for more, with heartbeats.
func (w *watcher) wait(ctx context.Context, more <-chan struct{}) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-more:
			return nil
		case <-w.beat:
			if err := w.send(nil, w.at); err != nil {
				return err
			}
		}
	}
}

// deliver sends an event that the watcher has not had.
func (w *watcher) deliver(e Event) error {
	if e.ID != "" {
		if !entryid.Newer(e.ID, w.at.ids[e.at]) {
			return nil
		}
		w.at.ids[e.at], w.at.entry = e.ID, state.Ref{Partition: e.at / len(streams), ID: e.ID}.Text(w.hub.store.Keys())
	}
	return w.send(&e, w.at)
}

func (w *watcher) slow() error {
	why := fmt.Sprintf("this reader is more than %d events behind: connect again with the last id", len(w.hub.ring.events))
	if err := w.send(&Event{Stream: Slow, Data: fieldsJSON([]string{"why", why})}, w.at); err != nil {
		return err
	}
	return errSlow
}

// fromRedis reads what the ring does not have.
func (w *watcher) fromRedis(ctx context.Context) error {
	lost, err := w.hub.store.Trimmed(ctx, w.hub.streams, w.at.ids)
	if err != nil {
		return err
	}
	if lost {
		why := "events after this id are gone: what was shown may be old"
		if err := w.send(&Event{Stream: Reset, Data: fieldsJSON([]string{"why", why})}, w.at); err != nil {
			return err
		}
	}
	return w.catchUp(ctx, w.deliver)
}

// catchUp reads the streams from the watcher's position to their end, oldest first over all of them.
func (w *watcher) catchUp(ctx context.Context, deliver func(Event) error) error {
	for {
		var events []Event
		full := ""
		for i, key := range w.hub.streams {
			found, err := w.hub.store.EntriesAfter(ctx, key, w.at.ids[i], page)
			if err != nil {
				return err
			}
			for _, e := range found {
				events = append(events, entryEvent(i, e))
			}
			// The next page of this stream may have entries that are older than some of the other streams.
			if len(found) == page && (full == "" || entryid.Newer(full, found[page-1].ID)) {
				full = found[page-1].ID
			}
		}
		slices.SortStableFunc(events, older)
		for _, e := range events {
			if full != "" && entryid.Newer(e.ID, full) {
				break
			}
			if err := deliver(e); err != nil {
				return err
			}
		}
		if full == "" {
			return nil
		}
	}
}
