package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/tierflow/tierflow/api/internal/live"
)

const (
	// heartbeat is how often a quiet connection is used, so that proxies keep it and dead ones are noticed.
	heartbeat = 15 * time.Second
	// slowWriter is how long a watcher may take to read one event.
	slowWriter = 10 * time.Second
)

// events streams what happens (server-sent events). An event's id is its entry's, followed by the position in each
// stream, so that Last-Event-ID goes on exactly where a connection broke off.
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
	h.Set("X-Accel-Buffering", "no") // or a web server in front of us would keep events back
	rc := http.NewResponseController(w)
	write := func(b []byte) error {
		if err := rc.SetWriteDeadline(time.Now().Add(slowWriter)); err != nil {
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
	// The id comes first, so that a watcher who loses the connection before the first event misses none.
	if err := write([]byte("retry: 1000\nid: " + at.String() + "\n\n")); err != nil {
		return nil
	}
	err = s.Hub.Watch(ctx, at, heartbeat, func(e *live.Event, at live.Position) error {
		if e == nil {
			return write([]byte(": still here\n\n"))
		}
		b := []byte("event: " + e.Stream + "\n")
		if e.ID != "" {
			b = append(b, "id: "+at.String()+"\n"...)
		}
		data, err := fieldsJSON(e.Fields)
		if err != nil {
			return err
		}
		b = append(append(append(b, "data: "...), data...), "\n\n"...)
		return write(b)
	})
	if err != nil && !errors.Is(err, context.Canceled) {
		s.Log.Debug("a watcher has gone")
	}
	return nil
}

// fieldsJSON writes fields and values as an object of strings, in their order.
func fieldsJSON(fields []string) ([]byte, error) {
	b := []byte{'{'}
	for i, f := range fields {
		switch {
		case i == 0:
		case i%2 == 0:
			b = append(b, ',')
		default:
			b = append(b, ':')
		}
		text, err := json.Marshal(f)
		if err != nil {
			return nil, err
		}
		b = append(b, text...)
	}
	return append(b, '}'), nil
}
