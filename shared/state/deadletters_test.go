package state_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/state"
)

// dies posts a count of an item and makes the event a dead letter. It returns the id in dead.
func (w *world) dies(n int, v event.View, reason string) string {
	w.Helper()
	entry := w.append(v)
	return w.diesOf(w.keys.Views(), state.GroupRelocator, entry, v.Fields(), event.Failure{Stage: "relocate", Reason: reason, FailedAt: posted.Add(time.Duration(n) * time.Minute)})
}

// diesOf makes a pending entry a dead letter.
func (w *world) diesOf(stream, group, entry string, fields []string, f event.Failure) string {
	w.Helper()
	values := map[string]string{}
	for i := 0; i < len(fields); i += 2 {
		values[fields[i]] = fields[i+1]
	}
	f.SourceStream, f.SourceID = stream, entry
	if ok, err := w.DeadLetter(w.Context(), group, "me", values, f); err != nil || !ok {
		w.Fatal(ok, err)
	}
	ids, _ := w.entries(w.keys.Dead())
	return ids[len(ids)-1]
}

// wantDead checks the ids in dead, the number of them that the index names, and the counts.
func (w *world) wantDead(indexed int64, reasons map[string]string, ids ...string) {
	w.Helper()
	found, _ := w.entries(w.keys.Dead())
	if fmt.Sprint(found) != fmt.Sprint(ids) {
		w.Errorf("dead has %v, want %v", found, ids)
	}
	if n := w.rdb.HLen(w.Context(), w.keys.DeadIndex()).Val(); n != indexed {
		w.Errorf("the index has %d dead letters, want %d", n, indexed)
	}
	if got := w.rdb.HGetAll(w.Context(), w.keys.DeadReasons()).Val(); fmt.Sprint(got) != fmt.Sprint(reasons) {
		w.Errorf("counts are %v, want %v", got, reasons)
	}
}

func TestANewerDeadLetterOfTheSameItemAndStageReplacesTheOlderOne(t *testing.T) {
	w := newWorld(t)
	w.dies(0, view(1, 7, 1500, "silver", "bronze", hostile), "conflict")
	other := w.dies(0, view(2, 8, 1500, "silver", "bronze", "g"), "conflict")
	var last string
	for i := range 50 {
		last = w.dies(i+1, view(3+i, 7, 1500, "silver", "bronze", hostile), "missing-file")
	}
	w.wantDead(2, map[string]string{"relocate conflict": "1", "relocate missing-file": "1"}, other, last)
	d, ok, err := w.GetDeadLetter(t.Context(), state.Ref{ID: last})
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	f, entry, err := event.ParseDead(d.Fields)
	w.must(err)
	if f.Times != 51 || !f.FirstFailedAt.Equal(posted) || !f.FailedAt.Equal(posted.Add(50*time.Minute)) {
		t.Errorf("it says %d times, first at %v, last at %v", f.Times, f.FirstFailedAt, f.FailedAt)
	}
	if v, err := event.ParseView(entry); err != nil || v != view(52, 7, 1500, "silver", "bronze", hostile) || entry["times"] != "" {
		t.Errorf("the entry is %v, %v", entry, err)
	}

	ok, err = w.DropDeadLetter(t.Context(), state.Ref{ID: other})
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	if ok, err = w.DropDeadLetter(t.Context(), state.Ref{ID: other}); err != nil || ok {
		t.Fatal("it was dropped twice", err)
	}
	w.wantDead(1, map[string]string{"relocate missing-file": "1"}, last)
	r, err := w.RetryView(t.Context(), state.Ref{ID: last}, f.SourceID, "", view(60, 7, 1500, "silver", "bronze", hostile))
	if err != nil || r.EntryID == "" {
		t.Fatalf("%+v, %v", r, err)
	}
	w.wantDead(0, nil)
	w.read(w.keys.Views(), state.GroupRelocator)
	again := w.diesOf(w.keys.Views(), state.GroupRelocator, r.EntryID, view(60, 7, 1500, "silver", "bronze", hostile).Fields(),
		event.Failure{Stage: "relocate", Reason: "conflict", FailedAt: posted})
	w.wantDead(1, map[string]string{"relocate conflict": "1"}, again)
}

func TestADeadLetterOfAnOlderEventReplacesNoNewerOne(t *testing.T) {
	w := newWorld(t)
	older := w.append(view(1, 7, 1500, "silver", "bronze", "f"))
	newer := w.dies(1, view(2, 7, 2500, "gold", "bronze", "f"), "conflict")
	late := w.diesOf(w.keys.Views(), state.GroupRelocator, older, view(1, 7, 1500, "silver", "bronze", "f").Fields(),
		event.Failure{Stage: "relocate", Reason: "conflict", FailedAt: posted})
	w.wantDead(1, map[string]string{"relocate conflict": "2"}, newer, late)
	newest := w.dies(2, view(3, 7, 1500, "silver", "bronze", "f"), "conflict")
	w.wantDead(1, map[string]string{"relocate conflict": "2"}, late, newest)
}

func TestADeadLetterOfAReleaseReplacesOnlyOneOfTheSameCopy(t *testing.T) {
	w := newWorld(t)
	release := func(from, to string, outcome event.Outcome) string {
		c := event.Committed{EventID: uuid(1), ID: 7, From: from, To: to, Filename: "f", Outcome: outcome, CommittedAt: posted}
		entry, err := w.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: w.keys.Committed(), Values: c.Fields()}).Result()
		w.must(err)
		w.read(w.keys.Committed(), state.GroupReleaser)
		return w.diesOf(w.keys.Committed(), state.GroupReleaser, entry, c.Fields(), event.Failure{Stage: "release", Reason: "changed", FailedAt: posted})
	}
	release("bronze", "silver", event.OutcomeCommitted)
	silver := release("bronze", "silver", event.OutcomeSuperseded)
	bronze := release("bronze", "gold", event.OutcomeCommitted)
	w.wantDead(2, map[string]string{"release changed": "2"}, silver, bronze)
	r, err := w.Retry(t.Context(), state.Ref{ID: silver}, w.keys.Committed(), []string{"cid", "7"})
	if err != nil || r.EntryID == "" {
		t.Fatalf("%+v, %v", r, err)
	}
	w.wantDead(1, map[string]string{"release changed": "1"}, bronze)
}

func TestADeadLetterOfAnOlderVersionIsRetriedAndDroppedAndAnEntryWithoutAnItemHasNoIndex(t *testing.T) {
	w := newWorld(t)
	old, err := w.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: w.keys.Dead(), Values: append(view(1, 7, 1, "silver", "bronze", "f").Fields(),
		event.Failure{Stage: "relocate", Reason: "conflict", SourceID: "1-1", FailedAt: posted}.Fields()...)}).Result()
	w.must(err)
	indexed := w.dies(1, view(2, 7, 1500, "silver", "bronze", "f"), "conflict")
	w.wantDead(1, map[string]string{"relocate conflict": "1"}, old, indexed)
	if ok, err := w.DropDeadLetter(t.Context(), state.Ref{ID: old}); err != nil || !ok {
		t.Fatal(ok, err)
	}
	w.wantDead(1, map[string]string{"relocate conflict": "1"}, indexed)

	entry := w.append(view(3, 9, 1, "bronze", "bronze", "f"))
	unread := w.diesOf(w.keys.Views(), state.GroupRelocator, entry, []string{"cid", "no item"}, event.Failure{Stage: "relocate", Reason: "malformed", FailedAt: posted})
	w.wantDead(1, map[string]string{"relocate conflict": "1", "relocate malformed": "1"}, indexed, unread)
}

func TestDeadLettersThatSomebodyDeletedByHandLeaveNoIndexThatNamesOthers(t *testing.T) {
	w := newWorld(t)
	gone := w.dies(0, view(1, 7, 1500, "silver", "bronze", "f"), "conflict")
	kept := w.dies(0, view(2, 8, 1500, "silver", "bronze", "g"), "conflict")
	w.must(w.rdb.XDel(t.Context(), w.keys.Dead(), gone).Err())
	// The index of item 7 names the dead letter of another item, as after a wipe with the clock set back.
	w.must(w.rdb.HSet(t.Context(), w.keys.DeadIndex(), "7 relocate", kept).Err())
	last := w.dies(1, view(3, 7, 1500, "silver", "bronze", "f"), "conflict")
	w.wantDead(2, map[string]string{"relocate conflict": "3"}, kept, last)
	w.must(w.rdb.Del(t.Context(), w.keys.Dead()).Err())
	last = w.dies(2, view(4, 9, 1500, "silver", "bronze", "h"), "conflict")
	w.wantDead(1, map[string]string{"relocate conflict": "1"}, last)
}
