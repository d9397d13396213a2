package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/api/internal/registry"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
)

// describe is an item as the api shows it. st may be nil.
func describe(row catalog.Row, p policy.Policy, st *state.State) client.Item {
	a := client.Item{
		CID: row.ID, Level: row.Level, Filename: row.Filename, Generation: row.Generation, ViewCount: row.ViewCount,
		SizeBytes: row.SizeBytes, Digest: row.Digest, PinnedLevel: orNull(row.Pinned),
		GenerateTime: event.FormatTime(row.Generated), UpdateTime: event.FormatTime(row.Updated),
	}
	if !row.PinEnds.IsZero() {
		a.PinnedUntil = orNull(event.FormatTime(row.PinEnds))
	}
	if l, ok := p.Level(row.Level); ok {
		a.Location = &client.Location{Level: l.Name, Path: l.Path + "/" + row.Filename, Generation: row.Generation}
	}
	if st != nil {
		a.State = &client.State{Count: st.Count, Target: st.Target, DBLevel: st.DBLevel, WorkerID: orNull(st.WorkerID),
			Status: string(st.Status), EventID: st.EventID, EntryID: st.EntryID, UpdatedAt: event.FormatTime(st.UpdatedAt)}
	}
	return a
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func (s *Server) listItems(c echo.Context) error {
	q, after, count, err := page(c, "after", "level", "filename")
	if err != nil {
		return err
	}
	ctx := c.Request().Context()
	if err := s.checkLevel(ctx, q.Get("level")); err != nil {
		return err
	}
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
	} else if rows, err = s.Catalog.List(ctx, q.Get("level"), item.ID(after), count); err != nil {
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
	list := client.Items{Contents: []client.Item{}}
	for i, r := range rows {
		list.Contents = append(list.Contents, describe(r, p, states[i]))
	}
	if len(rows) == count {
		list.NextAfter = &rows[count-1].ID
	}
	return c.JSON(http.StatusOK, list)
}

// checkLevel refuses a filter by a level that does not exist: an empty list would say that the level has no items.
func (s *Server) checkLevel(ctx context.Context, name string) error {
	if name == "" {
		return nil
	}
	p, err := s.Catalog.Policy(ctx)
	if err != nil {
		return err
	}
	if _, ok := p.Level(name); ok {
		return nil
	}
	known := make([]string, len(p.Levels()))
	for i, l := range p.Levels() {
		known[i] = l.Name
	}
	return fault.New(fault.Unprocessable, "list items of level", name, fmt.Errorf("there is no such level; the levels are %s", strings.Join(known, ", ")))
}

func (s *Server) showItem(c echo.Context) error {
	id, err := s.onlyID(c)
	if err != nil {
		return err
	}
	return s.answerItem(c, http.StatusOK, id)
}

// onlyID reads the cid in the path of a call that has no query.
func (s *Server) onlyID(c echo.Context) (item.ID, error) {
	if _, err := query(c); err != nil {
		return 0, err
	}
	return pathID(c)
}

// answerItem answers with an item as MySQL and Redis have it now.
func (s *Server) answerItem(c echo.Context, status int, id item.ID) error {
	states, err := s.Reads.GetMany(c.Request().Context(), []item.ID{id})
	if err != nil {
		return err
	}
	return s.answerRow(c, status, id, states[0])
}

func (s *Server) answerRow(c echo.Context, status int, id item.ID, st *state.State) error {
	ctx := c.Request().Context()
	row, err := s.Catalog.Row(ctx, id)
	if err != nil {
		return err
	}
	p, err := s.Lookup.Policy(ctx)
	if err != nil {
		return err
	}
	answer := describe(row, p, st)
	answer.Decision = decide(row, p, st, time.Now())
	return c.JSON(status, answer)
}

func (s *Server) createItem(c echo.Context) error {
	if _, err := query(c); err != nil {
		return err
	}
	var in struct {
		client.NewItem
		CID flexID `json:"cid"`
	}
	if err := decode(c.Request(), &in, "cid", "filename"); err != nil {
		return err
	}
	if in.Level != nil && *in.Level == "" {
		return malformed("level is empty: leave it out for the level that starts at 0")
	}
	id, err := parseID(field{name: "cid", value: []byte(in.CID)})
	if err != nil {
		return err
	}
	level := ""
	if in.Level != nil {
		level = *in.Level
	}
	if err := s.Registry.Register(c.Request().Context(), id, in.Filename, level); err != nil {
		return err
	}
	c.Response().Header().Set("Location", "/v1/contents/"+id.String())
	var st *state.State // an earlier item with this cid may have left one
	if states, err := s.Reads.GetMany(c.Request().Context(), []item.ID{id}); err == nil {
		st = states[0]
	} // an error means that Redis is away: the item is registered all the same
	return s.answerRow(c, http.StatusCreated, id, st)
}

// deleteItem forgets an item. Its file stays.
func (s *Server) deleteItem(c echo.Context) error {
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

func (s *Server) locateItem(c echo.Context) error {
	id, err := s.onlyID(c)
	if err != nil {
		return err
	}
	l, err := s.Registry.Locate(c.Request().Context(), id)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, client.Location{Level: l.Level, Path: l.Path, Generation: l.Generation})
}

// serveFile tells a web server in front of the api which file to send. It ignores the query, which players use for tokens and
// for parameters of their own, such as _HLS_msn.
func (s *Server) serveFile(c echo.Context) error {
	id, err := pathID(c)
	if err != nil {
		return err
	}
	// The parameter of the router may be escaped. The path of the request is not.
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
		return fault.New(fault.Unprocessable, "serve file of item", id.String(), err)
	}
	c.Response().Header().Set("X-Accel-Redirect", redirect(l, sub))
	return c.NoContent(http.StatusOK)
}

// checkSubPath refuses every path that could lead out of the folder of an item.
func checkSubPath(sub string) error {
	for part := range strings.SplitSeq(sub, "/") {
		switch {
		case part == "":
			return malformed("the path inside the item has an empty part")
		case part == "." || part == "..":
			return malformed("the path inside the item has the part %q", part)
		case strings.ContainsRune(part, 0):
			return malformed("the path inside the item has a NUL byte")
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

// listHistory lists the moves of an item, also of one that was forgotten.
func (s *Server) listHistory(c echo.Context) error {
	_, before, count, err := page(c, "before")
	if err != nil {
		return err
	}
	id, err := pathID(c)
	if err != nil {
		return err
	}
	ctx := c.Request().Context()
	hs, err := s.Catalog.History(ctx, id, before, count)
	if err != nil {
		return err
	}
	if len(hs) == 0 {
		if _, err := s.Catalog.Row(ctx, id); err != nil {
			return err
		}
	}
	list := client.History{History: []client.Move{}}
	for _, h := range hs {
		list.History = append(list.History, client.Move{ID: h.ID, EventID: h.EventID, CID: h.CID, OldLevel: h.OldLevel,
			NewLevel: h.NewLevel, PrevUpdateTime: event.FormatTime(h.PrevUpdateTime), UpdateTime: event.FormatTime(h.UpdateTime),
			ViewCount: h.ViewCount, Bytes: h.Bytes, DurationUS: int64(h.Duration / time.Microsecond), WorkerID: h.WorkerID, Reason: h.Reason})
	}
	if len(hs) == count {
		list.NextBefore = &hs[count-1].ID
	}
	return c.JSON(http.StatusOK, list)
}

func (s *Server) putPin(c echo.Context) error {
	id, err := s.onlyID(c)
	if err != nil {
		return err
	}
	var in client.Pin
	if err := decode(c.Request(), &in, "level"); err != nil {
		return err
	}
	if in.Level == "" {
		return malformed("level is missing")
	}
	pin := policy.Pin{Level: in.Level}
	if in.Until != nil {
		if pin.Until, err = time.Parse(time.RFC3339, *in.Until); err != nil {
			return malformed("until is no time such as 2026-12-31T12:00:00Z")
		}
		if !pin.HoldsAt(time.Now()) {
			return fault.New(fault.Unprocessable, "pin item", id.String(), fmt.Errorf("the pin would have ended at %s", *in.Until))
		}
		pin.Until = pin.Until.UTC().Truncate(time.Microsecond)
	}
	return s.pin(c, id, pin)
}

func (s *Server) deletePin(c echo.Context) error {
	id, err := s.onlyID(c)
	if err != nil {
		return err
	}
	return s.pin(c, id, policy.Pin{})
}

// pin changes the pin and posts the last count again, so that a relocator re-evaluates the item. Where this fails, the item's review
// does it later.
func (s *Server) pin(c echo.Context, id item.ID, pin policy.Pin) error {
	ctx := c.Request().Context()
	if err := s.Registry.Pin(ctx, id, pin); err != nil {
		return err
	}
	s.Lookup.Invalidate(id)
	row, err := s.Catalog.Row(ctx, id)
	if err != nil {
		return err
	}
	p, err := s.Catalog.Policy(ctx)
	if err != nil {
		return err
	}
	if _, err := s.Reevaluate.PostAgain(ctx, row, p); err != nil {
		return &fault.Error{Kind: fault.Unavailable, Op: "post the last count of item", Subject: id.String(), Err: err,
			Hint: "the pin is stored and takes effect within some minutes once Redis is back; repeat the call to have it at once"}
	}
	return s.answerItem(c, http.StatusOK, id)
}
