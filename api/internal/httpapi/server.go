// Package httpapi is the HTTP API of Tierflow: the two calls of the original system, and everything under /v1. The table in
// routes.go names every call. The package client declares the JSON.
package httpapi

import (
	"context"
	"embed"
	"fmt"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/tierflow/tierflow/api/internal/apikeys"
	"github.com/tierflow/tierflow/api/internal/ingest"
	"github.com/tierflow/tierflow/api/internal/live"
	"github.com/tierflow/tierflow/api/internal/lookup"
	"github.com/tierflow/tierflow/api/internal/reevaluate"
	"github.com/tierflow/tierflow/api/internal/registry"
	"github.com/tierflow/tierflow/api/internal/status"
	"github.com/tierflow/tierflow/shared/admin"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
)

// Options of a Server. Every field but Guard is required.
type Options struct {
	Ingest     *ingest.Batcher
	Lookup     *lookup.Cache
	Living     time.Duration // how long a heartbeat counts
	Catalog    *catalog.Catalog
	Registry   *registry.Registry
	Reevaluate *reevaluate.Reevaluator
	Commits    *live.Commits
	Hub        *live.Hub
	Reads      *state.Store // for reads; its client may repeat a command
	Writes     *state.Store // for scripts; its client sends nothing twice
	Ready      *admin.Ready
	Metrics    *prometheus.Registry
	Guard      *apikeys.Guard // nil where no keys are configured: every caller may do everything
	Log        *zap.Logger
}

// Server answers HTTP.
type Server struct {
	Options
	routes   []Route
	echo     *echo.Echo
	closing  chan struct{} // closed when the program stops: streams of events end
	buffers  sync.Pool     // of *[]byte, for bodies and answers
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	sizes    levelSizes
	status   *status.Reader
}

//go:embed web/index.html openapi.yaml
var files embed.FS

// Limits of the server. A streamed body extends its own deadlines.
const (
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 15 * time.Second
	writeTimeout      = 30 * time.Second
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 16 << 10
	maxBody           = 64 << 10
)

// idsPool lets uuid read the randomness of many event ids at once. A system call for each id would lower the rate.
var idsPool = sync.OnceFunc(uuid.EnableRandPool)

// New makes a Server.
func New(o Options) *Server {
	idsPool()
	s := &Server{
		Options: o, echo: echo.New(), closing: make(chan struct{}), status: &status.Reader{Store: o.Reads, Living: o.Living,
			Levels: func(ctx context.Context) ([]policy.Level, error) { return o.Catalog.Levels(ctx) }},
		buffers: sync.Pool{New: func() any { b := make([]byte, 0, 1024); return &b }},
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tierflow_http_requests_total", Help: "Requests answered."}, []string{"route", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "tierflow_http_request_seconds", Help: "Time to answer.",
			Buckets: prometheus.ExponentialBuckets(0.00025, 2, 15)}, []string{"route"}),
	}
	o.Metrics.MustRegister(s.requests, s.seconds)
	s.echo.HTTPErrorHandler = func(err error, c echo.Context) { s.problem(c, err) }
	s.routes = s.table()
	for _, r := range s.routes {
		s.add(r)
	}
	return s
}

// add gives a route to the router. Around its handler it puts what every call has: the scope of the key, the time limit,
// errors as problems, metrics, and a log line at debug level.
func (s *Server) add(r Route) {
	handle := s.guarded(r.Scope, r.handle)
	seconds := s.seconds.WithLabelValues(r.Path)
	var requests [6]prometheus.Counter
	for class := range requests {
		requests[class] = s.requests.WithLabelValues(r.Path, fmt.Sprintf("%dxx", class))
	}
	h := func(c echo.Context) error {
		start := time.Now()
		if r.Limit > 0 {
			ctx, cancel := context.WithTimeout(c.Request().Context(), r.Limit)
			defer cancel()
			c.SetRequest(c.Request().WithContext(ctx))
		}
		if err := s.caught(c, handle); err != nil {
			s.problem(c, err)
		}
		took := time.Since(start)
		seconds.Observe(took.Seconds())
		requests[c.Response().Status/100%6].Inc()
		if e := s.Log.Check(zap.DebugLevel, "request"); e != nil {
			e.Write(zap.String("method", c.Request().Method), zap.String("path", c.Request().URL.Path),
				zap.Int("status", c.Response().Status), zap.Duration("took", took), zap.String("from", c.Request().RemoteAddr))
		}
		return nil
	}
	s.echo.Add(r.Method, r.Path, h)
	if r.Head {
		s.echo.Add(http.MethodHead, r.Path, h)
	}
}

// caught turns a panic into an error, so that one bad request does not end the others.
func (s *Server) caught(c echo.Context, handle echo.HandlerFunc) (err error) {
	defer func() {
		if r := recover(); r != nil {
			if r == http.ErrAbortHandler {
				panic(r)
			}
			s.Log.Error("panic in a handler", zap.Any("panic", r), zap.ByteString("stack", debug.Stack()))
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return handle(c)
}

// HTTP makes the server. Its Shutdown ends the streams of events, and waits for all other calls.
func (s *Server) HTTP() *http.Server {
	srv := &http.Server{
		Handler: s.echo, ReadHeaderTimeout: readHeaderTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes, ErrorLog: zap.NewStdLog(s.Log),
	}
	srv.RegisterOnShutdown(func() { close(s.closing) })
	return srv
}

func (s *Server) file(name, contentType string) echo.HandlerFunc {
	data, err := files.ReadFile(name)
	if err != nil {
		panic(err) // the file is embedded: only a broken build lacks it
	}
	return func(c echo.Context) error {
		h := c.Response().Header()
		h.Set("Cache-Control", "no-cache")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Content-Security-Policy", "default-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'")
		return c.Blob(http.StatusOK, contentType, data)
	}
}
