package service_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// batchResult is a client.Batch whose JSON has every field that an answer of 200 must have.
type batchResult struct{ client.Batch }

func (b *batchResult) UnmarshalJSON(data []byte) error {
	var fields map[string]any
	if err := json.Unmarshal(data, &fields); err != nil {
		return err
	}
	if fields["accepted"] == nil || fields["refused_total"] == nil || fields["refused"] == nil || fields["lines_done"] != nil {
		return fmt.Errorf("not as it should be: %s", data)
	}
	return json.Unmarshal(data, &b.Batch)
}

func (a *api) batch(body io.Reader) batchResult {
	a.t.Helper()
	resp := a.request("POST", "/v1/views", ndjson, body)
	text := read(a.t, resp)
	if resp.StatusCode != 200 {
		a.t.Fatalf("batch: %d %s", resp.StatusCode, text)
	}
	var b batchResult
	if err := json.Unmarshal([]byte(text), &b); err != nil {
		a.t.Fatal(err)
	}
	return b
}

func TestOneViewUnderV1(t *testing.T) {
	a := start(t, options{})
	a.insert(7, "bronze", "g.mp4")
	var got client.Accepted
	a.want(202, "POST", "/v1/views", `{"cid":7,"count":1964}`, &got)
	if !event.ValidEventID(got.EventID) || got.Status != "update" || got.Target != "silver" || a.lastView()["event_id"] != got.EventID {
		t.Fatalf("%+v", got)
	}
	a.want(202, "POST", "/v1/views", `{"cid":7,"count":1}`, &got)
	if got.Status != "done" || got.Target != "bronze" {
		t.Fatalf("%+v", got)
	}
	a.wantProblem("POST", "/v1/views", form, "cid=7&count=1", 415, "unsupported-media-type", "x-ndjson")
	a.wantProblem("POST", "/v1/views", jsonT, `{"cid":7}`, 400, "malformed", "count is missing")
	a.wantProblem("POST", "/v1/views", jsonT, `{"cid":7,"count":7.0}`, 400, "malformed", "count must be")
	a.wantProblem("POST", "/v1/views", jsonT, `{"cid":8,"count":7}`, 404, "unknown-content", "8")
	a.wantProblem("POST", "/v1/views?x=1", jsonT, `{"cid":7,"count":7}`, 400, "malformed", `"x"`)
	a.wantProblem("GET", "/v1/views", "", "", 405, "method-not-allowed", "POST")
	if n := len(a.views()); n != 2 {
		t.Fatalf("%d views", n)
	}
}

func TestABatchAcceptsWhatIsGoodAndNamesWhatIsNot(t *testing.T) {
	a := start(t, options{})
	for cid := 1; cid <= 3; cid++ {
		a.insert(cid, "bronze", fmt.Sprintf("%d.mp4", cid))
	}
	lines := []string{
		`{"cid":1,"count":1}`,
		``,
		`{"cid":"2","count":"2","x":null}` + "\r",
		`{"cid":99,"count":2}`,
		`{"cid":1,"count":`,
		`  `,
		`{"cid":1,"count":2,"pad":"` + strings.Repeat("x", 4096) + `"}`,
		`{"cid":1,"count":3,"pad":"` + strings.Repeat("x", 200<<10) + `"}`,
		`{"cid":1,"count":4}`,
		`{"cid":-1,"count":4}`,
		`{"cid":3,"count":5}`, // without a newline
	}
	got := a.batch(strings.NewReader(strings.Join(lines, "\n")))
	if got.Accepted != 4 || got.RefusedTotal != 5 {
		t.Fatalf("%+v", got)
	}
	var refused []string
	for _, r := range got.Refused {
		refused = append(refused, fmt.Sprint(r.Line, r.Type))
	}
	want := []string{"4/problems/unknown-content", "5/problems/malformed", "7/problems/too-large", "8/problems/too-large", "10/problems/malformed"}
	if !slices.Equal(refused, want) {
		t.Fatalf("refused %v", refused)
	}
	views := a.views()
	slices.Sort(views)
	if !slices.Equal(views, []string{"1=1", "1=4", "2=2", "3=5"}) {
		t.Fatalf("views %v", views)
	}
	for _, empty := range []string{"", "\n", "\r\n \n"} {
		if got := a.batch(strings.NewReader(empty)); got.Accepted != 0 || got.RefusedTotal != 0 {
			t.Fatalf("empty: %+v", got)
		}
	}
	if got := a.batch(strings.NewReader(strings.Repeat("x\n", 3000))); got.RefusedTotal != 3000 || len(got.Refused) != 1000 ||
		got.Refused[999].Line != 1000 {
		t.Fatalf("%d refused, %d named", got.RefusedTotal, len(got.Refused))
	}
	// The first line is known to be refused only when the part with that line has been looked up.
	if got := a.batch(strings.NewReader("{\"cid\":99,\"count\":1}\n" + strings.Repeat("x\n", 3000))); len(got.Refused) != 1000 ||
		got.Refused[0].Line != 1 || got.Refused[999].Line != 1000 {
		t.Fatalf("%d named, from line %d", len(got.Refused), got.Refused[0].Line)
	}
}

func TestAByteOrderMarkBeforeTheFirstLineOfABatchIsSkipped(t *testing.T) {
	a := start(t, options{})
	a.insert(1, "bronze", "1.mp4")
	const mark, line = "\ufeff", `{"cid":1,"count":2}`
	for body, want := range map[string]string{
		mark + line:                       "1 accepted, []",
		mark + "\n" + line:                "1 accepted, []",
		mark:                              "0 accepted, []",
		line + "\n" + mark + line:         "1 accepted, [2]", // before another line it is an error
		mark + mark + line + "\n" + line:  "1 accepted, [1]",
		mark[:2] + line + "\n" + line:     "1 accepted, [1]",
		mark + strings.Repeat(" ", 4<<10): "0 accepted, []", // the mark is not part of the line
	} {
		got := a.batch(strings.NewReader(body))
		refused := []int64{}
		for _, r := range got.Refused {
			refused = append(refused, r.Line)
		}
		if s := fmt.Sprintf("%d accepted, %v", got.Accepted, refused); s != want {
			t.Errorf("%.40q: %s, want %s", body, s, want)
		}
	}
}

func TestALongBatchKeepsTheOrderOfEachItem(t *testing.T) {
	a := start(t, options{})
	for cid := 1; cid <= 5; cid++ {
		a.insert(cid, "bronze", fmt.Sprintf("%d.mp4", cid))
	}
	const n = 20_000
	pr, pw := io.Pipe()
	go func() {
		w := bufio.NewWriter(pw)
		for i := range n {
			fmt.Fprintf(w, "{\"cid\":%d,\"count\":%d}\n", i%5+1, i)
		}
		w.Flush()
		pw.Close()
	}()
	if got := a.batch(pr); got.Accepted != n || got.RefusedTotal != 0 {
		t.Fatalf("%+v", got)
	}
	last := map[string]int{}
	views := a.views()
	for _, v := range views {
		var cid string
		var count int
		if _, err := fmt.Sscanf(strings.Replace(v, "=", " ", 1), "%s %d", &cid, &count); err != nil {
			t.Fatal(err)
		}
		if before, ok := last[cid]; ok && count <= before {
			t.Fatalf("item %s: %d after %d", cid, count, before)
		}
		last[cid] = count
	}
	if len(views) != n {
		t.Fatalf("%d views", len(views))
	}
}

func TestMemoryIsFlatInTheSizeOfABatch(t *testing.T) {
	a := start(t, options{})
	// The lines of these 64 MiB are refused, so only the batch itself could grow.
	line := []byte(strings.Repeat(" ", 4000) + "x\n")
	peak := make(chan uint64)
	pr, pw := io.Pipe()
	go func() {
		var most uint64
		for i := range 16_000 {
			if _, err := pw.Write(line); err != nil {
				break
			}
			if i%2000 == 0 {
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				most = max(most, m.HeapAlloc)
			}
		}
		pw.Close()
		peak <- most
	}()
	if got := a.batch(pr); got.RefusedTotal != 16_000 {
		t.Fatalf("%d refused", got.RefusedTotal)
	}
	if most := <-peak; most > 32<<20 {
		t.Fatalf("%d MiB in use", most>>20)
	}
}

func TestWhatHasArrivedOfABatchIsNotHeldBackForTheRest(t *testing.T) {
	a := start(t, options{})
	a.insert(1, "bronze", "1.mp4")
	pr, pw := io.Pipe()
	done := make(chan batchResult, 1)
	go func() { done <- a.batch(pr) }()
	for i := 1; i <= 3; i++ {
		fmt.Fprintf(pw, "{\"cid\":1,\"count\":%d}\n", i)
		testserver.Eventually(t, "the line in the stream", 5*time.Second, func() error {
			if vs := a.views(); len(vs) != i {
				return fmt.Errorf("%v", vs)
			}
			return nil
		})
	}
	pw.Close()
	if got := <-done; got.Accepted != 3 {
		t.Fatalf("%+v", got)
	}
}

func TestABatchThatLosesRedisSaysHowFarItCame(t *testing.T) {
	gate, url := testserver.RedisGate(t, testserver.Redis(t))
	a := start(t, options{redisURL: url})
	a.insert(1, "bronze", "1.mp4")
	pr, pw := io.Pipe()
	type reply struct {
		status int
		body   string
	}
	done := make(chan reply, 1)
	go func() {
		resp := a.request("POST", "/v1/views", ndjson, pr)
		done <- reply{resp.StatusCode, read(t, resp)}
	}()
	for i := range 10 {
		fmt.Fprintf(pw, "{\"cid\":1,\"count\":%d}\nbroken\n", i)
	}
	testserver.Eventually(t, "the api knows that ten are in the stream", 5*time.Second, func() error {
		if _, m := a.do("GET", "/metrics", "", ""); !strings.Contains(m, "tierflow_ingest_events_total 10\n") {
			return fmt.Errorf("%v", a.views())
		}
		return nil
	})
	gate.Close()
	fmt.Fprint(pw, "{\"cid\":1,\"count\":11}\n")
	got := <-done
	pw.Close()
	var p client.Problem
	if err := json.Unmarshal([]byte(got.body), &p); err != nil {
		t.Fatal(err)
	}
	if got.status != 503 || p.Type != "/problems/unavailable" || p.Batch == nil || p.Accepted != 10 || *p.LinesDone != 20 ||
		!strings.Contains(got.body, `"refused_total":10`) {
		t.Fatalf("%d %s", got.status, got.body)
	}
	if vs := a.views(); len(vs) != 10 {
		t.Fatalf("%v", vs)
	}
}

func TestABodyThatBreaksOffKeepsItsWholeLines(t *testing.T) {
	a := start(t, options{})
	a.insert(1, "bronze", "1.mp4")
	pr, pw := io.Pipe()
	go func() {
		fmt.Fprint(pw, "{\"cid\":1,\"count\":1}\n{\"cid\":1,\"count\":2")
		pw.CloseWithError(errors.New("gone"))
	}()
	resp, err := a.client.Post(a.url+"/v1/views", ndjson, pr)
	if err == nil {
		resp.Body.Close()
	}
	testserver.Eventually(t, "the whole line", 5*time.Second, func() error {
		if vs := a.views(); !slices.Equal(vs, []string{"1=1"}) {
			return fmt.Errorf("%v", vs)
		}
		return nil
	})
}

func TestTheBacklogHasALimit(t *testing.T) {
	a := start(t, options{maxBacklog: "5"})
	a.insert(1, "bronze", "1.mp4")
	for range 5 {
		if status, body := a.post("cid=1&count=1"); status != 200 {
			t.Fatalf("%d %s", status, body)
		}
	}
	a.wantProblem("POST", "/post_sentence", form, "cid=1&count=1", 503, "backlog-full", "limit is 5")
	a.wantProblem("POST", "/v1/views", ndjson, `{"cid":1,"count":1}`, 503, "backlog-full", "limit is 5")
	// A relocator settles two.
	ms, err := a.redis.XReadGroup(t.Context(), readTwo(a)).Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range ms[0].Messages {
		a.redis.XAck(t.Context(), a.keys.Views(), "relocator", m.ID)
	}
	testserver.Eventually(t, "room", 5*time.Second, func() error {
		if status, body := a.post("cid=1&count=1"); status != 200 {
			return errors.New(body)
		}
		return nil
	})
	if n := len(a.views()); n != 6 {
		t.Fatalf("%d views", n)
	}
}
