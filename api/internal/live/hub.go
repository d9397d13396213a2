package live

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/content"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/state"
)

const (
	// progressEvery is how often moves in flight are looked at, and progressMost how many of them.
	progressEvery = time.Second
	progressMost  = 100
	// buffer is how many events may wait for a watcher; one that is slower is sent to read the streams again.
	buffer = 4096
)

// streams are the names of what is watched; positions have one id for each, in this order.
var streams = [...]string{"views", "relocated", "committed", "dead"}

// Event is one entry of a stream, or the progress of a move.
type Event struct {
	Stream string // views, relocated, committed, dead; progress
	ID     string // of the entry; "" for progress
	Fields []string
	at     int // index in streams
}

// Position is how far a watcher has come in each stream.
type Position struct {
	entry string // the last entry of all
	ids   [len(streams)]string
}

// String is the form that ParsePosition reads: the last entry's id, and after it the position in views, relocated,
// committed and dead, with semicolons between.
func (p Position) String() string { return p.entry + ";" + strings.Join(p.ids[:], ";") }

// ParsePosition reads what String wrote, or the id of an entry, which means the same moment in every stream.
func ParsePosition(s string) (Position, error) {
	ids := strings.Split(s, ";")
	for _, id := range ids {
		if !ValidID(id) {
			return Position{}, fault.New(fault.Malformed, "read event id", s, fmt.Errorf("%q is not the id of an entry", id))
		}
	}
	p := Position{entry: ids[0]}
	switch len(ids) {
	case 1:
		// What other streams got in the same millisecond comes again; nothing is left out.
		ms, _, _ := strings.Cut(ids[0], "-")
		for i := range p.ids {
			p.ids[i] = ms + "-0"
		}
	case 1 + len(streams):
		copy(p.ids[:], ids[1:])
	default:
		return Position{}, fault.New(fault.Malformed, "read event id", s, fmt.Errorf("it has %d parts", len(ids)))
	}
	return p, nil
}

// ValidID tells whether s is the id of an entry: two numbers with a dash between.
func ValidID(s string) bool {
	ms, seq, ok := strings.Cut(s, "-")
	digits := func(s string) bool {
		return s != "" && len(s) <= 20 && strings.Trim(s, "0123456789") == ""
	}
	return ok && digits(ms) && digits(seq)
}

// Hub reads the four streams once for all who watch, and only while somebody does.
type Hub struct {
	rdb   redis.UniversalClient
	store *state.Store
	keys  [len(streams)]string
	log   *zap.Logger
	wake  chan struct{}

	mu       sync.Mutex
	watchers map[*Watcher]bool
	reading  chan struct{} // closed while the streams are read: what comes from then on reaches every watcher
}

// NewHub makes a Hub. Run must be started.
func NewHub(rdb redis.UniversalClient, store *state.Store, log *zap.Logger) *Hub {
	k := store.Keys()
	return &Hub{rdb: rdb, store: store, keys: [...]string{k.Views(), k.Relocated(), k.Committed(), k.Dead()}, log: log,
		wake: make(chan struct{}, 1), watchers: map[*Watcher]bool{}, reading: make(chan struct{})}
}

// Watcher gets the events from a position on.
type Watcher struct {
	hub    *Hub
	at     Position
	events chan Event // closed where the watcher was too slow
}

// End is the present end of the streams: where a watcher begins who has seen nothing yet.
func (h *Hub) End(ctx context.Context) (Position, error) {
	p := Position{entry: "0-0"}
	for i, key := range h.keys {
		id, err := lastID(ctx, h.rdb, key)
		if err != nil {
			return Position{}, fault.New(fault.Unavailable, "read", key, err)
		}
		p.ids[i] = id
	}
	return p, nil
}

// Watch calls send with every event after the position, and with each one's position, until ctx ends or send fails,
// whose error it returns. Heartbeats, where the event is nil, come at least every beat.
func (h *Hub) Watch(ctx context.Context, from Position, beat time.Duration, send func(*Event, Position) error) error {
	ticker := time.NewTicker(beat)
	defer ticker.Stop()
	w := &Watcher{hub: h, at: from}
	for {
		// First watch, then read what there was before: an event that comes both ways is told by its id.
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
			if !state.Newer(e.ID, w.at.ids[e.at]) {
				return nil
			}
			w.at.ids[e.at], w.at.entry = e.ID, e.ID
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
			// Redis is away: the watcher stays, and hears that we are alive.
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
		for i, key := range w.hub.keys {
			ms, err := w.hub.rdb.XRangeN(ctx, key, "("+w.at.ids[i], "+", page).Result()
			if err != nil {
				return fault.New(fault.Unavailable, "read", key, err)
			}
			for _, m := range ms {
				events = append(events, entry(i, m))
			}
			// Behind the end of a full page there may be entries that are older than what the others have.
			if len(ms) == page && (full == "" || state.Newer(full, ms[page-1].ID)) {
				full = ms[page-1].ID
			}
		}
		slices.SortStableFunc(events, older)
		for _, e := range events {
			if full != "" && state.Newer(e.ID, full) {
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
	case state.Newer(b.ID, a.ID):
		return -1
	case state.Newer(a.ID, b.ID):
		return 1
	}
	return 0
}

func entry(i int, m redis.XMessage) Event {
	return Event{Stream: streams[i], ID: m.ID, Fields: event.Ordered(values(m.Values)), at: i}
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

// idle tells whether nobody watches, and if so closes the books: who comes now waits for the next start.
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

// readStreams returns when nobody watches any more.
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
	args := append(slices.Clone(h.keys[:]), at.ids[:]...)
	got, err := h.rdb.XRead(ctx, &redis.XReadArgs{Streams: args, Count: page, Block: block}).Result()
	if err == redis.Nil {
		return nil
	}
	if err != nil {
		return err
	}
	var events []Event
	for _, s := range got {
		i := slices.Index(h.keys[:], s.Stream)
		for _, m := range s.Messages {
			events = append(events, entry(i, m))
		}
		at.ids[i] = s.Messages[len(s.Messages)-1].ID
	}
	slices.SortStableFunc(events, older)
	h.spread(events)
	return nil
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

// progress looks at the moves in flight and tells what has changed.
func (h *Hub) progress(ctx context.Context) {
	last := map[content.ID]state.Progress{}
	for ctx.Err() == nil {
		pause(ctx, progressEvery)
		if ctx.Err() != nil {
			return
		}
		moves, _, err := InFlight(ctx, h.rdb, h.store, "-", progressMost)
		if err != nil {
			continue
		}
		now := map[content.ID]state.Progress{}
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
