package service_test

import (
	"bufio"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/shared/entryid"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestMovesUnderWayAreListed(t *testing.T) {
	a := start(t, options{})
	store := state.NewStore(state.Options{Redis: a.redis, Keys: a.keys, TTL: time.Hour, Lease: time.Minute})
	a.insert(1, "bronze", "1.mp4")
	a.insert(2, "bronze", "2.mp4")
	a.insert(3, "bronze", "3.mp4")
	for cid := 1; cid <= 3; cid++ {
		a.post(fmt.Sprintf("cid=%d&count=5000", cid))
	}
	if err := a.redis.XReadGroup(t.Context(), readTwo(a)).Err(); err != nil {
		t.Fatal(err)
	}
	st, _, err := store.Get(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.SetProgress(t.Context(), 1, state.Progress{EventID: st.EventID, From: "bronze", To: "gold", Filename: "1.mp4",
		WorkerID: "w1", BytesDone: 10, BytesTotal: 40}); err != nil {
		t.Fatal(err)
	}
	var got client.Relocations
	text := a.want(200, "GET", "/v1/relocations", "", &got)
	if r := got.Relocations; len(r) != 2 || got.Unsettled != 3 || got.Paused || got.NextAfter != nil ||
		!r[0].Moving || *r[0].BytesDone != 10 || *r[0].BytesTotal != 40 || r[0].WorkerID != "w1" || r[0].To != "gold" ||
		r[1].Moving || r[1].BytesDone != nil || r[1].CID != 2 {
		t.Fatal(text)
	}
	a.want(200, "GET", "/v1/relocations?limit=1", "", &got)
	a.want(200, "GET", "/v1/relocations?limit=1&after="+*got.NextAfter, "", &got)
	if len(got.Relocations) != 1 || got.Relocations[0].CID != 2 {
		t.Fatalf("%+v", got)
	}
	for _, paused := range []bool{true, false} {
		verb := map[bool]string{true: "pause", false: "resume"}[paused]
		a.want(200, "POST", "/v1/"+verb, "", nil)
		a.want(200, "GET", "/v1/relocations", "", &got)
		if is, err := store.Paused(t.Context()); err != nil || is != paused || got.Paused != paused {
			t.Fatalf("%s: %v %v %v", verb, is, got.Paused, err)
		}
	}
}

func TestAPauseIsAnsweredWhenEveryLivingRelocatorHasSaidThatItBeginsNoMoves(t *testing.T) {
	a := start(t, options{})
	ctx := t.Context()
	store := state.NewStore(state.Options{Redis: a.redis, Keys: a.keys, TTL: time.Hour, Lease: time.Minute})
	beat := func(id string) {
		t.Helper()
		if _, err := store.Heartbeat(ctx, state.GroupRelocator, state.Worker{ID: id}, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	beat("w1")
	beat("w2")
	old := fmt.Sprintf("%d *", time.Now().Add(-time.Hour).UnixMilli())
	if err := a.redis.HSet(ctx, a.keys.Workers(state.GroupRelocator), "dead", old).Err(); err != nil {
		t.Fatal(err)
	}
	var answer client.Paused
	answers := func(workers ...string) {
		t.Helper()
		before, err := store.Pause(ctx) // before the call: it may be answered before the goroutine runs
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			done <- func() error {
				by, err := before, error(nil)
				for err == nil && (by == "" || by == before) {
					by, err = store.Pause(ctx)
				}
				for _, w := range workers {
					err = errors.Join(err, store.Hold(ctx, w, by))
				}
				return err
			}()
		}()
		a.want(200, "POST", "/v1/pause", "", &answer)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	answers("w1", "w2")
	if !answer.Paused || len(answer.WaitingFor) > 0 {
		t.Errorf("both have answered: %+v", answer)
	}
	answers("w1") // w2 has answered the pause before
	if !answer.Paused || fmt.Sprint(answer.WaitingFor) != "[w2]" {
		t.Errorf("one has not answered: %+v", answer)
	}
	a.want(200, "POST", "/v1/resume", "", &answer)
	if n := a.redis.Exists(ctx, a.keys.Holding()).Val(); answer.Paused || n != 0 {
		t.Errorf("%+v; %d keys are left", answer, n)
	}
}

func TestDeadLettersAreListedRetriedAndDeleted(t *testing.T) {
	a := start(t, options{})
	store := state.NewStore(state.Options{Redis: a.redis, Keys: a.keys, TTL: time.Hour, Lease: time.Minute})
	a.insert(1, "bronze", "1.mp4")
	a.insert(2, "bronze", "2.mp4")
	deadLetter := func(stream, group string, fields []string) string {
		t.Helper()
		a.redis.XGroupCreateMkStream(t.Context(), stream, group, "0")
		if fields != nil {
			if err := a.redis.XAdd(t.Context(), &redis.XAddArgs{Stream: stream, Values: fields}).Err(); err != nil {
				t.Fatal(err)
			}
		}
		ms, err := a.redis.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: group, Consumer: "w", Streams: []string{stream, ">"}, Count: 1, Block: -1}).Result()
		if err != nil {
			t.Fatal(err)
		}
		m := ms[0].Messages[0]
		entry := map[string]string{}
		for k, v := range m.Values {
			entry[k] = v.(string)
		}
		if ok, err := store.DeadLetter(t.Context(), group, "w", entry, event.Failure{Stage: "relocate", Reason: "conflict", Error: "in the way", Attempts: 1,
			SourceStream: stream, SourceID: m.ID, FailedAt: time.Now()}); err != nil || !ok {
			t.Fatal(ok, err)
		}
		last, err := a.redis.XRevRangeN(t.Context(), a.keys.Dead(), "+", "-", 1).Result()
		if err != nil {
			t.Fatal(err)
		}
		return last[0].ID
	}
	a.post("cid=1&count=1500")
	first := deadLetter(a.keys.Views(), state.GroupRelocator, nil)
	var list client.DeadLetters
	text := a.want(200, "GET", "/v1/dead", "", &list)
	if d := list.Dead; len(d) != 1 || d[0].ID != first || d[0].Reason != "conflict" || d[0].Error != "in the way" || d[0].Attempts != 1 ||
		d[0].SourceStream != a.keys.Views() || d[0].Entry["cid"] != "1" || d[0].Entry["reason"] != "" || d[0].FailedAt == "" {
		t.Fatal(text)
	}
	oldEvent := list.Dead[0].Entry["event_id"]
	var retried client.Retried
	a.want(202, "POST", "/v1/dead/"+first+"/retry", "", &retried)
	if v := a.lastView(); retried.EventID == oldEvent || v["event_id"] != retried.EventID || v["count"] != "1500" || v["target"] != "silver" {
		t.Fatalf("%+v %v", retried, v)
	}
	a.wantProblem("POST", "/v1/dead/"+first+"/retry", "", "", 404, "not-found", first)

	second := deadLetter(a.keys.Views(), state.GroupRelocator, nil)
	a.post("cid=1&count=1600")
	a.wantProblem("POST", "/v1/dead/"+second+"/retry", "", "", 409, "conflict", "newer")
	a.want(204, "DELETE", "/v1/dead/"+second, "", nil)
	a.wantProblem("DELETE", "/v1/dead/"+second, "", "", 404, "not-found", second)

	c := event.Committed{EventID: oldEvent, ID: 2, From: "bronze", To: "gold", Filename: "2.mp4", Outcome: event.OutcomeCommitted, CommittedAt: time.Now()}
	third := deadLetter(a.keys.Committed(), state.GroupReleaser, c.Fields())
	a.want(202, "POST", "/v1/dead/"+third+"/retry", "", &retried)
	ms, err := a.redis.XRevRangeN(t.Context(), a.keys.Committed(), "+", "-", 1).Result()
	if err != nil || ms[0].ID != retried.EntryID || ms[0].Values["event_id"] != oldEvent || len(ms[0].Values) != 8 {
		t.Fatalf("%v %v", ms, err)
	}

	a.post("cid=2&count=1600")
	deadLetter(a.keys.Views(), state.GroupRelocator, nil) // item 1, count 1600
	fourth := deadLetter(a.keys.Views(), state.GroupRelocator, nil)
	a.exec("DELETE FROM contents WHERE cid = 2")
	a.wantProblem("POST", "/v1/dead/"+fourth+"/retry", "", "", 422, "unprocessable", "register")
	a.want(200, "GET", "/v1/dead?limit=1", "", &list)
	if len(list.Dead) != 1 {
		t.Fatalf("%+v", list)
	}
	a.want(200, "GET", "/v1/dead?after="+list.Dead[0].ID, "", &list)
	if len(list.Dead) != 1 || list.Dead[0].ID != fourth {
		t.Fatalf("%+v", list)
	}
}

// watcher reads server-sent events.
type watcher struct {
	t      *testing.T
	resp   *http.Response
	lines  chan string
	lastID string
}

func (a *api) watch(lastID string) *watcher {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), "GET", a.url+"/v1/events", nil)
	if err != nil {
		a.t.Fatal(err)
	}
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		a.t.Fatalf("%d %s", resp.StatusCode, read(a.t, resp))
	}
	w := &watcher{t: a.t, resp: resp, lines: make(chan string, 100_000)}
	go func() {
		defer close(w.lines)
		for sc := bufio.NewScanner(resp.Body); sc.Scan(); {
			w.lines <- sc.Text()
		}
	}()
	a.t.Cleanup(w.close)
	return w
}

func (w *watcher) close() { w.resp.Body.Close() }

// next returns the next event with data, as "kind data".
func (w *watcher) next() string {
	w.t.Helper()
	kind, data := "", ""
	timeout := time.After(10 * time.Second)
	for {
		select {
		case line, ok := <-w.lines:
			switch name, value, _ := strings.Cut(line, ": "); {
			case !ok:
				w.t.Fatal("the stream has ended")
			case name == "event":
				kind = value
			case name == "id":
				w.lastID = value
			case name == "data":
				data = value
			case line == "" && data != "":
				return kind + " " + data
			}
		case <-timeout:
			w.t.Fatal("no event")
		}
	}
}

func TestEventsAreStreamedAndGoOnWhereTheyBrokeOff(t *testing.T) {
	gate, url := testserver.RedisGate(t, testserver.Redis(t))
	a := start(t, options{redisURL: url})
	a.insert(1, "bronze", "1.mp4")
	a.post("cid=1&count=0") // before anybody listens
	w := a.watch("")
	count := func(e string) int {
		t.Helper()
		var n int
		_, rest, _ := strings.Cut(e, `"count":"`)
		if _, err := fmt.Sscanf(rest, "%d", &n); err != nil || !strings.HasPrefix(e, `views {"event_id":"`) {
			t.Fatalf("%s: %v", e, err)
		}
		return n
	}
	for i := 1; i <= 3; i++ {
		a.post(fmt.Sprintf("cid=1&count=%d", i))
		if got := count(w.next()); got != i {
			t.Fatalf("%d, want %d", got, i)
		}
	}
	entry, _, _ := strings.Cut(w.lastID, ";")
	if last, _ := a.redis.XRevRangeN(t.Context(), a.keys.Views(), "+", "-", 1).Result(); entry != last[0].ID {
		t.Fatalf("id %s does not begin with %s", w.lastID, last[0].ID)
	}
	w.close()
	for i := 4; i <= 2500; i++ {
		a.redis.XAdd(t.Context(), &redis.XAddArgs{Stream: a.keys.Views(), Values: []any{"event_id", "x", "count", i}})
	}
	c := event.Committed{ID: 1, From: "bronze", To: "gold", Filename: "1.mp4", Outcome: event.OutcomeStray, CommittedAt: time.Now()}
	a.redis.XAdd(t.Context(), &redis.XAddArgs{Stream: a.keys.Committed(), Values: c.Fields()})
	a.redis.XAdd(t.Context(), &redis.XAddArgs{Stream: a.keys.Views(), Values: []any{"event_id", "x", "count", 2501}})
	w = a.watch(w.lastID)
	committed, before := 0, ""
	for i := 4; i <= 2501 || committed == 0; { // within one millisecond, the commit may come after the last view
		e := w.next()
		id, _, _ := strings.Cut(w.lastID, ";")
		at, _, _ := strings.Cut(id, "-") // ids of two streams have no order within a millisecond
		if before != "" && entryid.Newer(before, at+"-0") {
			t.Fatalf("%s came after %s", id, before)
		}
		before = at + "-0"
		if strings.HasPrefix(e, "committed {") {
			committed++
			continue
		}
		if got := count(e); got != i {
			t.Fatalf("%d, want %d", got, i)
		}
		i++
	}
	if committed != 1 {
		t.Fatalf("%d commits", committed)
	}
	// While Redis is away the watcher stays.
	gate.Close()
	gate.Open()
	testserver.Eventually(t, "an event after the outage", 10*time.Second, func() error {
		if status, body := a.post("cid=1&count=9"); status != 200 {
			return errors.New(body)
		}
		return nil
	})
	if got := count(w.next()); got != 9 {
		t.Fatal(got)
	}
	bare := a.watch(entry) // an entry's id alone
	if got := count(bare.next()); got > 4 {
		t.Fatal(got)
	}
	a.wantEventsProblem("x")
	a.wantEventsProblem("1-1;2-2")
}

func TestTheProgressOfAMoveIsStreamed(t *testing.T) {
	a := start(t, options{})
	a.insert(1, "bronze", "1.mp4")
	w := a.watch("")
	a.post("cid=1&count=1500")
	w.next() // the view
	if err := a.redis.XReadGroup(t.Context(), readTwo(a)).Err(); err != nil {
		t.Fatal(err)
	}
	store := state.NewStore(state.Options{Redis: a.redis, Keys: a.keys, TTL: time.Hour, Lease: time.Minute})
	st, _, err := store.Get(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.SetProgress(t.Context(), 1, state.Progress{EventID: st.EventID, From: "bronze", To: "gold", BytesDone: 3, BytesTotal: 4}); err != nil {
		t.Fatal(err)
	}
	for {
		if got := w.next(); strings.HasPrefix(got, "progress ") {
			if !strings.Contains(got, `"bytes_done":"3","bytes_total":"4"`) {
				t.Fatal(got)
			}
			break
		}
	}
}

func (a *api) wantEventsProblem(lastID string) {
	a.t.Helper()
	req, _ := http.NewRequestWithContext(a.t.Context(), "GET", a.url+"/v1/events", nil)
	req.Header.Set("Last-Event-ID", lastID)
	resp, err := a.client.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	if body := read(a.t, resp); resp.StatusCode != 400 {
		a.t.Fatalf("%s: %d %s", lastID, resp.StatusCode, body)
	}
}

func TestThePagesOfTheServiceItself(t *testing.T) {
	a := start(t, options{})
	a.insert(1, "bronze", "1.mp4")
	a.post("cid=1&count=1")
	for path, want := range map[string]string{
		"/": "<title>Tierflow", "/openapi.yaml": "openapi: 3.1.0", "/healthz": "ok", "/readyz": "ready",
		"/metrics": `tierflow_http_requests_total{route="/post_sentence",status="2xx"} 1`,
	} {
		if status, body := a.do("GET", path, "", ""); status != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %.300s", path, status, body)
		}
		if status, body := a.do("HEAD", path, "", ""); status != 200 || body != "" {
			t.Errorf("HEAD %s: %d %s", path, status, body)
		}
	}
}
