package service_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func readTwo(a *api) *redis.XReadGroupArgs {
	return &redis.XReadGroupArgs{Group: "relocator", Consumer: "w1", Streams: []string{a.keys.Views(), ">"}, Count: 2, Block: -1}
}

func TestTheApiStaysUpWithoutServersAndWorksWhenTheyAreThere(t *testing.T) {
	redisGate, redisURL := testserver.RedisGate(t, testserver.Redis(t))
	mysqlGate, dsn := testserver.MySQLGate(t, testserver.MySQL(t))
	redisGate.Close()
	mysqlGate.Close()
	a := start(t, options{redisURL: redisURL, mysqlDSN: dsn, noSchema: true})
	missing := func(want ...string) {
		t.Helper()
		testserver.Eventually(t, "readyz", 10*time.Second, func() error {
			status, body := a.do("GET", "/readyz", "", "")
			for _, name := range []string{"redis", "mysql", "schema"} {
				if strings.Contains(body, `"`+name+`"`) != strings.Contains(strings.Join(want, " "), name) {
					return fmt.Errorf("%d %s, want missing: %v", status, body, want)
				}
			}
			if (status == 200) != (len(want) == 0) {
				return fmt.Errorf("%d %s", status, body)
			}
			return nil
		})
	}
	missing("redis", "mysql", "schema")
	if status, _ := a.do("GET", "/healthz", "", ""); status != 200 {
		t.Fatal("not alive")
	}
	a.wantProblem("POST", "/post_sentence", form, "cid=1&count=1", 503, "unavailable", "")
	a.wantProblem("POST", "/update_sentence", form, "cid=1", 503, "unavailable", "")
	for _, path := range []string{"/v1/contents", "/v1/contents/1", "/v1/contents/1/location", "/v1/contents/1/history", "/v1/levels",
		"/v1/relocations", "/v1/dead", "/v1/events"} {
		a.wantProblem("GET", path, "", "", 503, "unavailable", "")
	}
	mysqlGate.Open()
	missing("redis", "schema")
	if _, err := a.db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.insert(1, "bronze", "1.mp4")
	missing("redis")
	redisGate.Open()
	missing()
	if status, body := a.post("cid=1&count=1"); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	groups, err := a.redis.XInfoGroups(t.Context(), a.keys.Views()).Result()
	if err != nil || len(groups) != 1 || groups[0].Name != "relocator" || groups[0].LastDeliveredID != "0-0" {
		t.Fatalf("groups: %v, %v", groups, err)
	}
}

func TestPostsGetA503WhileRedisIsAwayAndWorkWhenItIsBack(t *testing.T) {
	gate, url := testserver.RedisGate(t, testserver.Redis(t))
	a := start(t, options{redisURL: url})
	a.insert(1, "bronze", "1.mp4")
	a.post("cid=1&count=1")
	gate.Close()
	for _, path := range []string{"/post_sentence", "/update_sentence"} {
		a.wantProblem("POST", path, form, "cid=1"+map[bool]string{true: "&count=2"}[path == "/post_sentence"], 503, "unavailable", "")
	}
	a.wantProblem("POST", "/v1/views", jsonT, `{"cid":1,"count":3}`, 503, "unavailable", "")
	a.wantProblem("PUT", "/v1/contents/1/pin", jsonT, `{"level":"gold"}`, 503, "unavailable", "repeat")
	if status, body := a.do("GET", "/v1/contents/1/location", "", ""); status != 200 {
		t.Fatalf("the location comes from MySQL: %d %s", status, body)
	}
	var c client.Item
	a.want(201, "POST", "/v1/contents", `{"cid":2,"filename":"2.mp4"}`, &c) // needs only MySQL as well
	if c.CID != 2 || c.State != nil {
		t.Fatalf("%+v", c)
	}
	gate.Open()
	testserver.Eventually(t, "service", 10*time.Second, func() error {
		if status, body := a.post("cid=1&count=4"); status != 200 {
			return errors.New(body)
		}
		return nil
	})
	if got := strings.Join(a.views(), " "); got != "1=1 1=4" {
		t.Fatalf("views %s", got)
	}
}

func TestALostReplyIsA503AndNothingIsAppendedTwice(t *testing.T) {
	gate, url := testserver.RedisGate(t, testserver.Redis(t))
	a := start(t, options{redisURL: url})
	a.insert(1, "bronze", "1.mp4")
	a.post("cid=1&count=1")
	cut := gate.CutReply(a.keys.State(1))
	a.wantProblem("POST", "/post_sentence", form, "cid=1&count=2", 503, "unavailable", "")
	<-cut
	if status, body := a.post("cid=1&count=3"); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	if got := strings.Join(a.views(), " "); got != "1=1 1=2 1=3" {
		t.Fatalf("views %s", got)
	}
}

func TestWhileMySQLIsAwayKnownItemsAreAcceptedAndUnknownOnesAreNot(t *testing.T) {
	gate, dsn := testserver.MySQLGate(t, testserver.MySQL(t))
	a := start(t, options{mysqlDSN: dsn})
	a.insert(1, "bronze", "1.mp4")
	a.insert(2, "bronze", "2.mp4")
	a.post("cid=1&count=1")
	gate.Close()
	end := time.Now().Add(2500 * time.Millisecond) // longer than a row is fresh
	for time.Now().Before(end) {
		if status, body := a.post("cid=1&count=2000"); status != 200 || !strings.Contains(body, "gold") {
			t.Fatalf("a known item: %d %s", status, body)
		}
	}
	a.wantProblem("POST", "/post_sentence", form, "cid=2&count=1", 503, "unavailable", "")
	got := a.batch(strings.NewReader("{\"cid\":1,\"count\":5}\n{\"cid\":2,\"count\":5}\n"))
	if got.Accepted != 1 || len(got.Refused) != 1 || got.Refused[0].Type != "/problems/unavailable" || got.Refused[0].Line != 2 {
		t.Fatalf("%+v", got)
	}
	gate.Open()
	testserver.Eventually(t, "service", 10*time.Second, func() error {
		if status, body := a.post("cid=2&count=1"); status != 200 {
			return errors.New(body)
		}
		return nil
	})
}

func TestMySQLIsBackAlthoughItsLevelsAreInvalid(t *testing.T) {
	gate, dsn := testserver.MySQLGate(t, testserver.MySQL(t))
	a := start(t, options{mysqlDSN: dsn})
	a.insert(1, "bronze", "1.mp4")
	a.insert(2, "bronze", "2.mp4")
	a.post("cid=1&count=1")
	a.exec("UPDATE `level` SET min_counts = 5 WHERE content_level = 'bronze'")
	gate.Close()
	a.wantProblem("POST", "/post_sentence", form, "cid=2&count=1", 503, "unavailable", "")
	gate.Open()
	testserver.Eventually(t, "service with the last valid levels", 10*time.Second, func() error {
		if status, body := a.post("cid=2&count=1000"); status != 200 || !strings.Contains(body, `"silver"`) {
			return fmt.Errorf("%d %s", status, body)
		}
		return nil
	})
}

func TestAHungMySQLDoesNotHoldUpKnownItems(t *testing.T) {
	real := testserver.MySQL(t)
	_, dsn := testserver.MySQLGate(t, real)
	hang := newHang(t, dsn)
	a := start(t, options{mysqlDSN: hang.dsn})
	a.insert(1, "bronze", "1.mp4")
	a.post("cid=1&count=1")
	hang.start()
	begin, slow, n := time.Now(), 0, 0
	for time.Since(begin) < 5*time.Second {
		asked := time.Now()
		if status, body := a.post("cid=1&count=1"); status != 200 {
			t.Fatalf("%d %s", status, body)
		}
		// A request that waits for MySQL takes the look-up's whole second. A busy machine delays the others by less.
		if n++; time.Since(asked) > 900*time.Millisecond {
			slow++
		}
	}
	if slow > 1 {
		t.Fatalf("%d of %d requests waited for a MySQL that hangs", slow, n)
	}
	asked := time.Now()
	a.wantProblem("POST", "/post_sentence", form, "cid=2&count=1", 503, "unavailable", "")
	if took := time.Since(asked); took > 5*time.Second {
		t.Fatalf("an unknown item took %s", took)
	}
	hang.end()
}

// hang is a proxy that can stop passing bytes on and still keep its connections.
type hang struct {
	dsn string
	mu  sync.RWMutex
}

func newHang(t *testing.T, dsn string) *hang {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	from, to, _ := strings.Cut(dsn, "tcp(")
	target, rest, _ := strings.Cut(to, ")")
	h := &hang{dsn: from + "tcp(" + l.Addr().String() + ")" + rest}
	pump := func(to, from net.Conn) {
		defer to.Close()
		buf := make([]byte, 64<<10)
		for {
			n, err := from.Read(buf)
			h.mu.RLock()
			_, werr := to.Write(buf[:n])
			h.mu.RUnlock()
			if err != nil || werr != nil {
				return
			}
		}
	}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				client.Close()
				continue
			}
			go pump(server, client)
			go pump(client, server)
		}
	}()
	return h
}

func (h *hang) start() { h.mu.Lock() }
func (h *hang) end()   { h.mu.Unlock() }

func TestSIGTERMFinishesTheRequestsUnderWay(t *testing.T) {
	a := start(t, options{})
	a.insert(1, "bronze", "1.mp4")
	a.post("cid=1&count=5000")
	stopped := make(chan struct{})
	watching := a.request("GET", "/v1/events", "", http.NoBody)
	defer watching.Body.Close()

	body := newSlowBody()
	answered := make(chan string, 1)
	go func() {
		resp := a.request("POST", "/v1/views", ndjson, body)
		answered <- read(t, resp)
	}()
	body.write("{\"cid\":1,\"count\":1}\n")
	testserver.Eventually(t, "the request in hand", 5*time.Second, func() error {
		if n := len(a.views()); n != 2 {
			return fmt.Errorf("%d views", n)
		}
		return nil
	})
	go func() {
		a.stop()
		close(stopped)
	}()
	testserver.Eventually(t, "no new connections", 5*time.Second, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", strings.TrimPrefix(a.url, "http://"))
		if err == nil {
			c.Close()
			return errors.New("still listening")
		}
		return nil
	})
	body.write("{\"cid\":1,\"count\":2}\n")
	body.end()
	if got := <-answered; !strings.Contains(got, `"accepted":2`) {
		t.Fatalf("answer: %s", got)
	}
	<-stopped
	if got := strings.Join(a.views(), " "); got != "1=5000 1=1 1=2" {
		t.Fatalf("views %s", got)
	}
}

func TestRequestsEndAfterTheDrainTime(t *testing.T) {
	a := start(t, options{drain: "300ms"})
	a.insert(1, "bronze", "1.mp4")
	body := newSlowBody()
	go func() {
		req, _ := http.NewRequest("POST", a.url+"/v1/views", body)
		req.Header.Set("Content-Type", ndjson)
		if resp, err := a.client.Do(req); err == nil {
			resp.Body.Close()
		}
	}()
	body.write("{\"cid\":1,\"count\":1}\n")
	testserver.Eventually(t, "the request in hand", 5*time.Second, func() error {
		if len(a.views()) != 1 {
			return errors.New("not yet")
		}
		return nil
	})
	begin := time.Now()
	a.stop()
	body.end()
	if took := time.Since(begin); took > 4*time.Second {
		t.Fatalf("it took %s", took)
	}
}

// slowBody is a body that is written while it is sent.
type slowBody struct {
	parts chan string
	rest  string
}

func newSlowBody() *slowBody          { return &slowBody{parts: make(chan string, 10)} }
func (s *slowBody) write(part string) { s.parts <- part }
func (s *slowBody) end()              { close(s.parts) }
func (s *slowBody) Read(b []byte) (int, error) {
	if s.rest == "" {
		part, ok := <-s.parts
		if !ok {
			return 0, io.EOF
		}
		s.rest = part
	}
	n := copy(b, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}
