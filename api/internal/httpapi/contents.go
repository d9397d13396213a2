package httpapi

import (
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/tierflow/tierflow/api/internal/registry"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
)

// contentAnswer is a content: its row, its newest event, its place.
type contentAnswer struct {
	CID          item.ID         `json:"cid"`
	Level        string          `json:"level"`
	Filename     string          `json:"filename"`
	Generation   int64           `json:"generation"`
	ViewCount    item.Count      `json:"view_count"`
	SizeBytes    int64           `json:"size_bytes"`
	Digest       string          `json:"digest"`
	PinnedLevel  *string         `json:"pinned_level"`
	GenerateTime string          `json:"generate_time"`
	UpdateTime   string          `json:"update_time"`
	State        *stateAnswer    `json:"state"` // null where nothing is known in Redis
	Location     *locationAnswer `json:"location"`
}

type stateAnswer struct {
	Count     item.Count   `json:"count"`
	Target    string       `json:"target"`
	DBLevel   string       `json:"db_level"`
	WorkerID  *string      `json:"worker_id"`
	Status    state.Status `json:"status"`
	EventID   string       `json:"event_id"`
	EntryID   string       `json:"entry_id"`
	UpdatedAt string       `json:"updated_at"`
}

type locationAnswer struct {
	Level      string `json:"level"`
	Path       string `json:"path"`
	Generation int64  `json:"generation"`
}

func describe(row catalog.Row, p policy.Policy, st *state.State) contentAnswer {
	a := contentAnswer{
		CID: row.ID, Level: row.Level, Filename: row.Filename, Generation: row.Generation, ViewCount: row.ViewCount,
		SizeBytes: row.SizeBytes, Digest: row.Digest, PinnedLevel: orNull(row.Pinned),
		GenerateTime: event.FormatTime(row.Generated), UpdateTime: event.FormatTime(row.Updated),
	}
	if l, ok := p.Level(row.Level); ok {
		a.Location = &locationAnswer{l.Name, l.Path + "/" + row.Filename, row.Generation}
	}
	if st != nil {
		a.State = &stateAnswer{st.Count, st.Target, st.DBLevel, orNull(st.WorkerID), st.Status, st.EventID, st.EntryID,
			event.FormatTime(st.UpdatedAt)}
	}
	return a
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func (s *Server) listContents(c echo.Context) error {
	q, err := query(c, "level", "filename", "after", "limit")
	if err != nil {
		return err
	}
	after, err := number(q, "after")
	if err != nil {
		return err
	}
	most, err := limit(q)
	if err != nil {
		return err
	}
	ctx := c.Request().Context()
	var rows []catalog.Row
	if q.Has("filename") {
		row, err := s.Catalog.ByFilename(ctx, q.Get("filename"))
		level := q.Get("level")
		switch {
		case err != nil && !fault.Is(err, fault.Unknown):
			return err
		case err == nil && (level == "" || level == row.Level) && int64(row.ID) > after:
			rows = append(rows, row)
		}
	} else if rows, err = s.Catalog.List(ctx, q.Get("level"), item.ID(after), most); err != nil {
		return err
	}
	p, err := s.Lookup.Policy(ctx)
	if err != nil {
		return err
	}
	ids := make([]item.ID, len(rows))
	for i, r := range rows {
		ids[i] = r.ID
	}
	states, err := s.Reads.GetMany(ctx, ids)
	if err != nil {
		return err
	}
	list := struct {
		Contents  []contentAnswer `json:"contents"`
		NextAfter *item.ID        `json:"next_after"` // null at the end
	}{Contents: []contentAnswer{}}
	for i, r := range rows {
		list.Contents = append(list.Contents, describe(r, p, states[i]))
	}
	if len(rows) == most {
		list.NextAfter = &rows[most-1].ID
	}
	return c.JSON(http.StatusOK, list)
}

func (s *Server) showContent(c echo.Context) error {
	id, err := s.onlyID(c)
	if err != nil {
		return err
	}
	return s.answerContent(c, http.StatusOK, id)
}

// onlyID is the cid of a path, for a call without a query.
func (s *Server) onlyID(c echo.Context) (item.ID, error) {
	if _, err := query(c); err != nil {
		return 0, err
	}
	return pathID(c)
}

// answerContent answers with a content as MySQL and Redis have it now.
func (s *Server) answerContent(c echo.Context, status int, id item.ID) error {
	states, err := s.Reads.GetMany(c.Request().Context(), []item.ID{id})
	if err != nil {
		return err
	}
	return s.answerRow(c, status, id, states[0])
}

func (s *Server) answerRow(c echo.Context, status int, id item.ID, st *state.State) error {
	ctx := c.Request().Context()
	row, err := s.Catalog.Content(ctx, id)
	if err != nil {
		return err
	}
	p, err := s.Lookup.Policy(ctx)
	if err != nil {
		return err
	}
	return c.JSON(status, describe(row, p, st))
}

func (s *Server) createContent(c echo.Context) error {
	if _, err := query(c); err != nil {
		return err
	}
	var in struct {
		CID      *flexID `json:"cid"`
		Filename *string `json:"filename"`
		Level    *string `json:"level"`
	}
	if err := decode(c.Request(), &in); err != nil {
		return err
	}
	switch {
	case in.CID == nil:
		return malformed("cid is missing")
	case in.Filename == nil:
		return malformed("filename is missing")
	case in.Level != nil && *in.Level == "":
		return malformed("level is empty: leave it out for the level that starts at 0")
	}
	id, err := parseID(field{name: "cid", value: []byte(*in.CID)})
	if err != nil {
		return err
	}
	level := ""
	if in.Level != nil {
		level = *in.Level
	}
	if err := s.Registry.Register(c.Request().Context(), id, *in.Filename, level); err != nil {
		return err
	}
	c.Response().Header().Set("Location", "/v1/contents/"+id.String())
	var st *state.State // one that an earlier content of this cid may have left
	if states, err := s.Reads.GetMany(c.Request().Context(), []item.ID{id}); err == nil {
		st = states[0]
	} // else Redis is away: the content is registered all the same
	return s.answerRow(c, http.StatusCreated, id, st)
}

// deleteContent forgets an item. Its file stays.
func (s *Server) deleteContent(c echo.Context) error {
	id, err := s.onlyID(c)
	if err != nil {
		return err
	}
	if err := s.Registry.Forget(c.Request().Context(), id); err != nil {
		return err
	}
	s.Lookup.Invalidate(id)
	return c.NoContent(http.StatusNoContent)
}

func (s *Server) locateContent(c echo.Context) error {
	id, err := s.onlyID(c)
	if err != nil {
		return err
	}
	l, err := s.Registry.Locate(c.Request().Context(), id)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, locationAnswer{l.Level, l.Path, l.Generation})
}

// handOver tells a web server in front of us which file to send.
func (s *Server) handOver(c echo.Context) error {
	id, err := s.onlyID(c)
	if err != nil {
		return err
	}
	// The router's parameter may be escaped; the path of the request is not.
	_, sub, inside := strings.Cut(strings.TrimPrefix(c.Request().URL.Path, "/v1/contents/"+c.Param("cid")), "/file/")
	if inside {
		if err := checkSubPath(sub); err != nil {
			return err
		}
		sub = "/" + sub
	}
	l, err := s.Registry.Locate(c.Request().Context(), id)
	if err != nil {
		return err
	}
	if err := item.CheckFilename(l.Filename); err != nil {
		return fault.New(fault.Unprocessable, "hand over content", id.String(), err)
	}
	c.Response().Header().Set("X-Accel-Redirect", redirect(l, sub))
	return c.NoContent(http.StatusOK)
}

// checkSubPath lets nothing through that could lead out of a content's folder.
func checkSubPath(sub string) error {
	for part := range strings.SplitSeq(sub, "/") {
		switch {
		case part == "":
			return malformed("the path inside the content has an empty part")
		case part == "." || part == "..":
			return malformed("the path inside the content has the part %q", part)
		case strings.ContainsRune(part, 0):
			return malformed("the path inside the content has a NUL byte")
		}
	}
	return nil
}

func redirect(l registry.Location, sub string) string {
	parts := strings.Split("tiers/"+l.Level+"/"+l.Filename+sub, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return "/" + strings.Join(parts, "/")
}

type historyAnswer struct {
	ID             int64      `json:"id"`
	EventID        string     `json:"event_id"`
	CID            item.ID    `json:"cid"`
	OldLevel       string     `json:"old_level"`
	NewLevel       string     `json:"new_level"`
	PrevUpdateTime string     `json:"prev_update_time"`
	UpdateTime     string     `json:"update_time"`
	ViewCount      item.Count `json:"view_count"`
	Bytes          int64      `json:"bytes"`
	DurationUS     int64      `json:"duration_us"`
	WorkerID       string     `json:"worker_id"`
}

// listHistory shows what became of a content, also of one that has been forgotten.
func (s *Server) listHistory(c echo.Context) error {
	q, err := query(c, "limit", "before")
	if err != nil {
		return err
	}
	id, err := pathID(c)
	if err != nil {
		return err
	}
	before, err := number(q, "before")
	if err != nil {
		return err
	}
	most, err := limit(q)
	if err != nil {
		return err
	}
	ctx := c.Request().Context()
	hs, err := s.Catalog.History(ctx, id, before, most)
	if err != nil {
		return err
	}
	if len(hs) == 0 {
		if _, err := s.Catalog.Content(ctx, id); err != nil {
			return err
		}
	}
	list := struct {
		History    []historyAnswer `json:"history"`
		NextBefore *int64          `json:"next_before"` // null at the end
	}{History: []historyAnswer{}}
	for _, h := range hs {
		list.History = append(list.History, historyAnswer{h.ID, h.EventID, h.CID, h.OldLevel, h.NewLevel,
			event.FormatTime(h.PrevUpdateTime), event.FormatTime(h.UpdateTime), h.ViewCount, h.Bytes,
			int64(h.Duration / time.Microsecond), h.WorkerID})
	}
	if len(hs) == most {
		list.NextBefore = &hs[most-1].ID
	}
	return c.JSON(http.StatusOK, list)
}

func (s *Server) putPin(c echo.Context) error {
	id, err := s.onlyID(c)
	if err != nil {
		return err
	}
	var in struct {
		Level *string `json:"level"`
	}
	if err := decode(c.Request(), &in); err != nil {
		return err
	}
	if in.Level == nil || *in.Level == "" {
		return malformed("level is missing")
	}
	return s.pin(c, id, *in.Level)
}

func (s *Server) deletePin(c echo.Context) error {
	id, err := s.onlyID(c)
	if err != nil {
		return err
	}
	return s.pin(c, id, "")
}

// pin changes the pin and posts the last count again, so that a relocator looks at the content.
func (s *Server) pin(c echo.Context, id item.ID, level string) error {
	ctx := c.Request().Context()
	if err := s.Registry.Pin(ctx, id, level); err != nil {
		return err
	}
	s.Lookup.Invalidate(id)
	row, err := s.Catalog.Content(ctx, id)
	if err != nil {
		return err
	}
	p, err := s.Catalog.Policy(ctx)
	if err != nil {
		return err
	}
	if _, err := s.Reevaluate.PostAgain(ctx, row, p); err != nil {
		return &fault.Error{Kind: fault.Unavailable, Op: "post the last count of content", Subject: id.String(), Err: err,
			Hint: "the pin is stored, but nobody has been told: repeat the call"}
	}
	return s.answerContent(c, http.StatusOK, id)
}
