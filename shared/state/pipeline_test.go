package state_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/state"
)

// The ids of this test are of fixed times, so ages are told apart by hours and no clock of a test matters.
func TestTheOldestUnsettledEntryOfEachStageHasItsAge(t *testing.T) {
	w := newWorld(t)
	now, err := w.rdb.Time(t.Context()).Result()
	w.must(err)
	add := func(stream string, hours int) string {
		id := fmt.Sprintf("%d-0", now.Add(time.Duration(-hours)*time.Hour).UnixMilli())
		id, err := w.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: stream, ID: id, Values: []string{"cid", "7"}}).Result()
		w.must(err)
		return id
	}
	want := func(what string, stage int, unsettled int64, hours float64) {
		t.Helper()
		load, err := w.Load(t.Context())
		w.must(err)
		got := load.Stages[stage]
		if got.Unsettled != unsettled || int(got.Oldest.Hours()*10) != int(hours*10) {
			t.Errorf("%s: %d entries, the oldest of %v", what, got.Unsettled, got.Oldest)
		}
	}
	want("nothing was added", 0, 0, 0)
	settled, pending := add(w.keys.Views(), 9), add(w.keys.Views(), 7)
	add(w.keys.Views(), 5)
	w.must(w.rdb.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: state.GroupRelocator, Consumer: "me", Streams: []string{w.keys.Views(), ">"}, Count: 2}).Err())
	want("two are read", 0, 3, 9)
	w.must(w.rdb.XAck(t.Context(), w.keys.Views(), state.GroupRelocator, settled).Err())
	want("the first is settled", 0, 2, 7)
	w.must(w.rdb.XDel(t.Context(), w.keys.Views(), pending).Err())
	want("a pending one was deleted by hand", 0, 2, 7)
	w.must(w.rdb.XAck(t.Context(), w.keys.Views(), state.GroupRelocator, pending).Err())
	want("one is unread", 0, 1, 5) // and one is kept, though settled
	add(w.keys.Committed(), 3)
	want("another stage", 2, 1, 3)
	w.must(w.rdb.XGroupDestroy(t.Context(), w.keys.Committed(), state.GroupReleaser).Err())
	want("no group has read it yet", 2, 1, 3)
	w.must(w.rdb.Del(t.Context(), w.keys.Committed()).Err())
	want("the stream is gone", 2, 0, 0)
}

func TestDeadLettersAreCountedByStageAndReasonAndTheTotalIsTrueWhateverSomebodyDeleted(t *testing.T) {
	w := newWorld(t)
	want := func(what string, dead map[state.DeadKind]int64) {
		t.Helper()
		load, err := w.Load(t.Context())
		w.must(err)
		same := len(load.Dead) == len(dead)
		for kind, n := range dead {
			same = same && load.Dead[kind] == n
		}
		if !same {
			t.Errorf("%s: %v, want %v", what, load.Dead, dead)
		}
	}
	conflict, missing, old := state.DeadKind{Stage: "relocate", Reason: "conflict"}, state.DeadKind{Stage: "relocate", Reason: "missing-file"}, state.DeadKind{}
	first := w.dies(0, view(1, 7, 1500, "silver", "bronze", "f"), "conflict")
	w.dies(0, view(2, 8, 1500, "silver", "bronze", "g"), "missing-file")
	want("two", map[state.DeadKind]int64{conflict: 1, missing: 1})
	w.must(w.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: w.keys.Dead(), Values: []string{"stage", "relocate"}}).Err())
	want("and one of an older version", map[state.DeadKind]int64{conflict: 1, missing: 1, old: 1})
	w.must(w.rdb.XTrimMaxLen(t.Context(), w.keys.Dead(), 1).Err())
	want("two were deleted by hand", map[state.DeadKind]int64{old: 1})
	if ok, err := w.DropDeadLetter(t.Context(), state.Ref{ID: first}); err != nil || ok {
		t.Error(ok, err)
	}
	w.must(w.rdb.Del(t.Context(), w.keys.Dead()).Err())
	want("all are gone", nil)
}
