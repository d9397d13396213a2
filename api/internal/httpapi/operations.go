package httpapi

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/api/internal/reevaluate"
	"github.com/tierflow/tierflow/api/internal/status"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/state"
)

// streamQuery reads the parameters after, the id of an entry, and limit.
func (s *Server) streamQuery(c echo.Context) (after state.Ref, count int, err error) {
	q, err := query(c, "after", "limit")
	if err != nil {
		return state.Ref{}, 0, err
	}
	if q.Has("after") {
		if after, err = state.ParseRef(s.Reads.Keys(), q.Get("after")); err != nil {
			return state.Ref{}, 0, malformed("after: %s", detail(err))
		}
	}
	count, err = pageLimit(q)
	return after, count, err
}

// refOrNull is a Ref as JSON shows it.
func (s *Server) refOrNull(r *state.Ref) *string {
	if r == nil {
		return nil
	}
	text := r.Text(s.Reads.Keys())
	return &text
}

func (s *Server) showStatus(c echo.Context) error {
	if _, err := query(c); err != nil {
		return err
	}
	answer, err := s.status.Read(c.Request().Context())
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, answer)
}

func (s *Server) listRelocations(c echo.Context) error {
	after, count, err := s.streamQuery(c)
	if err != nil {
		return err
	}
	ctx := c.Request().Context()
	moves, next, err := s.Reads.Moves(ctx, after, count)
	if err != nil {
		return err
	}
	list := client.Relocations{Relocations: []client.Relocation{}, NextAfter: s.refOrNull(next)}
	if list.Unsettled, err = s.Reads.Unsettled(ctx); err != nil {
		return err
	}
	if list.Paused, err = s.Reads.Paused(ctx); err != nil {
		return err
	}
	if list.Unreachable, err = status.Unreachable(ctx, s.Reads); err != nil {
		return err
	}
	for _, m := range moves {
		a := client.Relocation{EntryID: m.Entry.Text(s.Reads.Keys()), EventID: m.View.EventID, CID: m.View.ID, Count: m.View.Count,
			Filename: m.View.Filename, From: m.View.DBLevel, To: m.View.Target, WorkerID: m.Worker,
			Deliveries: m.Deliveries, IdleMS: m.Idle.Milliseconds()}
		if p := m.Progress; p != nil {
			at := event.FormatTime(p.UpdatedAt)
			a.Moving, a.From, a.To, a.WorkerID = true, p.From, p.To, p.WorkerID
			a.BytesDone, a.BytesTotal, a.UpdatedAt = &p.BytesDone, &p.BytesTotal, &at
		}
		list.Relocations = append(list.Relocations, a)
	}
	return c.JSON(http.StatusOK, list)
}

// holdWithin bounds the wait for relocators that begin no more moves: they look at the pause twice a second, and a read that is under
// way takes a second more. holdAgain is the time between two looks.
const (
	holdWithin = 5 * time.Second
	holdAgain  = 50 * time.Millisecond
)

func (s *Server) pause(c echo.Context) error  { return s.setPaused(c, true) }
func (s *Server) resume(c echo.Context) error { return s.setPaused(c, false) }

func (s *Server) setPaused(c echo.Context, paused bool) error {
	if _, err := query(c); err != nil {
		return err
	}
	ctx := c.Request().Context()
	by := "api, on a request from " + c.Request().RemoteAddr + ", " + rand.Text()
	if err := s.Reads.SetPaused(ctx, paused, by); err != nil {
		return err
	}
	answer := client.Paused{Paused: paused, WaitingFor: []string{}}
	for end := time.Now().Add(holdWithin); paused; {
		var err error
		if answer.WaitingFor, err = s.Reads.NotHolding(ctx, by, s.Living); err != nil {
			return err
		}
		if len(answer.WaitingFor) == 0 || time.Now().After(end) {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(holdAgain):
		}
	}
	return c.JSON(http.StatusOK, answer)
}

func describeDead(id string, fields map[string]string) client.DeadLetter {
	// An entry that cannot be parsed is shown as far as possible: an operator looks for it here.
	f, entry, _ := event.ParseDead(fields)
	return client.DeadLetter{ID: id, Stage: f.Stage, Reason: f.Reason, Error: f.Error, Attempts: f.Attempts,
		SourceStream: f.SourceStream, SourceID: f.SourceID, FailedAt: fields["failed_at"],
		Times: max(f.Times, 1), FirstFailed: cmp.Or(fields["first_failed_at"], fields["failed_at"]), Entry: entry}
}

func (s *Server) listDead(c echo.Context) error {
	after, count, err := s.streamQuery(c)
	if err != nil {
		return err
	}
	keys := s.Reads.Keys()
	dead, next, err := s.Reads.DeadLetters(c.Request().Context(), after, count)
	if err != nil {
		return err
	}
	list := client.DeadLetters{Dead: []client.DeadLetter{}, NextAfter: s.refOrNull(next)}
	for _, d := range dead {
		list.Dead = append(list.Dead, describeDead(d.Ref.Text(keys), d.Fields))
	}
	return c.JSON(http.StatusOK, list)
}

// deadRef is the dead letter that the path names, and the keys of its partition.
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
	return fault.New(fault.NotFound, "", "", fmt.Errorf("there is no dead letter %s: it has been retried, dropped, or replaced by a newer one of its item", id))
}

// retryDead appends a dead letter again. A view event becomes a new event. An entry of another stream stays as it was,
// because there the event id is what makes a repetition harmless.
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
		v, rowEntry, err := s.retriedView(c, dead)
		if err != nil {
			return err
		}
		if s.Reads.Keys().Partition(v.ID) != r.Partition {
			return fault.New(fault.Unprocessable, "retry", id, errors.New("its item belongs to another partition: drop the entry"))
		}
		eventID = v.EventID
		result, err = s.Writes.RetryView(ctx, r, dead.SourceID, rowEntry, v)
		if err != nil {
			return err
		}
	case keys.Relocated(), keys.Committed():
		eventID = dead.Entry["event_id"]
		if result, err = s.Writes.Retry(ctx, r, dead.SourceStream, event.Ordered(dead.Entry)); err != nil {
			return err
		}
	default:
		return fault.New(fault.Unprocessable, "retry", id, fmt.Errorf("its source_stream %q does not exist", dead.SourceStream))
	}
	switch {
	case result.Gone:
		return noDead(id)
	case result.Newer:
		return fault.New(fault.Conflict, "retry", id, errors.New(
			"a newer count of this item was posted since then, and that one counts: drop this entry"))
	}
	return c.JSON(http.StatusAccepted, client.Retried{EventID: eventID, EntryID: result.EntryID})
}

// retriedView makes a new view event of one that failed, with the target that the policy gives it now. rowEntry is the
// CountEntry of the item's row.
func (s *Server) retriedView(c echo.Context, dead client.DeadLetter) (v event.View, rowEntry string, err error) {
	old, err := event.ParseView(dead.Entry)
	if err != nil {
		return event.View{}, "", &fault.Error{Kind: fault.Unprocessable, Op: "retry", Subject: dead.ID, Err: err,
			Hint: "no retry can read it: drop it"}
	}
	ctx := c.Request().Context()
	found, err := s.Lookup.Fresh(ctx, old.ID)
	var row catalog.Row
	if err == nil {
		row, err = s.Catalog.Row(ctx, old.ID) // the look-up does not read count_entry
	}
	if fault.Is(err, fault.Unknown) {
		return event.View{}, "", &fault.Error{Kind: fault.Unprocessable, Op: "retry", Subject: dead.ID, Err: err,
			Hint: "register the item first, or drop this entry"}
	}
	if err != nil {
		return event.View{}, "", err
	}
	return reevaluate.NewView(&row, found.Policy, old.Count), row.CountEntry, nil
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
