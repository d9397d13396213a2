// Package admin serves a program's liveness, readiness and metrics, and has the check that a container's health command
// makes. Services also call Ready before they begin work.
package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/outage"
)

// Check reports whether something that a service needs is there. The error says what is missing and what to do.
type Check struct {
	Name string
	Do   func(ctx context.Context) error
	Warn bool // the service works without it: /readyz shows the error as a warning and stays 200
}

const (
	// checkTime is the deadline of a check, and overdueAfter is when one that ignores it counts as overdue.
	checkTime    = 3 * time.Second
	overdueAfter = checkTime + time.Second
)

// Ready runs checks repeatedly and knows what is missing. Each check runs by itself, so one that hangs holds up no other.
// Before its first answer, what a check looks at is missing.
type Ready struct {
	checks  []Check
	outages map[string]*outage.Outage // by check
	mu      sync.Mutex
	missing map[string]string
	warns   map[string]string
	details map[string]func() any
	look    chan struct{} // closed by the next Look
}

// NewReady makes a Ready for the checks. Run must be started.
func NewReady(log *zap.Logger, checks ...Check) *Ready {
	r := &Ready{checks: checks, outages: map[string]*outage.Outage{}, missing: map[string]string{}, warns: map[string]string{},
		look: make(chan struct{})}
	for _, c := range checks {
		named := log.With(zap.String("what", c.Name))
		if c.Warn {
			r.outages[c.Name] = outage.Say("warning", "warning is over", named)
			continue
		}
		r.missing[c.Name] = "not checked yet"
		r.outages[c.Name] = outage.Say("a check fails", "a check passes again", named)
	}
	return r
}

// Run runs the checks until ctx ends: every half second while something is missing, else every two seconds.
func (r *Ready) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, c := range r.checks {
		wg.Go(func() { r.repeat(ctx, c) })
	}
	wg.Wait()
}

func (r *Ready) repeat(ctx context.Context, c Check) {
	for ctx.Err() == nil {
		r.mu.Lock()
		look := r.look
		r.mu.Unlock()
		r.once(ctx, c)
		wait := 2 * time.Second
		if !r.OK() {
			wait = 500 * time.Millisecond
		}
		select {
		case <-ctx.Done():
		case <-look:
			time.Sleep(50 * time.Millisecond) // bounds the rate of rounds where Look is called all the time
		case <-time.After(wait):
		}
	}
}

// once runs a check and notes its answer. Some checks cannot be stopped, such as a system call to a disk that hangs. Such a
// check is noted as overdue until it answers, and is not run a second time before that.
func (r *Ready) once(ctx context.Context, c Check) {
	began := time.Now()
	answer := make(chan error, 1)
	go func() {
		cctx, cancel := context.WithTimeout(ctx, checkTime)
		defer cancel()
		answer <- c.Do(cctx)
	}()
	overdue := time.After(overdueAfter)
	for {
		select {
		case err := <-answer:
			r.note(c, err)
			return
		case <-overdue:
			r.note(c, fmt.Errorf("overdue: it has not answered since %s", began.UTC().Format(time.RFC3339)))
		case <-ctx.Done():
			return
		}
	}
}

func (r *Ready) note(c Check, err error) {
	r.outages[c.Name].Note(err)
	if c.Warn {
		r.Warn(c.Name, err)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		delete(r.missing, c.Name)
		return
	}
	r.missing[c.Name] = err.Error()
}

// Warn records that something is wrong although nothing is missing. A nil error removes the warning. /readyz shows it and
// stays 200. The caller logs it.
func (r *Ready) Warn(name string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		delete(r.warns, name)
		return
	}
	r.warns[name] = err.Error()
}

// Look makes Run check soon. Callers use it after a failure that a check would find.
func (r *Ready) Look() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.look)
	r.look = make(chan struct{})
}

// OK reports whether nothing is missing, or none of the named checks where there are names.
func (r *Ready) OK(names ...string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(names) == 0 {
		return len(r.missing) == 0
	}
	for _, n := range names {
		if r.missing[n] != "" {
			return false
		}
	}
	return true
}

// Missing returns a copy of what is missing: check name to reason.
func (r *Ready) Missing() map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.missing)
}

// Warnings returns a copy of what is wrong although nothing is missing.
func (r *Ready) Warnings() map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.warns)
}

// Detail adds a field to /readyz, whose value show returns at each request. Call it before Run is started.
func (r *Ready) Detail(name string, show func() any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.details == nil {
		r.details = map[string]func() any{}
	}
	r.details[name] = show
}

func (r *Ready) shown() map[string]any {
	r.mu.Lock()
	details := maps.Clone(r.details)
	r.mu.Unlock()
	values := map[string]any{}
	for name, show := range details {
		values[name] = show()
	}
	return values
}

// NewRegistry makes a metrics registry that has the metrics of the process and of Go.
func NewRegistry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}

// Handler answers GET /healthz (200 while the process runs), /readyz (200, or 503 with what is missing; each with the
// warnings) and /metrics.
func Handler(r *Ready, reg *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]any{"status": "ok"})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		body, status := r.shown(), http.StatusOK
		body["status"] = "ready"
		if m := r.Missing(); len(m) > 0 {
			body["status"], body["missing"], status = "not ready", m, http.StatusServiceUnavailable
		}
		if m := r.Warnings(); len(m) > 0 {
			body["warnings"] = m
		}
		answer(w, status, body)
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	return mux
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // an error means that the peer has gone
}

// Serve listens, so that a port in use is an error, then serves until ctx ends. wait returns after the end.
func Serve(ctx context.Context, addr string, h http.Handler, log *zap.Logger) (wait func(), err error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("health and metrics cannot listen: %w", err)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		ErrorLog: zap.NewStdLog(log)}
	log.Info("health and metrics", zap.String("listen", l.Addr().String()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-ctx.Done()
		_ = srv.Close()
	}()
	go func() { _ = srv.Serve(l) }()
	return func() { <-done }, nil
}

// Probe does the verb `healthcheck`: it requests /readyz of a running program. The error says what is missing.
func Probe(ctx context.Context, addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/readyz", nil)
	if err != nil {
		return err
	}
	// The default client would use a proxy that the environment names.
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("not ready: %s", strings.TrimSpace(string(body)))
	}
	return nil
}
