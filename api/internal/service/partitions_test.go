package service_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/state"
)

func TestSeveralPartitionsLookLikeOneFromOutside(t *testing.T) {
	a := start(t, options{partitions: 4})
	const n = 12
	for id := 1; id <= n; id++ {
		a.insert(id, "bronze", fmt.Sprintf("%d.mp4", id))
	}
	w := a.watch("")
	for id := 1; id <= n; id++ {
		a.post(fmt.Sprintf("cid=%d&count=1500", id))
	}
	seen := map[string]bool{}
	last := ""
	for range n {
		_, rest, _ := strings.Cut(w.next(), `"cid":"`)
		cid, _, _ := strings.Cut(rest, `"`)
		seen[cid] = true
		if last = w.lastID; !strings.HasPrefix(last, "p0") || !strings.Contains(last, ":") {
			t.Fatalf("an event's id is %s", last)
		}
	}
	if len(seen) != n {
		t.Fatalf("events of %d items", len(seen))
	}
	w.close()
	a.post("cid=1&count=2500")
	again := a.watch(last) // and the events of the last seconds once more
	for {
		if e := again.next(); strings.Contains(e, `"count":"2500"`) {
			break
		}
	}

	store := state.NewStore(state.Options{Redis: a.redis, Keys: a.keys, TTL: time.Hour, Lease: time.Minute})
	for _, k := range a.keys.Each() {
		ms, err := a.redis.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: state.GroupRelocator, Consumer: "w", Streams: []string{k.Views(), ">"}, Block: -1}).Result()
		if err != nil {
			t.Fatal(err) // twelve items leave no partition empty
		}
		for _, m := range ms[0].Messages {
			fields := map[string]string{}
			for f, v := range m.Values {
				fields[f] = v.(string)
			}
			if fields["count"] == "2500" {
				continue
			}
			if ok, err := store.DeadLetter(t.Context(), state.GroupRelocator, "w", fields, event.Failure{Stage: "relocate", Reason: "conflict",
				SourceStream: k.Views(), SourceID: m.ID, FailedAt: time.Now()}); err != nil || !ok {
				t.Fatal(ok, err)
			}
		}
	}
	var moves client.Relocations
	a.want(200, "GET", "/v1/relocations", "", &moves)
	if len(moves.Relocations) != 1 || moves.Unsettled != 1 || moves.Relocations[0].CID != 1 ||
		!strings.HasPrefix(moves.Relocations[0].EntryID, state.PartitionName(a.keys.Partition(1))+":") {
		t.Fatalf("%+v", moves)
	}

	found := map[string]string{} // cid to id
	after := ""
	for range n {
		var page client.DeadLetters
		a.want(200, "GET", "/v1/dead?limit=5"+after, "", &page)
		for _, d := range page.Dead {
			if found[d.Entry["cid"]] != "" {
				t.Fatalf("%s is there twice", d.ID)
			}
			found[d.Entry["cid"]] = d.ID
		}
		if page.NextAfter == nil {
			break
		}
		after = "&after=" + *page.NextAfter
	}
	if len(found) != n {
		t.Fatalf("%d of %d dead letters were listed", len(found), n)
	}
	a.want(202, "POST", "/v1/dead/"+found["2"]+"/retry", "", nil)
	a.wantProblem("POST", "/v1/dead/"+found["1"]+"/retry", "", "", 409, "conflict", "newer")
	a.want(204, "DELETE", "/v1/dead/"+found["3"], "", nil)
	for _, id := range []string{"2", "3"} {
		a.wantProblem("DELETE", "/v1/dead/"+found[id], "", "", 404, "not-found", "it has been retried, dropped")
	}
	_, bare, _ := strings.Cut(found["4"], ":")
	for _, id := range []string{bare, "p04:" + bare, "p4:" + bare, "x:" + bare} {
		a.wantProblem("DELETE", "/v1/dead/"+id, "", "", 400, "malformed", "p00:1732318370000-0")
	}
}
