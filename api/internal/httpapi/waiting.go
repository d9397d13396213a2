package httpapi

import (
	"net/http"

	"github.com/labstack/echo/v4"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/api/internal/status"
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
		list.Waiting = append(list.Waiting, status.DescribeWaiting(s.Reads.Keys(), w))
	}
	return c.JSON(http.StatusOK, list)
}
