package httpapi

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"
	"go.uber.org/zap"

	"github.com/tierflow/tierflow/api/internal/live"
)

const (
	// keepAlive is the interval of comments on a quiet connection. They keep proxies from closing the connection, and show
	// when the reader has gone.
	keepAlive = 15 * time.Second
	// slowReader is how long the reader may take to read one event.
	slowReader = 10 * time.Second
)

// events streams the entries of all streams as server-sent events. The id of an event is the id of its entry, followed by
// the position in each stream. With it as Last-Event-ID a new connection resumes exactly where the last one broke off.
func (s *Server) events(c echo.Context) error {
	if _, err := query(c); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(c.Request().Context())
	defer cancel()
	go func() {
		select {
		case <-s.closing:
			cancel()
		case <-ctx.Done():
		}
	}()
	var at live.Position
	var err error
	if last := c.Request().Header.Get("Last-Event-ID"); last != "" {
		at, err = live.ParsePosition(s.Reads.Keys(), last)
	} else {
		at, err = s.Hub.End(ctx)
	}
	if err != nil {
		return err
	}
	w := c.Response()
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // a web server in front must not buffer events
	rc := http.NewResponseController(w)
	write := func(b []byte) error {
		if err := rc.SetWriteDeadline(time.Now().Add(slowReader)); err != nil {
			return err
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
		return rc.Flush()
	}
	if err := rc.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	// The id comes first: a reader that loses the connection before the first event still knows where to resume.
	if err := write([]byte("retry: 1000\nid: " + at.String() + "\n\n")); err != nil {
		return nil
	}
	err = s.Hub.Watch(ctx, at, keepAlive, func(e *live.Event, at live.Position) error {
		if e == nil {
			return write([]byte(": still here\n\n"))
		}
		b := []byte("event: " + e.Stream + "\n")
		if e.ID != "" || e.Stream == live.Slow {
			b = append(b, "id: "+at.String()+"\n"...)
		}
		return write(append(append(append(b, "data: "...), e.Data...), "\n\n"...))
	})
	if err != nil && !errors.Is(err, context.Canceled) {
		s.Log.Debug("a stream of events has ended", zap.Error(err))
	}
	return nil
}
