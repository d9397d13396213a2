package live

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/entryid"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/outage"
	"github.com/tierflow/tierflow/shared/state"
)

const (
	// progressEvery is how often the progress of the first maxMoves moves in flight is read.
	progressEvery = time.Second
	maxMoves      = 100
	// linger is how long the hub goes on reading without a watcher, so that one that reconnects finds its events in the ring.
	linger = 30 * time.Second
)

// streams are the names of the streams that the hub reads, in every partition.
var streams = [...]string{"views", "relocated", "committed", "dead"}

// Event is one entry of a stream, the progress of a move, or a message to the watcher.
type Event struct {
	Stream string // views, relocated, committed, dead; progress; Slow, Reset
	ID     string // of the entry; "" for the others
	Data   []byte // the fields as JSON, encoded once for all watchers
	at     int    // index in the hub's keys
}

// Messages to a watcher.
const (
	Slow  = "slow"  // the last event of a watcher that is too far behind
	Reset = "reset" // events between the position and now are lost
)

// Hub reads the four streams once for all watchers, and only while there are watchers or were some lately.
type Hub struct {
	store   *state.Store
	streams []string // views, relocated, committed, dead of every partition
	log     *zap.Logger
	wake    chan struct{}
	ring    *ring

	mu       sync.Mutex
	watchers int
	left     time.Time // when the last watcher left
}

// NewHub makes a Hub. Run must be started.
func NewHub(store *state.Store, log *zap.Logger) *Hub {
	h := &Hub{store: store, log: log, wake: make(chan struct{}, 1), ring: newRing(ringLength)}
	for _, k := range store.Keys().Each() {
		h.streams = append(h.streams, k.Views(), k.Relocated(), k.Committed(), k.Dead())
	}
	return h
}

// End is the present end of the streams, where a new watcher begins. It asks Redis only where nobody reads the streams.
func (h *Hub) End(ctx context.Context) (Position, error) {
	p := Position{entry: state.Ref{ID: "0-0"}.Text(h.store.Keys()), ids: h.ring.last()}
	if p.ids == nil {
		var err error
		if p.ids, err = h.store.LastIDs(ctx, h.streams); err != nil {
			return Position{}, err
		}
	}
	newest := state.Ref{ID: "0-0"}
	for i, id := range p.ids {
		if r := (state.Ref{Partition: i / len(streams), ID: id}); r.Compare(newest) > 0 {
			newest = r
		}
	}
	if len(h.streams) > len(streams) { // with several partitions, String has the entry only
		p.entry = newest.Text(h.store.Keys())
	}
	return p, nil
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
	return Event{Stream: streams[i%len(streams)], ID: e.ID, Data: fieldsJSON(event.Ordered(e.Fields)), at: i}
}

// fieldsJSON writes alternating names and values as a JSON object of strings, in their order.
func fieldsJSON(fields []string) []byte {
	b := []byte{'{'}
	for i, f := range fields {
		switch {
		case i == 0:
		case i%2 == 0:
			b = append(b, ',')
		default:
			b = append(b, ':')
		}
		text, err := json.Marshal(f)
		if err != nil {
			panic(err) // a string can always be encoded
		}
		b = append(b, text...)
	}
	return append(b, '}')
}

func (h *Hub) enter() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watchers++
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (h *Hub) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watchers--
	h.left = time.Now()
}

// idle reports whether there is no watcher and was none lately. It stops the ring then.
func (h *Hub) idle() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.watchers > 0 || time.Since(h.left) < linger {
		return false
	}
	h.ring.stop()
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
	var after []string
	reads := outage.New("reads for the live view", h.log)
	for ctx.Err() == nil && !h.idle() {
		var err error
		if after == nil {
			var ends []string
			if ends, err = h.store.LastIDs(ctx, h.streams); err == nil {
				after = ends
				h.ring.begin(ends)
			}
		} else {
			err = h.read(ctx, after)
		}
		if ctx.Err() != nil {
			return
		}
		reads.Note(err)
		if err != nil {
			pause(ctx, retryAfter)
		}
	}
}

func (h *Hub) read(ctx context.Context, after []string) error {
	var events []Event
	err := h.store.ReadNew(ctx, h.streams, after, func(i int, e state.Entry) { events = append(events, entryEvent(i, e)) })
	slices.SortStableFunc(events, older)
	h.ring.add(events)
	return err
}

// progress reads the progress of the moves in flight and gives what has changed to the watchers.
func (h *Hub) progress(ctx context.Context) {
	last := map[item.ID]state.Progress{}
	reads := outage.New("reads of moves for the live view", h.log)
	for ctx.Err() == nil {
		pause(ctx, progressEvery)
		if ctx.Err() != nil {
			return
		}
		moves, _, err := h.store.Moves(ctx, state.Ref{}, maxMoves)
		if ctx.Err() != nil {
			return
		}
		reads.Note(err)
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
				events = append(events, Event{Stream: "progress", Data: fieldsJSON([]string{"event_id", p.EventID, "cid", m.View.ID.String(),
					"from", p.From, "to", p.To, "filename", p.Filename, "worker_id", p.WorkerID,
					"bytes_done", fmt.Sprint(p.BytesDone), "bytes_total", fmt.Sprint(p.BytesTotal),
					"updated_at", event.FormatTime(p.UpdatedAt)})})
			}
		}
		last = now
		h.ring.add(events)
	}
}
