// Package httpapi is the HTTP face of Tierflow: the two calls of the original system, and everything under /v1.
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
	"github.com/tierflow/tierflow/shared/admin"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/state"
)

// Options of a Server. All but Guard are required.
type Options struct {
	Ingest     *ingest.Batcher
	Lookup     *lookup.Cache
	Catalog    *catalog.Catalog
	Registry   *registry.Registry
	Reevaluate *reevaluate.Reevaluator
	Commits    *live.Commits
	Hub        *live.Hub
	Reads      *state.Store // for reads, which may be repeated
	Writes     *state.Store // for scripts, which are never sent twice
	Ready      *admin.Ready
	Metrics    *prometheus.Registry
	Guard      *apikeys.Guard // nil where no keys are configured: everybody may do everything
	Log        *zap.Logger
}

// Server answers HTTP.
type Server struct {
	Options
	echo     *echo.Echo
	closing  chan struct{} // the program stops: those who only listen should go
	buffers  sync.Pool     // *[]byte, for bodies and answers
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	sizes    levelSizes
}

//go:embed web/index.html openapi.yaml
var files embed.FS

// Limits of the server. Bodies that are streamed prolong their own deadlines.
const (
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 15 * time.Second
	writeTimeout      = 30 * time.Second
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 16 << 10
	maxBody           = 64 << 10
	// handlerTimeout bounds what one call may wait for Redis and MySQL.
	handlerTimeout = 10 * time.Second
)

// idsPool makes the randomness of event ids by the page: one system call for each would show in the rate.
var idsPool = sync.OnceFunc(uuid.EnableRandPool)

// New makes a Server.
func New(o Options) *Server {
	idsPool()
	s := &Server{
		Options: o, echo: echo.New(), closing: make(chan struct{}),
		buffers: sync.Pool{New: func() any { b := make([]byte, 0, 1024); return &b }},
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tierflow_http_requests_total", Help: "Requests answered."}, []string{"route", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "tierflow_http_request_seconds", Help: "Time to answer.",
			Buckets: prometheus.ExponentialBuckets(0.00025, 2, 15)}, []string{"route"}),
	}
	o.Metrics.MustRegister(s.requests, s.seconds)
	s.echo.HTTPErrorHandler = func(err error, c echo.Context) { s.problem(c, err) }
	s.routes()
	return s
}

func (s *Server) routes() {
	s.add("POST", "/post_sentence", s.postSentence)
	s.add("POST", "/update_sentence", s.updateSentence)

	s.add("POST", "/v1/views", s.postViews)

	s.add("GET", "/v1/contents", s.listContents)
	s.add("POST", "/v1/contents", s.createContent)
	s.add("GET", "/v1/contents/:cid", s.showContent)
	s.add("DELETE", "/v1/contents/:cid", s.deleteContent)
	s.add("GET", "/v1/contents/:cid/location", s.locateContent)
	s.add("GET", "/v1/contents/:cid/file", s.handOver)
	s.add("GET", "/v1/contents/:cid/file/*", s.handOver)
	s.add("GET", "/v1/contents/:cid/history", s.listHistory)
	s.add("PUT", "/v1/contents/:cid/pin", s.putPin)
	s.add("DELETE", "/v1/contents/:cid/pin", s.deletePin)

	s.add("GET", "/v1/levels", s.getLevels)
	s.add("PUT", "/v1/levels", s.putLevels)

	s.add("GET", "/v1/relocations", s.listRelocations)
	s.add("POST", "/v1/pause", s.pause)
	s.add("POST", "/v1/resume", s.resume)
	s.add("GET", "/v1/dead", s.listDead)
	s.add("POST", "/v1/dead/:id/retry", s.retryDead)
	s.add("DELETE", "/v1/dead/:id", s.dropDead)
	s.add("GET", "/v1/events", s.events)

	s.add("GET", "/", s.file("web/index.html", "text/html; charset=utf-8"))
	s.add("GET", "/openapi.yaml", s.file("openapi.yaml", "application/yaml"))
	health := echo.WrapHandler(admin.Handler(s.Ready, s.Metrics))
	s.add("GET", "/healthz", health)
	s.add("GET", "/readyz", health)
	s.add("GET", "/metrics", health)
}

// Routes lists method and path of every call, as the router has them.
func (s *Server) Routes() [][2]string {
	var rs [][2]string
	for _, r := range s.echo.Routes() {
		rs = append(rs, [2]string{r.Method, r.Path})
	}
	return rs
}

// add routes to a handler and puts around it what every call has: a key's scope, a deadline, its errors as problems,
// metrics, and a log line at debug level.
func (s *Server) add(method, path string, handle echo.HandlerFunc) {
	handle = s.guarded(scopeOf(method, path), handle)
	seconds := s.seconds.WithLabelValues(path)
	var requests [6]prometheus.Counter
	for class := range requests {
		requests[class] = s.requests.WithLabelValues(path, fmt.Sprintf("%dxx", class))
	}
	unbounded := path == "/v1/views" || path == "/v1/events"
	h := func(c echo.Context) error {
		start := time.Now()
		if !unbounded && path != "/post_sentence" { // whose waits have limits of their own
			ctx, cancel := context.WithTimeout(c.Request().Context(), handlerTimeout)
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
	s.echo.Add(method, path, h)
	if method == http.MethodGet {
		s.echo.Add(http.MethodHead, path, h)
	}
}

// caught turns a panic into an error: one bad request must not end the others.
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

// HTTP is the server, to be given a listener. Its Shutdown ends those who only listen, and waits for the others.
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
		panic(err) // it is embedded: only a broken build has none
	}
	return func(c echo.Context) error {
		h := c.Response().Header()
		h.Set("Cache-Control", "no-cache")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Content-Security-Policy", "default-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'")
		return c.Blob(http.StatusOK, contentType, data)
	}
}
