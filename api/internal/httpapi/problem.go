package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"
	"go.uber.org/zap"

	"github.com/tierflow/tierflow/api/internal/apikeys"
	"github.com/tierflow/tierflow/api/internal/ingest"
	"github.com/tierflow/tierflow/shared/fault"
)

// Kinds that only HTTP knows.
const (
	unsupportedMedia fault.Kind = "unsupported-media-type"
	methodNotAllowed fault.Kind = "method-not-allowed"
	tooLarge         fault.Kind = "too-large"
)

// problems is the one place where a kind becomes a status. What is not here is 500.
var problems = map[fault.Kind]struct {
	status int
	title  string
}{
	fault.Malformed:      {http.StatusBadRequest, "The request cannot be read"},
	apikeys.Unauthorized: {http.StatusUnauthorized, "An API key is needed"},
	apikeys.Forbidden:    {http.StatusForbidden, "Who asks may not do this"},
	fault.Unknown:        {http.StatusNotFound, "There is no such thing"},
	methodNotAllowed:     {http.StatusMethodNotAllowed, "This path does not take this method"},
	fault.Conflict:       {http.StatusConflict, "Something else is in the way"},
	tooLarge:             {http.StatusRequestEntityTooLarge, "The request is too large"},
	unsupportedMedia:     {http.StatusUnsupportedMediaType, "The body is of a type that is not taken here"},
	fault.Unprocessable:  {http.StatusUnprocessableEntity, "State or policy forbid it"},
	apikeys.RateLimited:  {http.StatusTooManyRequests, "Too many requests failed"},
	ingest.BacklogFull:   {http.StatusServiceUnavailable, "Too many view events wait"},
	fault.Unavailable:    {http.StatusServiceUnavailable, "A server that is needed cannot be reached"},
}

// Problem is the body of every error (RFC 9457).
type Problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	*batchAnswer
}

// malformed says what is wrong with a request.
func malformed(format string, args ...any) error {
	return fault.New(fault.Malformed, "", "", fmt.Errorf(format, args...))
}

func problemType(kind fault.Kind) string { return "/problems/" + string(kind) }

// detail is an error without its kind.
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
		return // the peer has half an answer: it will notice
	}
	var b *batchError
	p := Problem{}
	if errors.As(err, &b) {
		p.batchAnswer = &b.batchAnswer
		err = b.error
	}
	var routing *echo.HTTPError
	if errors.As(err, &routing) {
		err = s.routing(c, routing)
	}
	kind := fault.KindOf(err)
	if known, ok := problems[kind]; ok {
		p.Type, p.Title, p.Status, p.Detail = problemType(kind), known.title, known.status, detail(err)
	} else {
		s.Log.Error("request failed", zap.String("path", c.Request().URL.Path), zap.Error(err))
		p.Type, p.Title, p.Status = "about:blank", "Internal Server Error", http.StatusInternalServerError
		p.Detail = "Something went wrong that should not; the service's log says what."
	}
	h := c.Response().Header()
	if p.Status == http.StatusServiceUnavailable {
		h.Set("Retry-After", "1")
		if kind == ingest.BacklogFull {
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
	_, _ = c.Response().Write(body) // the peer has gone: nobody to tell
}

// routing says in our words why the router found no handler.
func (s *Server) routing(c echo.Context, e *echo.HTTPError) error {
	switch e.Code {
	case http.StatusNotFound:
		return fault.New(fault.Unknown, "", "", fmt.Errorf("there is nothing at %s; /openapi.yaml lists what there is", c.Request().URL.Path))
	case http.StatusMethodNotAllowed:
		allow, _ := c.Get(echo.ContextKeyHeaderAllow).(string)
		return fault.New(methodNotAllowed, "", "", fmt.Errorf("%s takes %s, not %s", c.Request().URL.Path, allow, c.Request().Method))
	}
	return e
}
