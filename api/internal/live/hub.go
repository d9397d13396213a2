package live

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/entryid"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
)

const (
	// progressEvery is how often the progress of the first maxMoves moves in flight is read.
	progressEvery = time.Second
	maxMoves      = 100
	// page is how many entries of a stream catchUp reads at once.
	page = 1000
	// buffer is how many events may wait for a watcher. A watcher with more must read the streams again.
	buffer = 4096
)

// streams are the names of the streams that the hub reads, in every partition.
var streams = [...]string{"views", "relocated", "committed", "dead"}

// overlap is by how much the clocks of a cluster's nodes may differ. With several partitions, a watcher that continues
// gets the events of this time again.
const overlap = 5 * time.Second

// Event is one entry of a stream, or the progress of a move.
type Event struct {
	Stream string // views, relocated, committed, dead; progress
	ID     string // of the entry; "" for progress
	Fields []string
	at     int // index in the hub's keys
}

// Position is how far a watcher has read in each stream.
type Position struct {
	entry string   // the last entry of all, as Ref.Text shows it
	ids   []string // the last entry of each of the hub's streams
}

// String is the form that ParsePosition reads: the last entry's id. With one partition, the positions in views, relocated,
// committed and dead follow, with semicolons between. With several partitions they would be too long for each event.
func (p Position) String() string {
	if len(p.ids) > len(streams) {
		return p.entry
	}
	return p.entry + ";" + strings.Join(p.ids, ";")
}

// ParsePosition reads what String wrote, or the id of an entry, which means the same moment in every stream.
func ParsePosition(k state.Keys, s string) (Position, error) {
	entry, rest, exact := strings.Cut(s, ";")
	r, err := state.ParseRef(k, entry)
	if err != nil {
		return Position{}, err
	}
	p := Position{entry: entry, ids: make([]string, len(streams)*k.Partitions())}
	if exact {
		ids := strings.Split(rest, ";")
		if len(ids) != len(p.ids) || k.Partitions() > 1 {
			return Position{}, fault.New(fault.Malformed, "read event id", s, fmt.Errorf("it has %d parts", 1+len(ids)))
		}
		for i, id := range ids {
			if !state.ValidEntryID(id) {
				return Position{}, fault.New(fault.Malformed, "read event id", s, fmt.Errorf("%q is not the id of an entry", id))
			}
			p.ids[i] = id
		}
		return p, nil
	}
	// The position must leave out no event. So the watcher gets again what other streams got in the same millisecond, and
	// with several partitions what they got in the last seconds of their own clocks.
	ms, _, _ := strings.Cut(r.ID, "-")
	if k.Partitions() > 1 {
		n, err := strconv.ParseInt(ms, 10, 64)
		if err != nil {
			return Position{}, fault.New(fault.Malformed, "read event id", s, err)
		}
		ms = strconv.FormatInt(max(0, n-overlap.Milliseconds()), 10)
	}
	for i := range p.ids {
		p.ids[i] = ms + "-0"
	}
	return p, nil
}

// Hub reads the four streams once for all watchers, and only while there are watchers.
type Hub struct {
	store   *state.Store
	streams []string // views, relocated, committed, dead of every partition
	log     *zap.Logger
	wake    chan struct{}

	mu       sync.Mutex
	watchers map[*Watcher]bool
	reading  chan struct{} // closed while the streams are read: entries that arrive from then on reach every watcher
}

// NewHub makes a Hub. Run must be started.
func NewHub(store *state.Store, log *zap.Logger) *Hub {
	h := &Hub{store: store, log: log,
		wake: make(chan struct{}, 1), watchers: map[*Watcher]bool{}, reading: make(chan struct{})}
	for _, k := range store.Keys().Each() {
		h.streams = append(h.streams, k.Views(), k.Relocated(), k.Committed(), k.Dead())
	}
	return h
}

// Watcher gets the events after a position.
type Watcher struct {
	hub    *Hub
	at     Position
	events chan Event // closed where the watcher was too slow
}

// End is the present end of the streams, where a new watcher begins.
func (h *Hub) End(ctx context.Context) (Position, error) {
	p := Position{entry: state.Ref{ID: "0-0"}.Text(h.store.Keys())}
	newest := state.Ref{ID: "0-0"}
	ids, err := h.store.LastIDs(ctx, h.streams)
	if err != nil {
		return Position{}, err
	}
	p.ids = ids
	for i, id := range ids {
		if r := (state.Ref{Partition: i / len(streams), ID: id}); r.Compare(newest) > 0 {
			newest = r
		}
	}
	if len(h.streams) > len(streams) { // with several partitions, String has the entry only
		p.entry = newest.Text(h.store.Keys())
	}
	return p, nil
}

// Watch calls send with every event after the position, and with the event's position, until ctx ends or send fails. It
// returns the error of send. It also calls send with a nil event, a heartbeat, at least every beat.
func (h *Hub) Watch(ctx context.Context, from Position, beat time.Duration, send func(*Event, Position) error) error {
	ticker := time.NewTicker(beat)
	defer ticker.Stop()
	w := &Watcher{hub: h, at: from}
	for {
		// The watcher first begins to receive, then reads the events before. An event that it gets both ways has the same id.
		w.events = make(chan Event, buffer)
		reading := h.add(w)
		err := w.follow(ctx, reading, ticker.C, send)
		h.remove(w)
		if err != errSlow {
			return err
		}
	}
}

var errSlow = fmt.Errorf("too slow")

func (w *Watcher) follow(ctx context.Context, reading <-chan struct{}, beat <-chan time.Time, send func(*Event, Position) error) error {
	deliver := func(e Event) error {
		if e.ID != "" {
			if !entryid.Newer(e.ID, w.at.ids[e.at]) {
				return nil
			}
			w.at.ids[e.at], w.at.entry = e.ID, state.Ref{Partition: e.at / len(streams), ID: e.ID}.Text(w.hub.store.Keys())
		}
		return send(&e, w.at)
	}
	for begun := false; !begun; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-reading:
			begun = true
		case <-beat:
			if err := send(nil, w.at); err != nil {
				return err
			}
		}
	}
	for caughtUp := false; !caughtUp; {
		if err := w.catchUp(ctx, deliver); err == nil {
			caughtUp = true
		} else if !fault.Is(err, fault.Unavailable) || ctx.Err() != nil {
			return err
		} else {
			// Redis is away. The watcher stays connected, and the heartbeat shows that the api is alive.
			if err := send(nil, w.at); err != nil {
				return err
			}
			pause(ctx, retryAfter)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-beat:
			if err := send(nil, w.at); err != nil {
				return err
			}
		case e, ok := <-w.events:
			if !ok {
				return errSlow
			}
			if err := deliver(e); err != nil {
				return err
			}
		}
	}
}

// catchUp reads the streams from the watcher's position to their end, oldest first over all of them.
func (w *Watcher) catchUp(ctx context.Context, deliver func(Event) error) error {
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

func older(a, b Event) int {
	switch {
	case entryid.Newer(b.ID, a.ID):
		return -1
	case entryid.Newer(a.ID, b.ID):
		return 1
	}
	return 0
}

func entryEvent(i int, e state.Entry) Event {
	return Event{Stream: streams[i%len(streams)], ID: e.ID, Fields: event.Ordered(e.Fields), at: i}
}

func (h *Hub) add(w *Watcher) (reading <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watchers[w] = true
	select {
	case h.wake <- struct{}{}:
	default:
	}
	return h.reading
}

func (h *Hub) remove(w *Watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.watchers, w)
}

// idle reports whether there are no watchers. Where there are none, later watchers wait until the hub reads again.
func (h *Hub) idle() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.watchers) > 0 {
		return false
	}
	h.reading = make(chan struct{})
	return true
}

// Run reads for the watchers until ctx ends.
func (h *Hub) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-h.wake:
		}
		watching, cancel := context.WithCancel(ctx)
		wg.Go(func() { h.progress(watching) })
		h.readStreams(watching)
		cancel()
		wg.Wait()
	}
}

// readStreams reads for the watchers. It returns when there are none.
func (h *Hub) readStreams(ctx context.Context) {
	var at *Position
	for ctx.Err() == nil && !h.idle() {
		if at == nil {
			end, err := h.End(ctx)
			if err != nil {
				pause(ctx, retryAfter)
				continue
			}
			at = &end
			h.mu.Lock()
			close(h.reading)
			h.mu.Unlock()
		}
		if err := h.read(ctx, at); err != nil {
			h.log.Debug("the streams cannot be read", zap.Error(err))
			pause(ctx, retryAfter)
		}
	}
}

func (h *Hub) read(ctx context.Context, at *Position) error {
	var events []Event
	err := h.store.ReadNew(ctx, h.streams, at.ids, func(i int, e state.Entry) { events = append(events, entryEvent(i, e)) })
	slices.SortStableFunc(events, older)
	h.spread(events)
	return err
}

func (h *Hub) spread(events []Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watchers {
		for _, e := range events {
			select {
			case w.events <- e:
				continue
			default:
			}
			close(w.events)
			delete(h.watchers, w)
			break
		}
	}
}

// progress reads the progress of the moves in flight and sends what has changed to the watchers.
func (h *Hub) progress(ctx context.Context) {
	last := map[item.ID]state.Progress{}
	for ctx.Err() == nil {
		pause(ctx, progressEvery)
		if ctx.Err() != nil {
			return
		}
		moves, _, err := h.store.Moves(ctx, state.Ref{}, maxMoves)
		if err != nil {
			continue
		}
		now := map[item.ID]state.Progress{}
		var events []Event
		for _, m := range moves {
			if m.Progress == nil {
				continue
			}
			now[m.View.ID] = *m.Progress
			if p := *m.Progress; last[m.View.ID] != p {
				events = append(events, Event{Stream: "progress", Fields: []string{"event_id", p.EventID, "cid", m.View.ID.String(),
					"from", p.From, "to", p.To, "filename", p.Filename, "worker_id", p.WorkerID,
					"bytes_done", fmt.Sprint(p.BytesDone), "bytes_total", fmt.Sprint(p.BytesTotal),
					"updated_at", event.FormatTime(p.UpdatedAt)}})
			}
		}
		last = now
		h.spread(events)
	}
}
