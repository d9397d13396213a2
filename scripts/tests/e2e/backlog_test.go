package e2e_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestAThousandEventsDuringAMoveCostOneFurtherMoveToWhereTheLastCountSays(t *testing.T) {
	w := start(t, options{settings: slowly})
	for id, last := range map[item.ID]item.Count{1: 1500, 2: 2000} {
		w.add(id, "bronze", big)
		w.post(id, 5000)
		w.waitCopying(id, "relocator-1")
		var views []client.View
		for n := range item.Count(999) {
			views = append(views, client.View{CID: id, Count: n * 7 % 3000})
		}
		w.must("post a batch", w.PostAll(t.Context(), append(views, client.View{CID: id, Count: last})))
		if holder := w.Redis.Get(t.Context(), w.Keys.Lock(id)).Val(); !strings.HasPrefix(holder, "relocating ") {
			t.Fatalf("the move was over before the events were there: the lock is %q", holder)
		}
	}
	w.checkSettled()
	for id, want := range map[item.ID]int{1: 2, 2: 1} { // gold, then silver; gold, where it stays
		if n := w.moves(id); n != want {
			t.Errorf("item %s was moved %d times, want %d", id, n, want)
		}
	}
}

func TestWhoeverIsAwayViewsAreAcceptedUpToTheLimitAndNoneOfThemIsLost(t *testing.T) {
	const limit = 150
	gate, dsn := testserver.MySQLGate(t, testserver.MySQL(t))
	w := start(t, options{mysqlDSN: dsn, settings: map[string]string{"TIERFLOW_MAX_BACKLOG": fmt.Sprint(limit)}})
	const n = 200
	for id := item.ID(1); id <= n; id++ {
		w.add(id, "bronze", 1000)
	}
	store := state.NewStore(state.Options{Redis: w.Redis, Keys: w.Keys})
	for _, c := range []struct {
		who        string
		away, back func()
	}{
		{"relocators", func() { w.must("kill", w.Relocators[0].Kill()) }, func() { w.must("start", w.Relocators[0].Start(t.Context())) }},
		{"committer", func() { w.must("kill", w.Committer.Kill()) }, func() { w.must("start", w.Committer.Start(t.Context())) }},
		{"MySQL", gate.Close, gate.Open},
	} {
		for id := item.ID(1); id <= n; id++ { // now the api knows the item
			w.wantAccepted(id, 10)
		}
		w.checkSettled()
		c.away()
		var accepted, refused int
		for id := item.ID(1); id <= n; id++ {
			switch status, retryAfter, body := w.postWithHeader(id, 1500); {
			case status == http.StatusOK:
				accepted++
				w.Posted(id, 1500)
			case status == http.StatusServiceUnavailable && strings.Contains(body, "/problems/backlog-full") && retryAfter != "":
				refused++
			default:
				t.Fatalf("%s away: %d %s, Retry-After %q", c.who, status, body, retryAfter)
			}
			// An entry that goes from one stream to the next during the count counts twice. A backlog that is really too
			// long stays so.
			testserver.Eventually(t, c.who+" away: the backlog keeps its limit", patience, func() error {
				if n, err := store.Unsettled(t.Context()); err != nil || n > limit {
					return fmt.Errorf("%d entries are not settled (%v)", n, err)
				}
				return nil
			})
		}
		if accepted < limit/2 || refused == 0 {
			t.Errorf("%s away: %d accepted, %d refused", c.who, accepted, refused)
		}
		c.back()
		w.wantAccepted(1, 10)
		w.checkSettled() // every accepted count, and no other
	}
}

// postWithHeader posts a view event, and returns the answer unchanged, with its header Retry-After.
func (w *world) postWithHeader(id item.ID, count item.Count) (status int, retryAfter, body string) {
	w.t.Helper()
	web := http.Client{Timeout: 30 * time.Second}
	r, err := web.Post("http://"+w.API.Addr+"/post_sentence", "application/x-www-form-urlencoded",
		strings.NewReader(fmt.Sprintf("cid=%s&count=%s", id, count)))
	w.must("post", err)
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	w.must("read the answer", err)
	return r.StatusCode, r.Header.Get("Retry-After"), string(b)
}
