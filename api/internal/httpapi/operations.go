package httpapi

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/labstack/echo/v4"
	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/api/internal/appraise"
	"github.com/tierflow/tierflow/api/internal/live"
	"github.com/tierflow/tierflow/shared/content"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/state"
)

type relocationAnswer struct {
	EntryID    string        `json:"entry_id"`
	EventID    string        `json:"event_id"`
	CID        content.ID    `json:"cid"`
	Count      content.Count `json:"count"`
	Filename   string        `json:"filename"`
	From       string        `json:"from"` // where bytes move now, else as the event was posted
	To         string        `json:"to"`
	WorkerID   string        `json:"worker_id"` // who has it, or had it last
	Deliveries int64         `json:"deliveries"`
	IdleMS     int64         `json:"idle_ms"` // since anybody was last heard of
	Moving     bool          `json:"moving"`  // else it waits: for a lock, a back-off, a release
	BytesDone  *int64        `json:"bytes_done"`
	BytesTotal *int64        `json:"bytes_total"`
	UpdatedAt  *string       `json:"updated_at"`
}

// streamQuery reads after, an entry's id, and limit.
func streamQuery(c echo.Context) (from string, most int, err error) {
	q, err := query(c, "after", "limit")
	if err != nil {
		return "", 0, err
	}
	most, err = limit(q)
	from = "-"
	if q.Has("after") {
		if !live.ValidID(q.Get("after")) {
			return "", 0, malformed("after must be the id of an entry, such as 1732318370000-0")
		}
		from = "(" + q.Get("after")
	}
	return from, most, err
}

func (s *Server) listRelocations(c echo.Context) error {
	from, most, err := streamQuery(c)
	if err != nil {
		return err
	}
	ctx := c.Request().Context()
	moves, next, err := live.InFlight(ctx, s.Redis, s.Reads, from, int64(most))
	if err != nil {
		return err
	}
	list := struct {
		Relocations []relocationAnswer `json:"relocations"`
		NextAfter   *string            `json:"next_after"` // null at the end
		Unsettled   int64              `json:"unsettled"`  // view events that are read or unread, and not settled
		Paused      bool               `json:"paused"`
	}{Relocations: []relocationAnswer{}}
	if list.Unsettled, err = s.Reads.Unsettled(ctx); err != nil {
		return err
	}
	if list.Paused, err = s.Reads.Paused(ctx); err != nil {
		return err
	}
	for _, m := range moves {
		a := relocationAnswer{EntryID: m.EntryID, EventID: m.View.EventID, CID: m.View.ID, Count: m.View.Count,
			Filename: m.View.Filename, From: m.View.DBLevel, To: m.View.Target, WorkerID: m.Worker,
			Deliveries: m.Deliveries, IdleMS: m.Idle.Milliseconds()}
		if p := m.Progress; p != nil {
			at := event.FormatTime(p.UpdatedAt)
			a.Moving, a.From, a.To, a.WorkerID = true, p.From, p.To, p.WorkerID
			a.BytesDone, a.BytesTotal, a.UpdatedAt = &p.BytesDone, &p.BytesTotal, &at
		}
		list.Relocations = append(list.Relocations, a)
	}
	list.NextAfter = orNull(next)
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

func describeDead(m redis.XMessage) deadAnswer {
	fields := make(map[string]string, len(m.Values))
	for k, v := range m.Values {
		fields[k], _ = v.(string)
	}
	// What cannot be read is shown as far as it can be: here is where somebody looks for it.
	f, entry, _ := event.ParseDead(fields)
	return deadAnswer{m.ID, f.Stage, f.Reason, f.Error, f.Attempts, f.SourceStream, f.SourceID, fields["failed_at"], entry}
}

func (s *Server) listDead(c echo.Context) error {
	from, most, err := streamQuery(c)
	if err != nil {
		return err
	}
	dead := s.Reads.Keys().Dead()
	ms, err := s.Redis.XRangeN(c.Request().Context(), dead, from, "+", int64(most)).Result()
	if err != nil {
		return fault.New(fault.Unavailable, "read", dead, err)
	}
	list := struct {
		Dead      []deadAnswer `json:"dead"`
		NextAfter *string      `json:"next_after"` // null at the end
	}{Dead: []deadAnswer{}}
	for _, m := range ms {
		list.Dead = append(list.Dead, describeDead(m))
	}
	if len(ms) == most {
		list.NextAfter = &ms[most-1].ID
	}
	return c.JSON(http.StatusOK, list)
}

// deadID is the id in the path.
func deadID(c echo.Context) (string, error) {
	if _, err := query(c); err != nil {
		return "", err
	}
	id := c.Param("id")
	if !live.ValidID(id) {
		return "", malformed("%q is not the id of an entry, such as 1732318370000-0", id)
	}
	return id, nil
}

func noDead(id string) error {
	return fault.New(fault.Unknown, "", "", fmt.Errorf("there is no dead entry %s: it has been retried or dropped", id))
}

// retryDead gives an entry another life: a view event as a new event, another entry in its stream as it was, because
// there the event's id is what makes a repetition harmless.
func (s *Server) retryDead(c echo.Context) error {
	id, err := deadID(c)
	if err != nil {
		return err
	}
	ctx := c.Request().Context()
	keys := s.Reads.Keys()
	ms, err := s.Redis.XRange(ctx, keys.Dead(), id, id).Result()
	if err != nil {
		return fault.New(fault.Unavailable, "read", keys.Dead(), err)
	}
	if len(ms) == 0 {
		return noDead(id)
	}
	dead := describeDead(ms[0])
	var eventID string
	var result state.RetryResult
	switch dead.SourceStream {
	case keys.Views():
		v, err := s.secondView(c, dead)
		if err != nil {
			return err
		}
		eventID = v.EventID
		result, err = s.Writes.RetryView(ctx, id, dead.SourceID, v)
		if err != nil {
			return err
		}
	case keys.Relocated(), keys.Committed():
		eventID = dead.Entry["event_id"]
		if result, err = s.Writes.Retry(ctx, id, dead.SourceStream, event.Ordered(dead.Entry)); err != nil {
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
	return appraise.NewView(found.Row, found.Policy, old.Count), nil
}

func (s *Server) dropDead(c echo.Context) error {
	id, err := deadID(c)
	if err != nil {
		return err
	}
	dead := s.Reads.Keys().Dead()
	n, err := s.Redis.XDel(c.Request().Context(), dead, id).Result()
	if err != nil {
		return fault.New(fault.Unavailable, "drop", id, err)
	}
	if n == 0 {
		return noDead(id)
	}
	return c.NoContent(http.StatusNoContent)
}
