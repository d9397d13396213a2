package httpapi

import (
	"net/http"

	"github.com/labstack/echo/v4"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/shared/event"
)

// listWaiting lists what waits at the workers, and why.
func (s *Server) listWaiting(c echo.Context) error {
	q, err := query(c, "cid", "limit")
	if err != nil {
		return err
	}
	limit, err := pageLimit(q)
	if err != nil {
		return err
	}
	cid := ""
	if q.Has("cid") {
		id, err := parseID(field{name: "cid", value: []byte(q.Get("cid"))})
		if err != nil {
			return err
		}
		cid = id.String()
	}
	waiting, counts, err := s.Reads.Waiting(c.Request().Context(), cid, limit)
	if err != nil {
		return err
	}
	list := client.Waiting{Waiting: []client.WaitingEntry{}, ByReason: counts}
	for _, n := range counts {
		list.Total += n
	}
	for _, w := range waiting {
		one := client.WaitingEntry{Stream: w.Stream, EntryID: w.Entry.Text(s.Reads.Keys()), CID: w.CID, WorkerID: w.Worker,
			Reason: w.Reason, Error: w.Error, Since: event.FormatTime(w.Since), Attempts: w.Attempts}
		if !w.Next.IsZero() {
			next := event.FormatTime(w.Next)
			one.NextTry = &next
		}
		list.Waiting = append(list.Waiting, one)
	}
	return c.JSON(http.StatusOK, list)
}
