package service_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestPostSentenceAnswersToTheByte(t *testing.T) {
	a := start(t, options{})
	a.insert(7, "bronze", "g.mp4")
	a.insert(8, "silver", "é \"x\"/<&>/😀.mp4")
	for _, c := range []struct{ contentType, body, want string }{
		{form, "cid=7&count=1964", `{"cid": "7", "count": "1964", "target": "silver", "db_level": "bronze", "filename": "g.mp4", "worker_id": null, "status": "update"}`},
		{form, "count=0&&x=1&cid=%37", `{"cid": "7", "count": "0", "target": "bronze", "db_level": "bronze", "filename": "g.mp4", "worker_id": null, "status": "done"}`},
		{form + "; charset=UTF-8", "cid=7&count=9223372036854775807", `{"cid": "7", "count": "9223372036854775807", "target": "gold", "db_level": "bronze", "filename": "g.mp4", "worker_id": null, "status": "update"}`},
		{jsonT, ` {"cid": 8, "count": "1000", "more": {"cid": [1, "}"]}} `, `{"cid": "8", "count": "1000", "target": "silver", "db_level": "silver", "filename": "\u00e9 \"x\"/<&>/\ud83d\ude00.mp4", "worker_id": null, "status": "done"}`},
		{"Application/JSON;charset=utf-8", `{"\u0063id":"\u0037","count":999}`, `{"cid": "7", "count": "999", "target": "bronze", "db_level": "bronze", "filename": "g.mp4", "worker_id": null, "status": "done"}`},
	} {
		resp := a.request("POST", "/post_sentence?cid=1&count=2", c.contentType, strings.NewReader(c.body))
		if got := read(t, resp); got != c.want || resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %d %s\n got %s\nwant %s", c.body, resp.StatusCode, resp.Header, got, c.want)
		}
		// The state is the answer with three more fields.
		v := a.lastView()
		st, err := a.redis.Get(t.Context(), a.keys.State(mustID(t, v["cid"].(string)))).Result()
		if err != nil || !strings.HasPrefix(st, strings.TrimSuffix(c.want, "}")+`, "event_id": "`+v["event_id"].(string)+`", "entry_id": "`) {
			t.Errorf("state %s, %v", st, err)
		}
	}
	if got := strings.Join(a.views(), " "); got != "7=1964 7=0 7=9223372036854775807 8=1000 7=999" {
		t.Fatalf("views: %s", got)
	}
	if v := a.lastView(); !event.ValidEventID(v["event_id"].(string)) || v["event_id"].(string)[14] != '7' || v["db_level"] != "bronze" {
		t.Fatalf("entry: %v", v)
	}
}

func TestBadInputOfTheTwoCallsIsRefusedAndChangesNothing(t *testing.T) {
	a := start(t, options{})
	a.insert(7, "bronze", "g.mp4")
	for _, c := range []struct {
		contentType, body string
		status            int
		kind, detail      string
	}{
		{form, "", 400, "malformed", "cid is missing"},
		{form, "CID=7", 400, "malformed", "cid is missing"},
		{form, "cid=7&count=1&cid=7", 400, "malformed", "cid is given twice"},
		{form, "cid=&count=1", 400, "malformed", "cid must be"},
		{form, "cid&count=1", 400, "malformed", "cid must be"},
		{form, "cid=0&count=1", 400, "malformed", "cid must be"},
		{form, "cid=07&count=1", 400, "malformed", "cid must be"},
		{form, "cid=+7&count=1", 400, "malformed", "cid must be"},
		{form, "cid=%2B7&count=1", 400, "malformed", "cid must be"},
		{form, "cid=-7&count=1", 400, "malformed", "cid must be"},
		{form, "cid=7.0&count=1", 400, "malformed", "cid must be"},
		{form, "cid=7e0&count=1", 400, "malformed", "cid must be"},
		{form, "cid=9223372036854775808&count=1", 400, "malformed", "cid must be"},
		{form, "cid=%zz&count=1", 400, "malformed", "percent-encoded"},
		{form, "cid=٧&count=1", 400, "malformed", "cid must be"},
		{jsonT, "", 400, "malformed", "JSON"},
		{jsonT, "{", 400, "malformed", "JSON"},
		{jsonT, `[]`, 400, "malformed", "JSON object"},
		{jsonT, `7`, 400, "malformed", "JSON object"},
		{jsonT, `{"cid":7,"count":1}x`, 400, "malformed", "JSON"},
		{jsonT, `{"cid":7,"count":1,"cid":7}`, 400, "malformed", "cid is given twice"},
		{jsonT, `{"cid":7,"count":1,"\u0063id":7}`, 400, "malformed", "cid is given twice"},
		{jsonT, `{"x":{"cid":7},"count":1}`, 400, "malformed", "cid is missing"},
		{jsonT, `{"cid":7.0,"count":1}`, 400, "malformed", "cid must be"},
		{jsonT, `{"cid":1e3,"count":1}`, 400, "malformed", "cid must be"},
		{jsonT, `{"cid":null,"count":1}`, 400, "malformed", "cid must be"},
		{jsonT, `{"cid":[7],"count":1}`, 400, "malformed", "cid must be"},
		{jsonT, `{"cid":true,"count":1}`, 400, "malformed", "cid must be"},
		{jsonT, `{"cid":" 7","count":1}`, 400, "malformed", "cid must be"},
		{"", "cid=7&count=1", 415, "unsupported-media-type", "Content-Type must be"},
		{"text/plain", "cid=7&count=1", 415, "unsupported-media-type", "Content-Type must be"},
		{"multipart/form-data; boundary=x", "cid=7&count=1", 415, "unsupported-media-type", "Content-Type must be"},
		{form, "cid=7&count=1&x=" + strings.Repeat("y", 64<<10), 413, "too-large", "65536"},
		{form, "cid=9&count=1", 404, "unknown-content", "9"},
	} {
		for _, path := range []string{"/post_sentence", "/update_sentence"} {
			a.wantProblem("POST", path, c.contentType, c.body, c.status, c.kind, c.detail)
		}
	}
	for _, body := range []string{"cid=7", "cid=7&count=", "cid=7&count=-1", "cid=7&count=01", "cid=7&count=1.5", "cid=7&count=1e3",
		"cid=7&count=9223372036854775808", "cid=7&count=1&count=1", "cid=7&count=0x1"} {
		a.wantProblem("POST", "/post_sentence", form, body, 400, "malformed", "count")
	}
	resp := a.request("POST", "/post_sentence", form, endless{}) // chunked, of unknown length
	if resp.Body.Close(); resp.StatusCode != 413 {
		t.Errorf("an endless body: %d", resp.StatusCode)
	}
	for _, path := range []string{"/post_sentence", "/update_sentence"} {
		for _, method := range []string{"GET", "PUT", "DELETE"} {
			a.wantProblem(method, path, "", "", 405, "method-not-allowed", method)
			resp := a.request(method, path, "", http.NoBody)
			if resp.Body.Close(); !strings.Contains(resp.Header.Get("Allow"), "POST") {
				t.Errorf("Allow: %q", resp.Header.Get("Allow"))
			}
		}
	}
	a.wantProblem("POST", "/nowhere", form, "", 404, "not-found", "/nowhere")
	if vs := a.views(); len(vs) > 0 {
		t.Fatalf("views: %v", vs)
	}
	if keys := a.redis.Keys(t.Context(), a.keys.State(7)).Val(); len(keys) > 0 {
		t.Fatalf("keys: %v", keys)
	}
}

// endless is a body without an end.
type endless struct{}

func (endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 'x'
	}
	return len(b), nil
}

func TestUpdateSentence(t *testing.T) {
	a := start(t, options{})
	for cid := 1; cid <= 5; cid++ {
		a.insert(cid, "bronze", fmt.Sprintf("%d.mp4", cid))
	}
	update := func(cid int) (int, string) {
		t.Helper()
		resp := a.request("POST", "/update_sentence", form, strings.NewReader(fmt.Sprintf("cid=%d", cid)))
		if resp.Header.Get("Content-Type") != "text/plain; charset=utf-8" {
			t.Errorf("Content-Type %q", resp.Header.Get("Content-Type"))
		}
		return resp.StatusCode, read(t, resp)
	}
	const again = "check your status again"
	store := state.NewStore(state.Options{Redis: a.redis, Keys: a.keys, TTL: time.Hour, Lease: time.Minute})

	if status, body := update(1); status != 200 || body != again {
		t.Errorf("an item without a state: %d %q", status, body)
	}
	a.post("cid=2&count=1")
	if status, body := update(2); status != 200 || body != "2" {
		t.Errorf("done and in its place: %d %q", status, body)
	}
	if status, body := a.do("POST", "/update_sentence", jsonT, `{"cid":"2"}`); status != 200 || body != "2" {
		t.Errorf("as JSON: %d %q", status, body)
	}
	a.post("cid=3&count=5000")
	if status, body := update(3); status != 200 || body != again {
		t.Errorf("a move is needed: %d %q", status, body)
	}

	t.Run("waits for a commit that is on its way, and answers as soon as it is there", func(t *testing.T) {
		emit(t, a, store, 3)
		start := time.Now()
		answered := make(chan string, 1)
		go func() {
			_, body := update(3)
			answered <- body
		}()
		select {
		case body := <-answered:
			t.Fatalf("answered before the commit: %q", body)
		case <-time.After(300 * time.Millisecond): // this is no wait for an event: nothing may happen
		}
		a.exec("UPDATE contents SET content_level = 'gold', generation = generation + 1 WHERE cid = 3")
		if body := <-answered; body != "3" || time.Since(start) > 1800*time.Millisecond {
			t.Fatalf("%q after %s", body, time.Since(start))
		}
	})
	t.Run("answers the sentence after two seconds without the commit", func(t *testing.T) {
		a.post("cid=4&count=5000")
		emit(t, a, store, 4)
		start := time.Now()
		if _, body := update(4); body != again || time.Since(start) < 1900*time.Millisecond || time.Since(start) > 4*time.Second {
			t.Fatalf("%q after %s", body, time.Since(start))
		}
	})
	t.Run("a row that was changed by hand does not agree", func(t *testing.T) {
		a.post("cid=5&count=1")
		a.exec("UPDATE contents SET content_level = 'gold' WHERE cid = 5")
		if _, body := update(5); body != again {
			t.Fatalf("%q", body)
		}
	})
}

func TestUpdateSentenceUsesTheLastCountOfTheRowWhenTheStateHasExpired(t *testing.T) {
	a := start(t, options{})
	for cid, c := range []struct {
		change string // of a row on bronze
		want   string
	}{
		1: {"", "check your status again"}, // never counted: no target is known
		2: {"view_count = 1", "2"},
		3: {"view_count = 5000", "check your status again"}, // its count needs gold
		4: {"view_count = 5000, content_level = 'gold', generation = 1", "4"},
		5: {"view_count = 5000, pinned_level = 'bronze'", "5"},
		6: {"view_count = 1, pinned_level = 'gold'", "check your status again"},
		7: {"generation = 2", "7"}, // it was moved back for a count of 0
	} {
		if cid == 0 {
			continue
		}
		a.insert(cid, "bronze", fmt.Sprintf("%d.mp4", cid))
		if c.change != "" {
			a.exec("UPDATE contents SET " + c.change + " WHERE cid = " + fmt.Sprint(cid))
		}
		if status, body := a.do("POST", "/update_sentence", form, fmt.Sprintf("cid=%d", cid)); status != 200 || body != c.want {
			t.Errorf("%s: %d %q, not %q", c.change, status, body, c.want)
		}
	}
	a.post("cid=2&count=1")
	if err := a.redis.Del(t.Context(), a.keys.State(2)).Err(); err != nil {
		t.Fatal(err)
	}
	if _, body := a.do("POST", "/update_sentence", form, "cid=2"); body != "2" {
		t.Errorf("after its state has expired: %q", body)
	}
}

// emit does what a relocator does: it takes the newest event of an item and emits its copy to the committer.
func emit(t *testing.T, a *api, store *state.Store, id item.ID) {
	t.Helper()
	st, ok, err := store.Get(t.Context(), id)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	token := state.NewToken(st.EventID, "w1", "r")
	if taken, who, err := store.Take(t.Context(), st.EntryID, id, token, "w1"); err != nil || taken != state.Mine {
		t.Fatal(taken, who, err)
	}
	now := time.Now()
	ok, err = store.Emit(t.Context(), st, token, event.Relocated{EventID: st.EventID, ID: id, From: st.DBLevel, To: st.Target,
		Filename: st.Filename, Method: "link", WorkerID: "w1", StartedAt: now, FinishedAt: now})
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
}

func TestARowThatIsWrittenBySQLIsUsedWithinASecond(t *testing.T) {
	a := start(t, options{})
	a.wantProblem("POST", "/post_sentence", form, "cid=7&count=1", 404, "unknown-content", "7")
	a.insert(7, "bronze", "g.mp4")
	if status, body := a.post("cid=7&count=1"); status != 200 {
		t.Fatalf("the unknown item was cached: %d %s", status, body)
	}
	a.exec("UPDATE contents SET filename = 'h.mp4' WHERE cid = 7")
	changed := time.Now()
	testserver.Eventually(t, "the new name", 3*time.Second, func() error {
		if _, body := a.post("cid=7&count=1"); !strings.Contains(body, `"h.mp4"`) {
			return errors.New(body)
		}
		return nil
	})
	if late := time.Since(changed); late > 1500*time.Millisecond {
		t.Errorf("the old row was used for %s", late)
	}
	a.exec("UPDATE contents SET content_level = 'gold' WHERE cid = 7")
	entry := event.Committed{EventID: "0198c5f2-0000-7000-8000-000000000000", ID: 7, From: "bronze", To: "gold", Filename: "h.mp4",
		Outcome: event.OutcomeCommitted, CommittedAt: time.Now()}
	if err := a.redis.XAdd(t.Context(), &redis.XAddArgs{Stream: a.keys.Committed(), Values: entry.Fields()}).Err(); err != nil {
		t.Fatal(err)
	}
	changed = time.Now()
	testserver.Eventually(t, "the new level", 3*time.Second, func() error {
		if _, body := a.post("cid=7&count=1"); !strings.Contains(body, `"db_level": "gold"`) {
			return errors.New(body)
		}
		return nil
	})
	if late := time.Since(changed); late > 500*time.Millisecond {
		t.Errorf("a commit was not noticed for %s", late)
	}
}

func TestAPinIsTheTargetWhateverTheCount(t *testing.T) {
	a := start(t, options{})
	a.insert(7, "bronze", "g.mp4")
	a.exec("UPDATE contents SET pinned_level = 'gold' WHERE cid = 7")
	if _, body := a.post("cid=7&count=1"); !strings.Contains(body, `"target": "gold"`) {
		t.Fatal(body)
	}
}
