package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"
	"go.uber.org/zap"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/shared/fault"
)

// problems is the one place where a kind becomes a status. Every other kind is 500.
var problems = map[fault.Kind]struct {
	status int
	title  string
}{
	fault.Malformed:        {http.StatusBadRequest, "The request cannot be read"},
	fault.Unauthorized:     {http.StatusUnauthorized, "An API key is needed"},
	fault.Forbidden:        {http.StatusForbidden, "The caller may not do this"},
	fault.NotFound:         {http.StatusNotFound, "There is no such thing"},
	fault.Unknown:          {http.StatusNotFound, "There is no such item"},
	fault.MethodNotAllowed: {http.StatusMethodNotAllowed, "This path does not take this method"},
	fault.Conflict:         {http.StatusConflict, "Something else is in the way"},
	fault.TooLarge:         {http.StatusRequestEntityTooLarge, "The request is too large"},
	fault.UnsupportedMedia: {http.StatusUnsupportedMediaType, "This call does not take a body of this type"},
	fault.Unprocessable:    {http.StatusUnprocessableEntity, "State or policy forbid it"},
	fault.RateLimited:      {http.StatusTooManyRequests, "Too many requests failed"},
	fault.BacklogFull:      {http.StatusServiceUnavailable, "Too many view events wait"},
	fault.Unavailable:      {http.StatusServiceUnavailable, "A server that is needed cannot be reached"},
}

// malformed is the error for a request that cannot be read.
func malformed(format string, args ...any) error {
	return fault.New(fault.Malformed, "", "", fmt.Errorf(format, args...))
}

// detail is the text of an error without its kind.
func detail(err error) string {
	var f *fault.Error
	if !errors.As(err, &f) {
		return err.Error()
	}
	text := f.Error()
	if f.Op == "" && f.Err != nil {
		text = f.Err.Error()
		if f.Hint != "" {
			text += " (" + f.Hint + ")"
		}
	}
	return strings.ReplaceAll(text, "\n", "; ")
}

// problem answers with an error.
func (s *Server) problem(c echo.Context, err error) {
	if c.Response().Committed {
		return // half an answer is on its way: the caller sees that it breaks off
	}
	var b *batchError
	p := client.Problem{}
	if errors.As(err, &b) {
		p.Batch = &b.Batch
		err = b.error
	}
	var routing *echo.HTTPError
	if errors.As(err, &routing) {
		err = s.routing(c, routing)
	}
	kind := fault.KindOf(err)
	if known, ok := problems[kind]; ok {
		p.Type, p.Title, p.Status, p.Detail = client.ProblemType(kind), known.title, known.status, detail(err)
	} else {
		s.Log.Error("request failed", zap.String("path", c.Request().URL.Path), zap.Error(err))
		p.Type, p.Title, p.Status = "about:blank", "Internal Server Error", http.StatusInternalServerError
		p.Detail = "An unexpected error: see the log of the service."
	}
	h := c.Response().Header()
	if p.Status == http.StatusServiceUnavailable {
		h.Set("Retry-After", "1")
		if kind == fault.BacklogFull {
			h.Set("Retry-After", "5")
		} else {
			s.Ready.Look()
		}
	}
	body, err := json.Marshal(p)
	if err != nil {
		s.Log.Error("a problem cannot be written", zap.Error(err))
		return
	}
	h.Set("Content-Type", "application/problem+json")
	c.Response().WriteHeader(p.Status)
	_, _ = c.Response().Write(body) // an error means that the caller has gone
}

// routing turns an error of the router into one of ours.
func (s *Server) routing(c echo.Context, e *echo.HTTPError) error {
	switch e.Code {
	case http.StatusNotFound:
		return fault.New(fault.NotFound, "", "", fmt.Errorf("there is nothing at %s; /openapi.yaml lists what there is", c.Request().URL.Path))
	case http.StatusMethodNotAllowed:
		allow, _ := c.Get(echo.ContextKeyHeaderAllow).(string)
		return fault.New(fault.MethodNotAllowed, "", "", fmt.Errorf("%s takes %s, not %s", c.Request().URL.Path, allow, c.Request().Method))
	}
	return e
}
