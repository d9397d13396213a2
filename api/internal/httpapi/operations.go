package httpapi

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/labstack/echo/v4"

	"github.com/tierflow/tierflow/api/internal/reevaluate"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
)

type relocationAnswer struct {
	EntryID    string     `json:"entry_id"`
	EventID    string     `json:"event_id"`
	CID        item.ID    `json:"cid"`
	Count      item.Count `json:"count"`
	Filename   string     `json:"filename"`
	From       string     `json:"from"` // where bytes move now, else as the event was posted
	To         string     `json:"to"`
	WorkerID   string     `json:"worker_id"` // who has it, or had it last
	Deliveries int64      `json:"deliveries"`
	IdleMS     int64      `json:"idle_ms"` // since anybody was last heard of
	Moving     bool       `json:"moving"`  // else it waits: for a lock, a back-off, a release
	BytesDone  *int64     `json:"bytes_done"`
	BytesTotal *int64     `json:"bytes_total"`
	UpdatedAt  *string    `json:"updated_at"`
}

// unreachable are tiers that no living relocator reaches together, though entries wait for one.
type unreachable struct {
	Tiers  []string `json:"tiers"`
	SeenAt string   `json:"seen_at"`
}

// streamQuery reads after, an entry's id, and limit.
func (s *Server) streamQuery(c echo.Context) (after state.Ref, most int, err error) {
	q, err := query(c, "after", "limit")
	if err != nil {
		return state.Ref{}, 0, err
	}
	if q.Has("after") {
		if after, err = state.ParseRef(s.Reads.Keys(), q.Get("after")); err != nil {
			return state.Ref{}, 0, malformed("after: %s", detail(err))
		}
	}
	most, err = limit(q)
	return after, most, err
}

// refOrNull is a Ref as JSON shows it.
func (s *Server) refOrNull(r *state.Ref) *string {
	if r == nil {
		return nil
	}
	text := r.Text(s.Reads.Keys())
	return &text
}

func (s *Server) listRelocations(c echo.Context) error {
	after, most, err := s.streamQuery(c)
	if err != nil {
		return err
	}
	ctx := c.Request().Context()
	moves, next, err := s.Reads.Moves(ctx, after, most)
	if err != nil {
		return err
	}
	list := struct {
		Relocations []relocationAnswer `json:"relocations"`
		NextAfter   *string            `json:"next_after"` // null at the end
		Unsettled   int64              `json:"unsettled"`  // entries of all streams that are read or unread, and not settled
		Paused      bool               `json:"paused"`
		Unreachable []unreachable      `json:"unreachable"` // what waits for a relocator that reaches its tiers
	}{Relocations: []relocationAnswer{}, Unreachable: []unreachable{}}
	if list.Unsettled, err = s.Reads.Unsettled(ctx); err != nil {
		return err
	}
	if list.Paused, err = s.Reads.Paused(ctx); err != nil {
		return err
	}
	nobody, err := s.Reads.Unreachable(ctx)
	if err != nil {
		return err
	}
	for _, tiers := range slices.Sorted(maps.Keys(nobody)) {
		list.Unreachable = append(list.Unreachable, unreachable{strings.Split(tiers, ","), event.FormatTime(nobody[tiers])})
	}
	for _, m := range moves {
		a := relocationAnswer{EntryID: m.Entry.Text(s.Reads.Keys()), EventID: m.View.EventID, CID: m.View.ID, Count: m.View.Count,
			Filename: m.View.Filename, From: m.View.DBLevel, To: m.View.Target, WorkerID: m.Worker,
			Deliveries: m.Deliveries, IdleMS: m.Idle.Milliseconds()}
		if p := m.Progress; p != nil {
			at := event.FormatTime(p.UpdatedAt)
			a.Moving, a.From, a.To, a.WorkerID = true, p.From, p.To, p.WorkerID
			a.BytesDone, a.BytesTotal, a.UpdatedAt = &p.BytesDone, &p.BytesTotal, &at
		}
		list.Relocations = append(list.Relocations, a)
	}
	list.NextAfter = s.refOrNull(next)
	return c.JSON(http.StatusOK, list)
}

func (s *Server) pause(c echo.Context) error  { return s.setPaused(c, true) }
func (s *Server) resume(c echo.Context) error { return s.setPaused(c, false) }

func (s *Server) setPaused(c echo.Context, paused bool) error {
	if _, err := query(c); err != nil {
		return err
	}
	by := "api, asked from " + c.Request().RemoteAddr
	if err := s.Reads.SetPaused(c.Request().Context(), paused, by); err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]bool{"paused": paused})
}

type deadAnswer struct {
	ID           string            `json:"id"`
	Stage        string            `json:"stage"`
	Reason       string            `json:"reason"`
	Error        string            `json:"error"`
	Attempts     int64             `json:"attempts"`
	SourceStream string            `json:"source_stream"`
	SourceID     string            `json:"source_id"`
	FailedAt     string            `json:"failed_at"`
	Entry        map[string]string `json:"entry"`
}

func describeDead(id string, fields map[string]string) deadAnswer {
	// What cannot be read is shown as far as it can be: here is where somebody looks for it.
	f, entry, _ := event.ParseDead(fields)
	return deadAnswer{id, f.Stage, f.Reason, f.Error, f.Attempts, f.SourceStream, f.SourceID, fields["failed_at"], entry}
}

func (s *Server) listDead(c echo.Context) error {
	after, most, err := s.streamQuery(c)
	if err != nil {
		return err
	}
	keys := s.Reads.Keys()
	dead, next, err := s.Reads.DeadLetters(c.Request().Context(), after, most)
	if err != nil {
		return err
	}
	list := struct {
		Dead      []deadAnswer `json:"dead"`
		NextAfter *string      `json:"next_after"` // null at the end
	}{Dead: []deadAnswer{}, NextAfter: s.refOrNull(next)}
	for _, d := range dead {
		list.Dead = append(list.Dead, describeDead(d.Ref.Text(keys), d.Fields))
	}
	return c.JSON(http.StatusOK, list)
}

// deadRef is the entry that the path names, and the keys of its partition.
func (s *Server) deadRef(c echo.Context) (state.Ref, state.Keys, error) {
	if _, err := query(c); err != nil {
		return state.Ref{}, state.Keys{}, err
	}
	keys := s.Reads.Keys()
	r, err := state.ParseRef(keys, c.Param("id"))
	if err != nil {
		return state.Ref{}, state.Keys{}, err
	}
	return r, keys.In(r.Partition), nil
}

func noDead(id string) error {
	return fault.New(fault.NotFound, "", "", fmt.Errorf("there is no dead letter %s: it has been retried or dropped", id))
}

// retryDead gives an entry another life: a view event as a new event, another entry in its stream as it was, because
// there the event's id is what makes a repetition harmless.
func (s *Server) retryDead(c echo.Context) error {
	r, keys, err := s.deadRef(c)
	if err != nil {
		return err
	}
	ctx := c.Request().Context()
	id := c.Param("id")
	found, ok, err := s.Reads.GetDeadLetter(ctx, r)
	if err != nil {
		return err
	}
	if !ok {
		return noDead(id)
	}
	dead := describeDead(id, found.Fields)
	var eventID string
	var result state.RetryResult
	switch dead.SourceStream {
	case keys.Views():
		v, err := s.secondView(c, dead)
		if err != nil {
			return err
		}
		if s.Reads.Keys().Partition(v.ID) != r.Partition {
			return fault.New(fault.Unprocessable, "retry", id, errors.New("its content belongs to another partition: drop it"))
		}
		eventID = v.EventID
		result, err = s.Writes.RetryView(ctx, r, dead.SourceID, v)
		if err != nil {
			return err
		}
	case keys.Relocated(), keys.Committed():
		eventID = dead.Entry["event_id"]
		if result, err = s.Writes.Retry(ctx, r, dead.SourceStream, event.Ordered(dead.Entry)); err != nil {
			return err
		}
	default:
		return fault.New(fault.Unprocessable, "retry", id, fmt.Errorf("its source_stream %q is none of ours", dead.SourceStream))
	}
	switch {
	case result.Gone:
		return noDead(id)
	case result.Newer:
		return fault.New(fault.Conflict, "retry", id, errors.New(
			"a newer count of this content has been posted since: it goes by that one; drop this entry"))
	}
	return c.JSON(http.StatusAccepted, map[string]string{"event_id": eventID, "entry_id": result.EntryID})
}

// secondView is a view event that failed, as a new one of today.
func (s *Server) secondView(c echo.Context, dead deadAnswer) (event.View, error) {
	old, err := event.ParseView(dead.Entry)
	if err != nil {
		return event.View{}, &fault.Error{Kind: fault.Unprocessable, Op: "retry", Subject: dead.ID, Err: err,
			Hint: "it will never be readable: drop it"}
	}
	found, err := s.Lookup.Fresh(c.Request().Context(), old.ID)
	if fault.Is(err, fault.Unknown) {
		return event.View{}, &fault.Error{Kind: fault.Unprocessable, Op: "retry", Subject: dead.ID, Err: err,
			Hint: "register the content first, or drop this entry"}
	}
	if err != nil {
		return event.View{}, err
	}
	return reevaluate.NewView(found.Row, found.Policy, old.Count), nil
}

func (s *Server) dropDead(c echo.Context) error {
	r, _, err := s.deadRef(c)
	if err != nil {
		return err
	}
	ok, err := s.Reads.DropDeadLetter(c.Request().Context(), r)
	if err != nil {
		return err
	}
	if !ok {
		return noDead(c.Param("id"))
	}
	return c.NoContent(http.StatusNoContent)
}
