package service_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/api/internal/service"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/settings"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m) }

// api is a running service on servers of the test's own. The test can also read and write these servers directly.
type api struct {
	t      *testing.T
	url    string
	keys   state.Keys
	redis  redis.UniversalClient // not through a gate
	db     *catalog.Catalog
	stop   func() // ends the service and waits for its end
	client *http.Client
	key    string // sent with every request, unless it is ""
}

type options struct {
	redisURL, mysqlDSN string // gates; "" for none
	prefix             string
	partitions         int // else 1
	maxBacklog         string
	drain              string
	keysFile           string
	noSchema           bool
	notReady           bool // do not wait until it is ready
}

func start(t *testing.T, o options) *api {
	t.Helper()
	if o.redisURL == "" {
		o.redisURL = testserver.Redis(t)
	}
	if o.mysqlDSN == "" {
		o.mysqlDSN = testserver.MySQL(t)
	}
	if o.prefix == "" {
		o.prefix = testserver.Prefix(t)
	}
	if o.maxBacklog == "" {
		o.maxBacklog = "1000000"
	}
	if o.drain == "" {
		o.drain = "20s"
	}
	a := &api{t: t, keys: state.NewKeys(o.prefix).Partitioned(max(o.partitions, 1)), client: &http.Client{Timeout: 2 * time.Minute}}
	rdb, err := state.Connect(testserver.Redis(t), -1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rdb.Close() })
	a.redis = rdb
	if a.db, err = catalog.Open(o.mysqlDSN, catalog.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.db.Close() })
	if !o.noSchema {
		if _, err := a.db.Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	config, err := service.Settings{
		Common: settings.Common{RedisURL: o.redisURL, RedisPrefix: o.prefix, MySQLDSN: o.mysqlDSN, MinIdle: "30s",
			StateTTL: "24h", Partitions: fmt.Sprint(max(o.partitions, 1)), Drain: o.drain, LogLevel: "info", LogFormat: "json"},
		Listen: "127.0.0.1:0", MaxBacklog: o.maxBacklog, APIKeysFile: o.keysFile,
	}.Check()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	addr, done := make(chan net.Addr, 1), make(chan error, 1)
	go func() { done <- service.Run(ctx, config, zap.NewNop(), func(a net.Addr) { addr <- a }) }()
	select {
	case l := <-addr:
		a.url = "http://" + l.String()
	case err := <-done:
		t.Fatal(err)
	}
	a.stop = func() {
		cancel()
		if err, ok := <-done; ok && err != nil {
			t.Errorf("run: %v", err)
		}
		close(done)
		a.stop = func() {}
	}
	t.Cleanup(func() { a.stop() })
	if !o.notReady && !o.noSchema {
		a.waitReady()
	}
	return a
}

func (a *api) waitReady() {
	a.t.Helper()
	testserver.Eventually(a.t, "ready", 10*time.Second, func() error {
		if status, body := a.do("GET", "/readyz", "", ""); status != 200 {
			return errors.New(body)
		}
		return nil
	})
}

// do makes a request and returns status and body.
func (a *api) do(method, path, contentType, body string) (int, string) {
	a.t.Helper()
	resp := a.request(method, path, contentType, strings.NewReader(body))
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func (a *api) request(method, path, contentType string, body io.Reader) *http.Response {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), method, a.url+path, body)
	if err != nil {
		a.t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if a.key != "" {
		req.Header.Set("Authorization", "Bearer "+a.key)
	}
	resp, err := a.client.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	return resp
}

const (
	form   = "application/x-www-form-urlencoded"
	jsonT  = "application/json"
	ndjson = "application/x-ndjson"
)

func (a *api) post(body string) (int, string) {
	a.t.Helper()
	return a.do("POST", "/post_sentence", form, body)
}

// want makes a request and checks its status. Unless into is nil, it gets the JSON of the answer.
func (a *api) want(status int, method, path, body string, into any) string {
	a.t.Helper()
	contentType := ""
	if body != "" {
		contentType = jsonT
	}
	got, answer := a.do(method, path, contentType, body)
	if got != status {
		a.t.Fatalf("%s %s %s: %d %s, want %d", method, path, body, got, answer, status)
	}
	if into != nil {
		if err := json.Unmarshal([]byte(answer), into); err != nil {
			a.t.Fatalf("%s: %v", answer, err)
		}
	}
	return answer
}

// wantProblem makes a request and checks that the answer is a problem of this status and kind, whose detail contains a
// text.
func (a *api) wantProblem(method, path, contentType, body string, status int, kind, text string) client.Problem {
	a.t.Helper()
	resp := a.request(method, path, contentType, strings.NewReader(body))
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	what := fmt.Sprintf("%s %s %.200q: %d %s %s", method, path, body, resp.StatusCode, resp.Header.Get("Content-Type"), b)
	var p client.Problem
	if err := json.Unmarshal(b, &p); err != nil {
		a.t.Fatalf("%s: not a problem: %v", what, err)
	}
	if resp.Header.Get("Content-Type") != "application/problem+json" || resp.StatusCode != status || p.Status != status ||
		p.Type != "/problems/"+kind || p.Title == "" || !strings.Contains(p.Detail, text) {
		a.t.Fatalf("%s: want %d %s with %q", what, status, kind, text)
	}
	if (status == 503) != (resp.Header.Get("Retry-After") != "") {
		a.t.Fatalf("%s: Retry-After: %q", what, resp.Header.Get("Retry-After"))
	}
	return p
}

func (a *api) exec(statement string, args ...any) {
	a.t.Helper()
	if _, err := a.db.DB().ExecContext(a.t.Context(), statement, args...); err != nil {
		a.t.Fatal(err)
	}
}

func (a *api) insert(cid int, level, filename string) {
	a.t.Helper()
	a.exec("INSERT INTO contents (cid, content_level, filename) VALUES (?, ?, ?)", cid, level, filename)
}

// views returns the entries of the stream of views, each as "cid=count".
func (a *api) views() []string {
	a.t.Helper()
	ms, err := a.redis.XRange(a.t.Context(), a.keys.Views(), "-", "+").Result()
	if err != nil {
		a.t.Fatal(err)
	}
	vs := []string{}
	for _, m := range ms {
		vs = append(vs, fmt.Sprintf("%s=%s", m.Values["cid"], m.Values["count"]))
	}
	return vs
}

func (a *api) lastView() map[string]any {
	a.t.Helper()
	ms, err := a.redis.XRevRangeN(a.t.Context(), a.keys.Views(), "+", "-", 1).Result()
	if err != nil || len(ms) == 0 {
		a.t.Fatalf("no views: %v", err)
	}
	return ms[0].Values
}

func read(t *testing.T, resp *http.Response) string {
	t.Helper()
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func mustID(t *testing.T, s string) item.ID {
	t.Helper()
	id, err := item.ParseID(s)
	if err != nil {
		t.Fatal(err)
	}
	return id
}
