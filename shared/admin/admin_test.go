package admin_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/tierflow/tierflow/shared/admin"
)

// toggle is a check that a test turns on and off. It passes where missing is "".
type toggle struct {
	missing atomic.Value
	rounds  atomic.Int64
}

func (c *toggle) set(missing string) { c.missing.Store(missing) }

func (c *toggle) check(name string) admin.Check {
	return admin.Check{Name: name, Do: func(context.Context) error {
		c.rounds.Add(1)
		if m, _ := c.missing.Load().(string); m != "" {
			return errors.New(m)
		}
		return nil
	}}
}

// run starts the checks; the function that it returns ends them.
func run(t *testing.T, r *admin.Ready) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); r.Run(ctx) }()
	return func() { cancel(); <-ended }
}

func TestEverythingIsMissingBeforeTheFirstRound(t *testing.T) {
	var redis, mysql toggle
	r := admin.NewReady(zap.NewNop(), redis.check("redis"), mysql.check("mysql"))
	if r.OK() || r.OK("redis") || len(r.Missing()) != 2 {
		t.Errorf("%v", r.Missing())
	}
}

func TestReadyFollowsItsChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var redis, mysql toggle
		mysql.set("no such table")
		r := admin.NewReady(zap.NewNop(), redis.check("redis"), mysql.check("mysql"))
		defer run(t, r)()
		synctest.Wait()
		if want := map[string]string{"mysql": "no such table"}; r.OK() || !r.OK("redis") || r.OK("mysql") || r.OK("redis", "mysql") || !maps.Equal(r.Missing(), want) {
			t.Fatalf("%v", r.Missing())
		}
		r.Missing()["redis"] = "a copy"
		if !r.OK("redis") {
			t.Error("Missing is no copy")
		}

		mysql.set("")
		time.Sleep(time.Second) // of synctest's clock: while something is missing, there are two rounds a second
		if !r.OK() || len(r.Missing()) != 0 {
			t.Fatalf("%v", r.Missing())
		}

		rounds := redis.rounds.Load()
		time.Sleep(20 * time.Second)
		if n := redis.rounds.Load() - rounds; n < 9 || n > 11 {
			t.Errorf("%d rounds in 20 s while nothing is missing", n)
		}

		redis.set("connection refused")
		r.Look()
		r.Look()
		time.Sleep(100 * time.Millisecond)
		if r.OK("redis") {
			t.Error("Look made no round")
		}
		// Callers that see failures all the time do not make it a busy loop.
		rounds = redis.rounds.Load()
		for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			r.Look()
		}
		if n := redis.rounds.Load() - rounds; n > 25 {
			t.Errorf("%d rounds in a second", n)
		}
	})
}

func TestACheckThatHangsFailsAtItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := admin.NewReady(zap.NewNop(), admin.Check{Name: "slow", Do: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }})
		defer run(t, r)()
		time.Sleep(5 * time.Second)
		if m := r.Missing()["slow"]; !strings.Contains(m, "deadline") {
			t.Errorf("%q", m)
		}
	})
}

func TestACheckThatHangsIsOverdueAndHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.InfoLevel)
		frozen, running := make(chan struct{}), atomic.Int64{}
		var mysql toggle
		r := admin.NewReady(zap.New(core), mysql.check("mysql"), admin.Check{Name: "tiers", Do: func(context.Context) error {
			running.Add(1)
			<-frozen // a system call, which no context ends
			return nil
		}})
		defer run(t, r)()
		since := time.Now().UTC().Format(time.RFC3339)
		time.Sleep(30 * time.Second)
		if m := r.Missing()["tiers"]; m != "overdue: it has not answered since "+since {
			t.Errorf("%q", m)
		}
		mysql.set("no such table")
		time.Sleep(3 * time.Second)
		if m := r.Missing()["mysql"]; m != "no such table" {
			t.Errorf("the other check says %q", m)
		}
		mysql.set("")
		time.Sleep(3 * time.Second)
		if n := running.Load(); n != 1 || !r.OK("mysql") || r.OK("tiers") {
			t.Errorf("the hanging check was run %d times; missing: %v", n, r.Missing())
		}
		close(frozen)
		time.Sleep(3 * time.Second)
		if !r.OK() {
			t.Errorf("after it has answered: %v", r.Missing())
		}
		if n := logs.FilterMessage("a check fails").FilterField(zap.String("what", "tiers")).Len(); n != 1 {
			t.Errorf("%d log lines", n)
		}
	})
}

func TestAWarningIsShownAndTheServiceStaysReady(t *testing.T) {
	r := admin.NewReady(zap.NewNop())
	srv := httptest.NewServer(admin.Handler(r, admin.NewRegistry()))
	defer srv.Close()
	r.Warn("keys", errors.New("line 2 is wrong"))
	if status, _, body := get(t, srv.URL+"/readyz"); status != 200 || body != `{"status":"ready","warnings":{"keys":"line 2 is wrong"}}`+"\n" {
		t.Errorf("%d %q", status, body)
	}
	r.Warn("keys", nil)
	if status, _, body := get(t, srv.URL+"/readyz"); status != 200 || body != `{"status":"ready"}`+"\n" {
		t.Errorf("%d %q", status, body)
	}
}

func TestAFailedCheckThatWarnsTakesNothingOutOfUseAndIsLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.InfoLevel)
		var memory toggle
		memory.set("Redis is full")
		check := memory.check("redis-memory")
		check.Warn = true
		r := admin.NewReady(zap.New(core), check)
		defer run(t, r)()
		time.Sleep(10 * time.Second)
		if !r.OK() {
			t.Errorf("missing: %v", r.Missing())
		}
		if n := logs.FilterMessage("warning").Len(); n != 1 {
			t.Errorf("the warning was logged %d times", n)
		}
		memory.set("")
		time.Sleep(10 * time.Second)
		if n := logs.FilterMessage("warning is over").Len(); n != 1 {
			t.Errorf("the end of the warning was logged %d times", n)
		}
	})
}

func get(t *testing.T, url string) (int, http.Header, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(body)
}

func TestTheHandlerServesHealthReadinessAndMetrics(t *testing.T) {
	var mysql toggle
	mysql.set("connection refused")
	r := admin.NewReady(zap.NewNop(), mysql.check("mysql"))
	reg := admin.NewRegistry()
	counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "things_total", Help: "Things."})
	reg.MustRegister(counter)
	counter.Add(3)
	srv := httptest.NewServer(admin.Handler(r, reg))
	defer srv.Close()

	status, header, body := get(t, srv.URL+"/healthz")
	if status != 200 || header.Get("Content-Type") != "application/json" || body != `{"status":"ok"}`+"\n" {
		t.Errorf("%d %v %q", status, header, body)
	}
	status, header, body = get(t, srv.URL+"/readyz")
	var answer struct {
		Status  string
		Missing map[string]string
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		t.Fatal(err)
	}
	if status != 503 || header.Get("Content-Type") != "application/json" || answer.Status != "not ready" || answer.Missing["mysql"] != "not checked yet" {
		t.Errorf("%d %v %q", status, header, body)
	}
	if status, _, body = get(t, srv.URL+"/metrics"); status != 200 || !strings.Contains(body, "\nthings_total 3\n") ||
		!strings.Contains(body, "go_goroutines") || !strings.Contains(body, "process_start_time_seconds") {
		t.Errorf("%d %q", status, body)
	}
	if status, _, _ = get(t, srv.URL+"/nothing"); status != 404 {
		t.Errorf("an unknown path is %d", status)
	}
	resp, err := http.Post(srv.URL+"/healthz", "text/plain", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 405 {
		t.Errorf("POST is %d", resp.StatusCode)
	}
}

// freeAddress returns a loopback address that no program listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestAProbeReportsWhetherARunningProgramIsReady(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1") // the probe ignores it
	addr := freeAddress(t)
	_, port, _ := net.SplitHostPort(addr)
	if err := admin.Probe(t.Context(), addr); err == nil {
		t.Error("ready, and no program listens")
	}
	var mysql toggle
	mysql.set("connection refused by tierflow's MySQL")
	r := admin.NewReady(zap.NewNop(), mysql.check("mysql"))
	ctx, stop := context.WithCancel(t.Context())
	wait, err := admin.Serve(ctx, addr, admin.Handler(r, admin.NewRegistry()), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Serve(ctx, addr, nil, zap.NewNop()); err == nil {
		t.Error("two listen on one address")
	}
	if err := admin.Probe(t.Context(), addr); err == nil || !strings.Contains(err.Error(), "not checked yet") {
		t.Errorf("%v", err)
	}
	mysql.set("")
	defer run(t, r)()
	for end := time.Now().Add(20 * time.Second); ; {
		if err = admin.Probe(t.Context(), addr); err == nil || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"", "0.0.0.0", "[::]", "localhost"} { // an address for all interfaces includes loopback
		if err := admin.Probe(t.Context(), host+":"+port); err != nil {
			t.Errorf("%q: %v", host, err)
		}
	}
	if err := admin.Probe(t.Context(), "no address"); err == nil {
		t.Error("an address that is none")
	}
	stop()
	wait()
	if err := admin.Probe(t.Context(), addr); err == nil {
		t.Error("it still answers")
	}
}

func TestACheckThatFailsInOtherWordsEachTimeIsLoggedOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.InfoLevel)
		var away atomic.Bool
		var rounds atomic.Int64
		do := func(context.Context) error {
			n := rounds.Add(1)
			if !away.Load() {
				return nil
			}
			return fmt.Errorf("read tcp 127.0.0.1:%d->127.0.0.1:6379: i/o timeout", 40_000+n)
		}
		r := admin.NewReady(zap.New(core), admin.Check{Name: "redis", Do: do}, admin.Check{Name: "redis-memory", Do: do, Warn: true})
		defer run(t, r)()
		want := func(what string, messages ...string) {
			t.Helper()
			var found []string
			for _, e := range logs.TakeAll() {
				found = append(found, e.Message)
			}
			slices.Sort(found)
			if !slices.Equal(found, messages) {
				t.Errorf("%s: logged %q, want %q", what, found, messages)
			}
		}
		time.Sleep(20 * time.Second)
		want("all is well")
		away.Store(true)
		time.Sleep(30 * time.Second)
		want("it begins", "a check fails", "warning")
		if before := r.Missing()["redis"]; before == "" {
			t.Error("nothing is missing")
		} else if time.Sleep(5 * time.Second); r.Missing()["redis"] == before {
			t.Errorf("/readyz has old words: %s", before)
		}
		time.Sleep(40 * time.Second)
		want("it lasts", "a check fails", "warning")
		away.Store(false)
		time.Sleep(5 * time.Second)
		want("it ends", "a check passes again", "warning is over")
	})
}
