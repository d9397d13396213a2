package state_test

import (
	"fmt"
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/state"
)

// waitingWorker is a living worker that has read n view events of the items 1 to n, and lets them wait.
func (w *world) waitingWorker(id string, n int) (at *state.WaitingAt, r state.WaitingReport) {
	w.Helper()
	_, err := w.Heartbeat(w.Context(), state.GroupRelocator, state.Worker{ID: id}, time.Minute)
	w.must(err)
	r.Counts = map[string]int{"tier-away": n}
	for i := range n {
		entry, err := w.rdb.XAdd(w.Context(), &redis.XAddArgs{Stream: w.keys.Views(), Values: []any{"cid", i + 1}}).Result()
		w.must(err)
		r.Listed = append(r.Listed, state.Waiting{Stream: "views", Entry: state.Ref{ID: entry}, CID: fmt.Sprint(i + 1), Reason: "tier-away",
			Error: "gold is\nnot mounted", Since: posted.Add(time.Duration(i) * time.Second), Attempts: 2})
	}
	w.must(w.rdb.XReadGroup(w.Context(), &redis.XReadGroupArgs{Group: state.GroupRelocator, Consumer: id, Count: int64(n),
		Streams: []string{w.keys.Views(), ">"}, Block: -1}).Err())
	return w.WaitingAt(state.GroupRelocator, id, time.Minute), r
}

// waitingItems are the items whose entries wait.
func (w *world) waitingItems(cid string, limit int) (ids string) {
	w.Helper()
	list, _, err := w.Store.Waiting(w.Context(), cid, limit)
	w.must(err)
	for _, one := range list {
		ids += one.CID + " "
	}
	return strings.TrimSpace(ids)
}

func TestWhatWaitsAtLivingWorkersIsReadAsItWasReported(t *testing.T) {
	w := newWorld(t)
	at, r := w.waitingWorker("w1", 3)
	r.Listed[1].Next = posted.Add(time.Hour)
	r.Listed[2].Error = strings.Repeat("é", 1000)
	w.must(at.Report(t.Context(), r))
	list, counts, err := w.Store.Waiting(t.Context(), "", 10)
	w.must(err)
	want := r.Listed
	for i := range want {
		want[i].Worker = "w1"
	}
	want[0].Error, want[1].Error = "gold is not mounted", "gold is not mounted"
	if long := list[2].Error; len(long) > 310 || !strings.HasPrefix(want[2].Error, strings.TrimSuffix(long, "…")) {
		t.Errorf("%q", long)
	}
	list[2].Error = want[2].Error
	if !reflect.DeepEqual(list, want) {
		t.Errorf("got  %+v\nwant %+v", list, want)
	}
	if !maps.Equal(counts, map[string]int64{"tier-away": 3}) {
		t.Errorf("%v", counts)
	}
	for _, c := range []struct {
		cid   string
		limit int
		want  string
	}{{"2", 10, "2"}, {"9", 10, ""}, {"", 2, "1 2"}} {
		if got := w.waitingItems(c.cid, c.limit); got != c.want {
			t.Errorf("of %q, up to %d: %q", c.cid, c.limit, got)
		}
	}

	// An entry that was settled, or that another worker has, does not wait here, whatever the report says.
	w.must(w.rdb.XAck(t.Context(), w.keys.Views(), state.GroupRelocator, r.Listed[0].Entry.ID).Err())
	if _, err := w.Reassign(t.Context(), w.keys.Views(), state.GroupRelocator, "w1", r.Listed[1].Entry.ID, "w2"); err != nil {
		t.Fatal(err)
	}
	if got := w.waitingItems("", 10); got != "3" {
		t.Errorf("%q", got)
	}
	w.must(at.Clear(t.Context()))
	if got := w.waitingItems("", 10); got != "" {
		t.Errorf("after the end: %q", got)
	}
}

func TestAReportThatHasExpiredIsWrittenAgain(t *testing.T) {
	w := newWorld(t)
	at, r := w.waitingWorker("w1", 3)
	key := w.keys.Waiting(state.GroupRelocator, "w1")
	w.must(at.Report(t.Context(), r))
	if ms := w.rdb.PTTL(t.Context(), key).Val(); ms <= 0 || ms > time.Minute {
		t.Errorf("expires in %v", ms)
	}
	w.must(w.rdb.Del(t.Context(), key).Err())
	w.must(at.Report(t.Context(), r))
	if got := w.waitingItems("", 10); got != "1 2 3" {
		t.Errorf("after a wipe: %q", got)
	}
	r.Listed = r.Listed[2:]
	w.must(at.Report(t.Context(), r))
	if n := w.rdb.HLen(t.Context(), key).Val(); n != 3 { // it, the oldest, and counts
		t.Errorf("%d fields", n)
	}
	w.must(at.Report(t.Context(), state.WaitingReport{}))
	if n := w.rdb.Exists(t.Context(), key).Val(); n != 0 {
		t.Error("nothing waits, and the key is there")
	}
}

func TestAWorkerListsABoundedNumberOfEntriesAtMaxmemoryToo(t *testing.T) {
	w := newPrivateWorld(t)
	at, r := w.waitingWorker("w1", state.MaxWaiting+10)
	w.config("maxmemory", "1")
	w.must(at.Report(t.Context(), r))
	if n := w.rdb.HLen(t.Context(), w.keys.Waiting(state.GroupRelocator, "w1")).Val(); n != state.MaxWaiting+2 {
		t.Errorf("%d fields", n)
	}
	_, counts, err := w.Store.Waiting(t.Context(), "", 10)
	if err != nil || counts["tier-away"] != state.MaxWaiting+10 {
		t.Errorf("%v %v", counts, err)
	}
}

func TestTheSummaryOfWhatWaitsHasTheCountsAndTheLongestWait(t *testing.T) {
	w := newWorld(t)
	want := func(what string, counts map[string]int64, cid, worker string) {
		t.Helper()
		got, oldest, err := w.WaitingSummary(t.Context())
		w.must(err)
		if oldest == nil {
			oldest = &state.Waiting{}
		}
		if !maps.Equal(got, counts) || oldest.CID != cid || oldest.Worker != worker {
			t.Errorf("%s: %v, %+v", what, got, oldest)
		}
	}
	want("nobody lives", map[string]int64{}, "", "")
	first, r1 := w.waitingWorker("w1", 3)
	second, r2 := w.waitingWorker("w2", 2)
	for i := range r2.Listed {
		r2.Listed[i].Since = r2.Listed[i].Since.Add(time.Hour)
		r2.Listed[i].CID = fmt.Sprint(11 + i)
	}
	w.must(first.Report(t.Context(), r1))
	w.must(second.Report(t.Context(), r2))
	want("two wait", map[string]int64{"tier-away": 5}, "1", "w1")
	w.must(w.rdb.XAck(t.Context(), w.keys.Views(), state.GroupRelocator, r1.Listed[0].Entry.ID).Err())
	want("the longest wait is over", map[string]int64{"tier-away": 5}, "11", "w2")
	w.must(w.rdb.HDel(t.Context(), w.keys.Waiting(state.GroupRelocator, "w2"), "oldest").Err())
	want("a worker of an older version", map[string]int64{"tier-away": 5}, "", "")
}
