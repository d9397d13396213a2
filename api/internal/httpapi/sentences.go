package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/tierflow/tierflow/api/internal/reevaluate"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
)

// This file has the two calls of the original system. Every byte of their answers is fixed.

const (
	// commitWait is how long update_sentence waits for a commit.
	commitWait = 2 * time.Second
	// commitPoll is how often update_sentence reads MySQL meanwhile, in case the notification was lost.
	commitPoll = 100 * time.Millisecond

	notYet = "check your status again"
)

var (
	jsonHeader = []string{"application/json"}
	textHeader = []string{"text/plain; charset=utf-8"}
)

// postSentence takes a view event and answers with the state of the item. It must be fast: it parses the body by hand, uses
// no reflection, and needs no query for a row that the cache has.
func (s *Server) postSentence(c echo.Context) error {
	r := c.Request()
	buf := s.buffers.Get().(*[]byte)
	defer s.buffers.Put(buf)
	kind, err := mediaType(r, formType, jsonType)
	if err != nil {
		return err
	}
	b, err := readBody(r, (*buf)[:0])
	*buf = b
	if err != nil {
		return err
	}
	id, count, err := parseView(kind, b)
	if err != nil {
		return err
	}
	found, err := s.Lookup.Find(r.Context(), id)
	if err != nil {
		return err
	}
	v := reevaluate.NewView(found.Row, found.Policy, count)
	if err := s.Ingest.Append(v); err != nil {
		return err
	}
	*buf = state.NewState(v).AppendAnswer(b[:0])
	return answer(c, jsonHeader, *buf)
}

// parseView reads one view event from a form or a JSON object.
func parseView(kind string, b []byte) (item.ID, item.Count, error) {
	fields := [...]field{{name: "cid"}, {name: "count"}}
	if err := parseBody(kind, b, fields[:]); err != nil {
		return 0, 0, err
	}
	id, err := parseID(fields[0])
	if err != nil {
		return 0, 0, err
	}
	count, err := parseCount(fields[1])
	return id, count, err
}

func answer(c echo.Context, contentType []string, b []byte) error {
	w := c.Response()
	w.Header()["Content-Type"] = contentType
	w.WriteHeader(http.StatusOK)
	_, err := w.Write(b)
	return err // the caller has gone; what was done stays done
}

// updateSentence answers with the cid when the item is in its place: its newest view event is done, and MySQL names its
// target as the level. Where the state has expired, or Redis was wiped, the last count of the row gives the target.
func (s *Server) updateSentence(c echo.Context) error {
	r := c.Request()
	kind, err := mediaType(r, formType, jsonType)
	if err != nil {
		return err
	}
	b, err := readBody(r, nil)
	if err != nil {
		return err
	}
	fields := [...]field{{name: "cid"}}
	if err := parseBody(kind, b, fields[:]); err != nil {
		return err
	}
	id, err := parseID(fields[0])
	if err != nil {
		return err
	}
	// Subscribe before reading, so that no commit falls in between.
	committed, stop := s.Commits.Next(id)
	defer stop()
	deadline := time.NewTimer(commitWait)
	defer deadline.Stop()
	poll := time.NewTicker(commitPoll)
	defer poll.Stop()
	for {
		found, err := s.Lookup.Fresh(r.Context(), id)
		if err != nil {
			return err
		}
		st, ok, err := s.Reads.Get(r.Context(), id)
		if err != nil {
			return err
		}
		if !ok {
			if ok, err = s.onTarget(r.Context(), id, found.Policy); err != nil {
				return err
			}
			if !ok {
				return answer(c, textHeader, []byte(notYet))
			}
			return answer(c, textHeader, []byte(id.String()))
		}
		switch {
		case st.Status != state.Done:
			return answer(c, textHeader, []byte(notYet))
		case st.Target == found.Row.Level:
			return answer(c, textHeader, []byte(id.String()))
		}
		select {
		case <-committed:
		case <-poll.C:
		case <-deadline.C:
			return answer(c, textHeader, []byte(notYet))
		case <-r.Context().Done():
			return nil
		}
	}
}

// onTarget tells whether the row of an item that has no state names its target. A state that calls for a move does not
// expire, so nothing is under way and the row's last count decides. An item that was never counted nor moved has no
// target yet.
func (s *Server) onTarget(ctx context.Context, id item.ID, p policy.Policy) (bool, error) {
	row, err := s.Catalog.Row(ctx, id)
	if err != nil || !row.CountedOrMoved() {
		return false, err
	}
	return p.Decide(row.Item(row.ViewCount), time.Now()).Target == row.Level, nil
}
