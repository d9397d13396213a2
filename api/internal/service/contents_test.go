package service_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestAnItemIsRegisteredShownAndForgotten(t *testing.T) {
	a := start(t, options{})
	var c client.Item
	resp := a.request("POST", "/v1/contents", jsonT, strings.NewReader(`{"cid":7,"filename":"a/g.mp4"}`))
	if body := read(t, resp); resp.StatusCode != 201 || resp.Header.Get("Location") != "/v1/contents/7" {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	a.want(201, "POST", "/v1/contents", `{"cid":"8","filename":"h.mp4","level":"gold"}`, &c)
	if c.CID != 8 || c.Level != "gold" || c.State != nil || c.PinnedLevel != nil || c.Location.Path != "/srv/tierflow/gold/h.mp4" {
		t.Fatalf("%+v", c)
	}
	a.post("cid=7&count=1964")
	body := a.want(200, "GET", "/v1/contents/7", "", &c)
	if c.Level != "bronze" || c.State == nil || c.State.Count != 1964 || c.State.Target != "silver" || c.State.Status != "update" {
		t.Fatalf("%s", body)
	}
	if _, err := time.Parse("2006-01-02T15:04:05.000000Z", c.UpdateTime); err != nil {
		t.Fatal(err)
	}
	if body := a.want(200, "GET", "/v1/contents/7/location", "", nil); strings.TrimSpace(body) != `{"level":"bronze","path":"/srv/tierflow/bronze/a/g.mp4","generation":0}` {
		t.Fatal(body)
	}
	var list client.Items
	for path, want := range map[string]string{
		"/v1/contents":                              "[7 8]",
		"/v1/contents?limit=1":                      "[7]+7",
		"/v1/contents?limit=1&after=7":              "[8]+8",
		"/v1/contents?after=8":                      "[]",
		"/v1/contents?level=gold":                   "[8]",
		"/v1/contents?filename=a/g.mp4":             "[7]",
		"/v1/contents?filename=a/g.mp4&level=gold":  "[]",
		"/v1/contents?filename=nothing":             "[]",
		"/v1/contents?filename=a%2Fg.mp4%20&after=": "400",
	} {
		if want == "400" {
			a.wantProblem("GET", path, "", "", 400, "malformed", "after")
			continue
		}
		list.NextAfter, list.Contents = nil, nil
		a.want(200, "GET", path, "", &list)
		ids := []item.ID{}
		for _, c := range list.Contents {
			ids = append(ids, c.CID)
		}
		got := fmt.Sprint(ids)
		if list.NextAfter != nil {
			got += fmt.Sprintf("+%d", *list.NextAfter)
		}
		if got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	a.exec("INSERT INTO update_history (event_id, cid, old_level, new_level, prev_update_time, update_time, view_count, bytes, duration_us, worker_id) VALUES " +
		"('0198c5f2-0000-7000-8000-000000000001', 7, 'bronze', 'silver', '2026-01-01 00:00:00', '2026-01-02 03:04:05.000006', 1964, 10, 11, 'w')," +
		"('0198c5f2-0000-7000-8000-000000000002', 7, 'silver', 'gold', '2026-01-02 03:04:05.000006', '2026-01-03 00:00:00', 2964, 10, 11, 'w')")
	var history client.History
	a.want(200, "GET", "/v1/contents/7/history?limit=1", "", &history)
	if len(history.History) != 1 || history.History[0].NewLevel != "gold" || history.NextBefore == nil {
		t.Fatalf("%+v", history)
	}
	a.want(200, "GET", fmt.Sprintf("/v1/contents/7/history?before=%d", *history.NextBefore), "", &history)
	if h := history.History; len(h) != 1 || h[0].UpdateTime != "2026-01-02T03:04:05.000006Z" || h[0].DurationUS != 11 || history.NextBefore != nil {
		t.Fatalf("%+v", history)
	}

	a.redis.Set(t.Context(), a.keys.Lock(7), "relocating x", time.Minute)
	a.wantProblem("DELETE", "/v1/contents/7", "", "", 409, "conflict", "relocating x")
	a.redis.Del(t.Context(), a.keys.Lock(7))
	// Its lock has expired, and the committer is still away.
	emitted := state.State{ID: 7, Count: 1964, Target: "silver", DBLevel: "bronze", Filename: "a/g.mp4", Status: state.Done,
		EventID: "0198c5f2-0000-7000-8000-000000000003", EntryID: "1-0", UpdatedAt: time.Now()}
	a.redis.Set(t.Context(), a.keys.State(7), emitted.JSON(), time.Minute)
	a.wantProblem("DELETE", "/v1/contents/7", "", "", 409, "conflict", "its move to silver is made and not committed yet")
	emitted.DBLevel = "silver"
	a.redis.Set(t.Context(), a.keys.State(7), emitted.JSON(), time.Minute)
	a.want(204, "DELETE", "/v1/contents/7", "", nil)
	a.wantProblem("DELETE", "/v1/contents/7", "", "", 404, "unknown-content", "7")
	a.wantProblem("POST", "/post_sentence", form, "cid=7&count=1", 404, "unknown-content", "7")
	a.wantProblem("GET", "/v1/contents/7", "", "", 404, "unknown-content", "7")
	a.want(200, "GET", "/v1/contents/7/history", "", nil)
	if n := a.redis.Exists(t.Context(), a.keys.State(7)).Val(); n != 0 {
		t.Fatal("the state is still there")
	}
}

func TestBadInputUnderV1IsRefused(t *testing.T) {
	a := start(t, options{})
	a.wantProblem("POST", "/v1/contents", jsonT, "{\"cid\":9,\"filename\":\"caf\xe9.mp4\"}", 400, "malformed", "UTF-8")
	a.insert(7, "bronze", "dir/g.mp4")
	long := strings.Repeat("x", 256)
	for _, c := range []struct {
		method, path, body string
		status             int
		kind, detail       string
	}{
		{"POST", "/v1/contents", `{"cid":1}`, 400, "malformed", "filename is missing"},
		{"POST", "/v1/contents", `{"filename":"x"}`, 400, "malformed", "cid is missing"},
		{"POST", "/v1/contents", `{"cid":1,"cid":2,"filename":"x"}`, 400, "malformed", "cid is given twice"},
		{"POST", "/v1/contents", `{"cid":1.0,"filename":"x"}`, 400, "malformed", "cid must be"},
		{"POST", "/v1/contents", `{"cid":1,"filename":5}`, 400, "malformed", "filename must not be"},
		{"POST", "/v1/contents", `{"cid":1,"filename":"x","levle":"gold"}`, 400, "malformed", "levle"},
		{"POST", "/v1/contents", `{"cid":1,"filename":"x"`, 400, "malformed", "JSON"},
		{"POST", "/v1/contents", ``, 415, "unsupported-media-type", ""},
		{"POST", "/v1/contents", `{"cid":1,"filename":"../x"}`, 422, "unprocessable", ".."},
		{"POST", "/v1/contents", `{"cid":1,"filename":"/x"}`, 422, "unprocessable", "absolute"},
		{"POST", "/v1/contents", `{"cid":1,"filename":".tierflow/x"}`, 422, "unprocessable", ".tierflow"},
		{"POST", "/v1/contents", `{"cid":1,"filename":"` + long + `"}`, 422, "unprocessable", "255"},
		{"POST", "/v1/contents", `{"cid":1,"filename":"x","level":"iron"}`, 422, "unprocessable", "iron"},
		{"POST", "/v1/contents", `{"cid":7,"filename":"x"}`, 409, "conflict", "cid 7"},
		{"POST", "/v1/contents", `{"cid":1,"filename":"dir/g.mp4"}`, 409, "conflict", "item 7"},
		{"POST", "/v1/contents", `{"cid":1,"filename":"dir"}`, 409, "conflict", "item 7"},
		{"POST", "/v1/contents", `{"cid":1,"filename":"dir/g.mp4/a/b"}`, 409, "conflict", "item 7"},
		{"GET", "/v1/contents?level=glod", "", 422, "unprocessable", "list items of level glod: there is no such level; the levels are bronze, silver, gold"},
		{"GET", "/v1/contents?level=gold%20", "", 422, "unprocessable", "bronze, silver, gold"},
		{"GET", "/v1/contents?level=glod&filename=dir/g.mp4", "", 422, "unprocessable", "bronze, silver, gold"},
		{"GET", "/v1/contents?limit=0", "", 400, "malformed", "limit"},
		{"GET", "/v1/contents?limit=1001", "", 400, "malformed", "limit"},
		{"GET", "/v1/contents?limit=1&limit=2", "", 400, "malformed", "twice"},
		{"GET", "/v1/contents?after=-1", "", 400, "malformed", "after"},
		{"GET", "/v1/contents?x=1", "", 400, "malformed", "\"x\""},
		{"GET", "/v1/contents/x", "", 400, "malformed", "cid"},
		{"GET", "/v1/contents/07", "", 400, "malformed", "cid"},
		{"GET", "/v1/contents/9?x=1", "", 400, "malformed", "\"x\""},
		{"GET", "/v1/contents/9", "", 404, "unknown-content", "9"},
		{"GET", "/v1/contents/9/location", "", 404, "unknown-content", "9"},
		{"GET", "/v1/contents/9/file", "", 404, "unknown-content", "9"},
		{"GET", "/v1/contents/9/history", "", 404, "unknown-content", "9"},
		{"GET", "/v1/contents/7/history?before=x", "", 400, "malformed", "before"},
		{"GET", "/v1/contents/7/nothing", "", 404, "not-found", "/openapi.yaml"},
		{"PUT", "/v1/contents/7", "", 405, "method-not-allowed", "PUT"},
		{"PUT", "/v1/contents/7/pin", `{}`, 400, "malformed", "level is missing"},
		{"PUT", "/v1/contents/7/pin", `{"level":"iron"}`, 422, "unprocessable", "iron"},
		{"PUT", "/v1/contents/9/pin", `{"level":"gold"}`, 404, "unknown-content", "9"},
		{"DELETE", "/v1/contents/9/pin", "", 404, "unknown-content", "9"},
		{"GET", "/v1/levels?x", "", 400, "malformed", "\"x\""},
		{"PUT", "/v1/levels", `{"levels":[{"level":"a"}]}`, 400, "malformed", "levels[0]"},
		{"PUT", "/v1/levels", `{"levels":[]}`, 422, "unprocessable", "no levels"},
		{"PUT", "/v1/levels", `{"levels":[{"level":"a","min_counts":1.5,"path":"/a"}]}`, 400, "malformed", "min_counts"},
		{"GET", "/v1/relocations?after=x", "", 400, "malformed", "after"},
		{"GET", "/v1/relocations?limit=x", "", 400, "malformed", "limit"},
		{"GET", "/v1/dead?after=1", "", 400, "malformed", "after"},
		{"POST", "/v1/dead/x/retry", "", 400, "malformed", "id"},
		{"POST", "/v1/dead/1-1/retry", "", 404, "not-found", "1-1"},
		{"DELETE", "/v1/dead/1-1", "", 404, "not-found", "1-1"},
		{"POST", "/v1/pause?x=1", "", 400, "malformed", "\"x\""},
		{"GET", "/v1/pause", "", 405, "method-not-allowed", "POST"},
		{"POST", "/v1/contents", `{"cid":1,"filename":"` + strings.Repeat("x", 70_000) + `"}`, 413, "too-large", ""},
	} {
		contentType := ""
		if c.body != "" {
			contentType = jsonT
		}
		a.wantProblem(c.method, c.path, contentType, c.body, c.status, c.kind, c.detail)
	}
	if vs := a.views(); len(vs) != 0 {
		t.Fatalf("views %v", vs)
	}
}

func TestTheApiTellsAWebServerWhichFileToSend(t *testing.T) {
	a := start(t, options{})
	a.insert(1, "bronze", "a b/ü%?#.mp4")
	a.insert(2, "gold", "hls")
	a.insert(3, "gold", "../../etc/passwd")
	for path, want := range map[string]string{
		"1/file":                     "/tiers/bronze/a%20b/%C3%BC%25%3F%23.mp4",
		"2/file":                     "/tiers/gold/hls",
		"2/file/index.m3u8":          "/tiers/gold/hls/index.m3u8",
		"2/file/a/b%20c%2Fd/e%3F.ts": "/tiers/gold/hls/a/b%20c/d/e%3F.ts",
		// The query is ignored, whatever it is.
		"2/file?":                                "/tiers/gold/hls",
		"2/file?token=a&token=b":                 "/tiers/gold/hls",
		"2/file/index.m3u8?_HLS_msn=273&x=%zz;y": "/tiers/gold/hls/index.m3u8",
	} {
		for _, method := range []string{"GET", "HEAD"} {
			resp := a.request(method, "/v1/contents/"+path, "", http.NoBody)
			body := read(t, resp)
			if got := resp.Header.Get("X-Accel-Redirect"); resp.StatusCode != 200 || got != want || body != "" || resp.Header.Get("Content-Type") != "" {
				t.Errorf("%s %s: %d %q %q", method, path, resp.StatusCode, got, resp.Header)
			}
		}
	}
	for _, sub := range []string{"", "../x", "a/../../x", "a//b", "a/", "%2e%2e/x", "..%2Fx", "a/%00", "./a", "."} {
		a.wantProblem("GET", "/v1/contents/2/file/"+sub, "", "", 400, "malformed", "inside the item")
	}
	a.wantProblem("GET", "/v1/contents/3/file", "", "", 422, "unprocessable", "..")
}

func TestOnlyOneOfSeveralConflictingNamesIsRegistered(t *testing.T) {
	a := start(t, options{})
	for round := range 5 {
		names := []string{"d%d", "d%d/x", "d%d/x/y", "d%d", "d%d/x/y/z"}
		statuses := make([]int, len(names))
		var wg sync.WaitGroup
		for i, name := range names {
			wg.Go(func() {
				statuses[i], _ = a.do("POST", "/v1/contents", jsonT,
					fmt.Sprintf(`{"cid":%d,"filename":%q}`, round*10+i+1, fmt.Sprintf(name, round)))
			})
		}
		wg.Wait()
		made := 0
		for _, s := range statuses {
			if s == 201 {
				made++
			} else if s != 409 {
				t.Fatalf("%v", statuses)
			}
		}
		if made != 1 {
			t.Fatalf("%d were registered: %v", made, statuses)
		}
	}
	// Neighbours in the order of names are no conflict.
	for i, name := range []string{"d0.mp4", "d0-x", "d00", "d", "D0", "d0\tx", "t/\tx", "u0\tx", "u"} {
		body, err := json.Marshal(map[string]any{"cid": 100 + i, "filename": name})
		if err != nil {
			t.Fatal(err)
		}
		a.want(201, "POST", "/v1/contents", string(body), nil)
	}
	a.wantProblem("POST", "/v1/contents", jsonT, `{"cid":200,"filename":"t"}`, 409, "conflict", "would lie inside")
}

func TestAPinPostsTheLastCountAgain(t *testing.T) {
	a := start(t, options{})
	a.insert(7, "bronze", "g.mp4")
	a.post("cid=7&count=5")
	var c client.Item
	a.want(200, "PUT", "/v1/contents/7/pin", `{"level":"gold"}`, &c)
	if c.PinnedLevel == nil || *c.PinnedLevel != "gold" || c.State.Target != "gold" || c.State.Status != "update" {
		t.Fatalf("%+v", c)
	}
	if v := a.lastView(); v["count"] != "5" || v["target"] != "gold" {
		t.Fatalf("%v", v)
	}
	if _, body := a.post("cid=7&count=6"); !strings.Contains(body, `"target": "gold"`) {
		t.Fatalf("the pin has no effect at once: %s", body)
	}
	a.want(200, "DELETE", "/v1/contents/7/pin", "", &c)
	if c.PinnedLevel != nil || c.State.Target != "bronze" || c.State.Status != "done" || c.State.Count != 6 {
		t.Fatalf("%+v", c)
	}
	for _, level := range []string{"gold ", " ", "Gold"} { // what MySQL takes for another
		a.wantProblem("PUT", "/v1/contents/7/pin", jsonT, fmt.Sprintf(`{"level":%q}`, level), 422, "unprocessable", fmt.Sprintf("no level %q", level))
		a.wantProblem("POST", "/v1/contents", jsonT, fmt.Sprintf(`{"cid":9,"filename":"i","level":%q}`, level), 422, "unprocessable",
			fmt.Sprintf("no level %q", level))
	}
	a.insert(8, "gold", "h.mp4")
	a.exec("UPDATE contents SET view_count = 2500 WHERE cid = 8")
	a.want(200, "PUT", "/v1/contents/8/pin", `{"level":"silver"}`, nil)
	if v := a.lastView(); v["count"] != "2500" {
		t.Fatalf("without a state the row's count is the last one: %v", v)
	}
}

func TestAPinNeverUndoesACountThatIsPostedMeanwhile(t *testing.T) {
	a := start(t, options{})
	a.insert(7, "bronze", "g.mp4")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			a.do("PUT", "/v1/contents/7/pin", jsonT, `{"level":"gold"}`)
			a.do("DELETE", "/v1/contents/7/pin", "", "")
		}
	})
	last := ""
	for i := range 300 {
		last = fmt.Sprint(i)
		a.post("cid=7&count=" + last)
	}
	cancel()
	wg.Wait()
	seen := -1
	for _, v := range a.views() {
		var n int
		fmt.Sscanf(v, "7=%d", &n)
		if n < seen {
			t.Fatalf("%d came after %d", n, seen)
		}
		seen = n
	}
	if seen != 299 {
		t.Fatalf("the last count is %d", seen)
	}
}

func TestLevelsAreReplacedAsAWholeAndItemsAreReevaluated(t *testing.T) {
	a := start(t, options{})
	a.insert(1, "bronze", "1") // 500 views: silver by the new levels
	a.insert(2, "bronze", "2") // 10 views: stays
	a.insert(3, "silver", "3") // no state, 1500 views in the row: gold
	a.insert(4, "gold", "4")   // never counted, put there by hand: stays
	a.insert(5, "bronze", "5") // 500 views, but pinned
	a.exec("UPDATE contents SET view_count = 1500, generation = 1 WHERE cid = 3")
	a.exec("UPDATE contents SET pinned_level = 'bronze' WHERE cid = 5")
	for _, post := range []string{"cid=1&count=500", "cid=2&count=10", "cid=5&count=500"} {
		a.post(post)
	}
	var ls client.Levels
	text := a.want(200, "GET", "/v1/levels", "", &ls)
	if len(ls.Levels) != 3 || ls.Levels[0].Level != "bronze" || *ls.Levels[0].MaxCounts != 999 || ls.Levels[2].MaxCounts != nil ||
		ls.Levels[1].Path != "/srv/tierflow/silver" || ls.Levels[0].Contents == nil || *ls.Levels[0].Contents != 3 {
		t.Fatal(text)
	}
	a.exec("UPDATE `level` SET tier_id = 'T1' WHERE content_level = 'bronze'")
	a.want(200, "PUT", "/v1/levels", text, &ls) // what was read can be written
	if ls.Levels[0].TierID != "T1" {
		t.Fatalf("the tier's id is gone: %+v", ls)
	}
	a.wantProblem("PUT", "/v1/levels", jsonT, `{"levels":[{"level":"bronze","min_counts":5,"max_counts":9,"path":"x"},{"level":"bronze","min_counts":7,"max_counts":20,"path":"/y"}]}`,
		422, "unprocessable", "must start at 0")
	p := a.wantProblem("PUT", "/v1/levels", jsonT, `{"levels":[{"level":"bronze","min_counts":5,"max_counts":9,"path":"x"},{"level":"bronze","min_counts":7,"max_counts":20,"path":"/y"}]}`,
		422, "unprocessable", "overlaps")
	for _, part := range []string{"twice", "not a clean absolute path", "no upper end"} {
		if !strings.Contains(p.Detail, part) {
			t.Errorf("%q is not in %s", part, p.Detail)
		}
	}
	a.wantProblem("PUT", "/v1/levels", jsonT, `{"levels":[{"level":"bronze","min_counts":0,"max_counts":999,"path":"/a"},{"level":"gold","min_counts":1000,"path":"/b"}]}`,
		409, "conflict", "silver")
	a.want(200, "GET", "/v1/levels", "", &ls)
	if len(ls.Levels) != 3 || *ls.Levels[1].MaxCounts != 1999 {
		t.Fatalf("a refused change has changed something: %+v", ls)
	}
	before := len(a.views())
	a.want(200, "PUT", "/v1/levels", `{"levels":[
		{"level":"gold","min_counts":1000,"path":"/t/gold"},
		{"level":"bronze","min_counts":0,"max_counts":99,"path":"/t/bronze"},
		{"level":"silver","min_counts":100,"max_counts":999,"path":"/t/silver"}]}`, &ls)
	if ls.Levels[2].Path != "/t/gold" || ls.Levels[0].TierID != "T1" {
		t.Fatalf("%+v", ls)
	}
	testserver.Eventually(t, "two views", 10*time.Second, func() error {
		if got := strings.Join(a.views()[before:], " "); got != "1=500 3=1500" {
			return errors.New(got)
		}
		return nil
	})
	if _, body := a.post("cid=2&count=150"); !strings.Contains(body, `"target": "silver"`) {
		t.Fatalf("the new levels do not serve at once: %s", body)
	}
	// The same once more: what is on its way is left alone.
	before = len(a.views())
	text = a.want(200, "GET", "/v1/levels", "", nil)
	a.want(200, "PUT", "/v1/levels", text, nil)
	a.want(200, "PUT", "/v1/levels", strings.Replace(text, "/t/gold", "/t/g", 1), nil)
	a.insert(6, "bronze", "6")
	a.exec("UPDATE contents SET view_count = 5000 WHERE cid = 6")
	a.want(200, "PUT", "/v1/levels", text, nil)
	testserver.Eventually(t, "one view", 10*time.Second, func() error {
		if got := strings.Join(a.views()[before:], " "); got != "6=5000" {
			return errors.New(got)
		}
		return nil
	})
}

func TestALevelThatNothingUsesCanGo(t *testing.T) {
	a := start(t, options{})
	var ls client.Levels
	a.want(200, "PUT", "/v1/levels", `{"levels":[{"level":"one","min_counts":0,"path":"/one"}]}`, &ls)
	if len(ls.Levels) != 1 || ls.Levels[0].Level != "one" {
		t.Fatalf("%+v", ls)
	}
	var c client.Item
	a.want(201, "POST", "/v1/contents", `{"cid":1,"filename":"x"}`, &c)
	if c.Level != "one" {
		t.Fatalf("%+v", c)
	}
}
