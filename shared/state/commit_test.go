package state_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/tierflow/tierflow/shared/entryid"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/state"
)

func committed(v event.View, to string, outcome event.Outcome) event.Committed {
	return event.Committed{EventID: v.EventID, ID: v.ID, From: v.DBLevel, To: to, Filename: v.Filename, Generation: 4, Outcome: outcome, CommittedAt: posted}
}

// emittedView is the event of emitted.
var emittedView = view(1, 7, 1500, "silver", "bronze", hostile)

// emitted makes an event that waits for its commit. Its entry of relocated is pending.
func emitted(t *testing.T) (w *world, entry string) {
	w = newWorld(t)
	st := state.NewState(emittedView)
	st.EntryID = w.append(emittedView)
	if got, _, err := w.Take(t.Context(), st.EntryID, 7, "mine", "w"); err != nil || got != state.Mine {
		t.Fatal(got, err)
	}
	if ok, err := w.Emit(t.Context(), st, "mine", moved(emittedView, "silver")); err != nil || !ok {
		t.Fatal(ok, err)
	}
	return w, w.read(w.keys.Relocated(), state.GroupCommitter)[0].ID
}

func finish(w *world, fs ...state.Finished) {
	w.Helper()
	for _, err := range w.Finish(w.Context(), fs) {
		w.must(err)
	}
}

func TestFinishPublishesACommitAndSettlesItsEntry(t *testing.T) {
	v := emittedView
	t.Run("of a commit releases the old copy, names the new level, unlocks and acks", func(t *testing.T) {
		w, entry := emitted(t)
		want := w.get(7)
		want.DBLevel = "silver"
		c := committed(v, "silver", event.OutcomeCommitted)
		for n := 1; n <= 2; n++ { // a repeat orders the release again, which does no harm
			finish(w, state.Finished{EntryID: entry, Event: c, RowLevel: "silver"})
			w.same(w.get(7), want)
			w.lives(7, ttl)
			_, entries := w.entries(w.keys.Committed())
			if len(entries) != n {
				t.Fatalf("%d entries", len(entries))
			}
			w.sameEntry(entries[n-1], c.Fields())
		}
		if w.raw(7) != w.get(7).JSON() {
			t.Errorf("state %s", w.raw(7))
		}
		if w.holder(7) != "" || len(w.pending(w.keys.Relocated(), state.GroupCommitter)) != 0 || w.length(w.keys.Views()) != 1 {
			t.Error("lock, entry or views are wrong")
		}
	})
	t.Run("appends the newest event again when it calls for another level than the one committed", func(t *testing.T) {
		for _, c := range []struct {
			newest event.View
			status state.Status
			life   time.Duration
		}{
			{view(2, 7, 1<<63-1, "gold", "bronze", hostile), state.Update, 0},
			{view(2, 7, 5, "bronze", "bronze", hostile), state.Update, 0}, // its state had been done, with a time to live
		} {
			w, entry := emitted(t)
			newest := w.append(c.newest)
			taken := w.get(7)
			taken.WorkerID = "somebody"
			w.set(taken)
			finish(w, state.Finished{EntryID: entry, Event: committed(v, "silver", event.OutcomeCommitted), RowLevel: "silver"})
			ids, entries := w.entries(w.keys.Views())
			if len(ids) != 3 || ids[1] != newest {
				t.Fatalf("views: %v", ids)
			}
			again := c.newest
			again.DBLevel = "silver"
			entries[2]["posted_at"] = event.FormatTime(posted)
			w.sameEntry(entries[2], again.Fields())
			want := state.NewState(again)
			want.EntryID, want.Status = ids[2], c.status
			w.same(w.get(7), want)
			w.lives(7, c.life)
			if w.raw(7) != w.get(7).JSON() || !entryid.Newer(ids[2], newest) {
				t.Errorf("state %s", w.raw(7))
			}
			// The older entries of the item are settled, and the new entry is the newest.
			w.read(w.keys.Views(), state.GroupRelocator)
			for i, want := range []state.Taken{state.Settled, state.Settled, state.Mine} {
				if got, _, err := w.Take(t.Context(), ids[i], 7, "next", "w"); err != nil || got != want {
					t.Errorf("entry %d: %d, %v", i, got, err)
				}
			}
		}
	})
	t.Run("appends nothing when the newest event calls for the level committed", func(t *testing.T) {
		w, entry := emitted(t)
		newest := view(2, 7, 1600, "silver", "bronze", hostile)
		want := state.NewState(newest)
		want.EntryID, want.DBLevel = w.append(newest), "silver"
		finish(w, state.Finished{EntryID: entry, Event: committed(v, "silver", event.OutcomeCommitted), RowLevel: "silver"})
		w.same(w.get(7), want)
		w.lives(7, 0)
		if w.length(w.keys.Views()) != 2 {
			t.Error("it was appended again")
		}
	})
}

func TestFinishAppendsTheEventOfASupersededMoveAgain(t *testing.T) {
	v := emittedView
	t.Run("of a superseded move appends its event again while it is the newest", func(t *testing.T) {
		w, entry := emitted(t)
		c := committed(v, "silver", event.OutcomeSuperseded)
		finish(w, state.Finished{EntryID: entry, Event: c, RowLevel: "gold"})
		ids, entries := w.entries(w.keys.Views())
		if len(ids) != 2 {
			t.Fatalf("views: %v", ids)
		}
		again := v
		again.DBLevel = "gold"
		entries[1]["posted_at"] = event.FormatTime(posted)
		w.sameEntry(entries[1], again.Fields())
		want := state.NewState(again)
		want.EntryID = ids[1]
		w.same(w.get(7), want)
		w.lives(7, 0)
		_, entries = w.entries(w.keys.Committed())
		w.sameEntry(entries[0], c.Fields())
		if w.holder(7) != "" || len(w.pending(w.keys.Relocated(), state.GroupCommitter)) != 0 {
			t.Error("lock or entry are wrong")
		}
	})
	t.Run("of a superseded move whose row names the target sets the status to done", func(t *testing.T) {
		w, entry := emitted(t)
		finish(w, state.Finished{EntryID: entry, Event: committed(v, "silver", event.OutcomeSuperseded), RowLevel: "silver"})
		if s := w.get(7); s.Status != state.Done || s.DBLevel != "silver" || w.length(w.keys.Views()) != 2 {
			t.Errorf("%+v", s)
		}
		w.lives(7, 0) // it was appended again, and is not settled
	})
	t.Run("gives an expiry only to the state of the very event that it settles", func(t *testing.T) {
		for _, c := range []struct {
			name    string
			newest  string // target of a newer event, "" for none
			outcome event.Outcome
			life    time.Duration
		}{
			{"its own, committed", "", event.OutcomeCommitted, ttl},
			{"its own, superseded: appended again", "", event.OutcomeSuperseded, 0},
			{"a newer one's that wants what was committed", "silver", event.OutcomeCommitted, 0},
			{"a newer one's that wants another level: appended again", "gold", event.OutcomeCommitted, 0},
			{"a newer one's, superseded", "gold", event.OutcomeSuperseded, 0},
			{"a newer one's that wants the row's level, superseded", "bronze", event.OutcomeSuperseded, 0},
		} {
			w, entry := emitted(t)
			if c.newest != "" {
				w.append(view(2, 7, 9, c.newest, "bronze", hostile))
			}
			finish(w, state.Finished{EntryID: entry, Event: committed(v, "silver", c.outcome), RowLevel: "bronze"})
			if d := w.rdb.TTL(t.Context(), w.keys.State(7)).Val(); (d == -1) != (c.life == 0) || d > c.life {
				t.Errorf("%s: the state lives for %s, not %s", c.name, d, c.life)
			}
		}
		w, entry := emitted(t) // a newer event that was settled: its state keeps its expiry
		w.append(view(2, 7, 9, "silver", "bronze", hostile))
		w.must(w.rdb.Expire(t.Context(), w.keys.State(7), ttl/2).Err())
		finish(w, state.Finished{EntryID: entry, Event: committed(v, "silver", event.OutcomeCommitted), RowLevel: "silver"})
		w.lives(7, ttl/2)
	})
	t.Run("of a superseded move does not change a newer event: the level may be an old one, read by a committer that was paused",
		func(t *testing.T) {
			w, entry := emitted(t)
			newest := view(2, 7, 2500, "gold", "bronze", hostile)
			want := state.NewState(newest)
			want.EntryID = w.append(newest)
			finish(w, state.Finished{EntryID: entry, Event: committed(v, "silver", event.OutcomeSuperseded), RowLevel: "silver"})
			w.same(w.get(7), want)
			if w.length(w.keys.Views()) != 2 {
				t.Error("it was appended again")
			}
		})
}

func TestFinishLeavesOtherStatesAndLocksAlone(t *testing.T) {
	v := emittedView
	t.Run("leaves the level where there is no row", func(t *testing.T) {
		w, entry := emitted(t)
		finish(w, state.Finished{EntryID: entry, Event: committed(v, "silver", event.OutcomeCommitted)})
		if s := w.get(7); s.DBLevel != "bronze" {
			t.Errorf("%+v", s)
		}
	})
	t.Run("unlocks for any attempt of this event, and for no other event", func(t *testing.T) {
		for value, freed := range map[string]bool{
			"emitted " + uuid(1) + " other": true, "emitted " + uuid(2) + " other": false, "relocating " + uuid(1) + " w r": false, "releasing w r": false,
			"emitted " + uuid(1): false,
		} {
			w, entry := emitted(t)
			w.must(w.rdb.Set(t.Context(), w.keys.Lock(7), value, time.Hour).Err())
			finish(w, state.Finished{EntryID: entry, Event: committed(v, "silver", event.OutcomeCommitted), RowLevel: "silver"})
			if (w.holder(7) == "") != freed {
				t.Errorf("%q: held by %q", value, w.holder(7))
			}
		}
	})
	t.Run("writes no state where it is missing or unreadable", func(t *testing.T) {
		good := state.State{ID: 7, Target: "gold", DBLevel: "bronze", Filename: "@", Status: state.Update, EventID: uuid(1), EntryID: "1-0", UpdatedAt: posted}.JSON()
		values := map[string]string{"missing": ""}
		for part, broken := range map[string]string{`"@"`: `"a"b"`, `null`: `oops`, `"entry_id": "1-0"`: `"entry_id": "\x"`, `"updated_at": "`: `"updated_at": "\x`} {
			values["no JSON in "+part] = strings.Replace(good, part, broken, 1)
		}
		maps.Copy(values, unreadable)
		for name, value := range values {
			w, entry := emitted(t)
			w.must(w.rdb.Del(t.Context(), w.keys.State(7)).Err())
			if name != "missing" {
				w.must(w.rdb.Set(t.Context(), w.keys.State(7), value, 0).Err())
			}
			finish(w, state.Finished{EntryID: entry, Event: committed(v, "silver", event.OutcomeCommitted), RowLevel: "silver"})
			if w.raw(7) != value || w.length(w.keys.Views()) != 1 || w.length(w.keys.Committed()) != 1 ||
				len(w.pending(w.keys.Relocated(), state.GroupCommitter)) != 0 {
				t.Errorf("%s: state %q", name, w.raw(7))
			}
		}
	})
}

func TestFinishFailsOnlyForTheEntriesThatFail(t *testing.T) {
	v := emittedView
	t.Run("of many fails only for the entry that fails", func(t *testing.T) {
		w, entry := emitted(t)
		w.must(w.rdb.LPush(t.Context(), w.keys.State(8), "no string").Err())
		bad := committed(view(2, 8, 1, "silver", "bronze", "f"), "silver", event.OutcomeCommitted)
		errs := w.Finish(t.Context(), []state.Finished{
			{EntryID: "1-0", Event: bad, RowLevel: "silver"},
			{EntryID: entry, Event: committed(v, "silver", event.OutcomeCommitted), RowLevel: "silver"},
		})
		if len(errs) != 2 || !fault.Is(errs[0], fault.Unavailable) || errs[1] != nil {
			t.Errorf("%v", errs)
		}
		if s := w.get(7); s.DBLevel != "silver" || w.length(w.keys.Committed()) != 1 {
			t.Errorf("%+v", s)
		}
	})
	t.Run("works after Redis has forgotten its scripts", func(t *testing.T) {
		w, entry := emitted(t)
		w.must(w.rdb.ScriptFlush(t.Context()).Err())
		finish(w, state.Finished{EntryID: entry, Event: committed(v, "silver", event.OutcomeCommitted), RowLevel: "silver"})
	})
	t.Run("without Redis fails for each", func(t *testing.T) {
		s := storeWithoutRedis(t)
		errs := s.Finish(t.Context(), make([]state.Finished, 2))
		if len(errs) != 2 || !fault.Is(errs[0], fault.Unavailable) || !fault.Is(errs[1], fault.Unavailable) {
			t.Errorf("%v", errs)
		}
	})
}

func TestAFailedEntryBecomesADeadLetterOnce(t *testing.T) {
	v := view(1, 7, 1500, "silver", "bronze", hostile)
	deadLetter := func(w *world, consumer, entry string) bool {
		w.Helper()
		_, entries := w.entries(w.keys.Views())
		ok, err := w.DeadLetter(w.Context(), state.GroupRelocator, consumer, entries[0], event.Failure{
			Stage: "relocate", Reason: "conflict", Error: "taken: " + hostile, Attempts: 8,
			SourceStream: w.keys.Views(), SourceID: entry, FailedAt: posted,
		})
		w.must(err)
		return ok
	}
	t.Run("settles the entry and appends it to dead, once", func(t *testing.T) {
		w := newWorld(t)
		entry := w.append(v)
		if !deadLetter(w, "me", entry) {
			t.Fatal("no dead letter")
		}
		if deadLetter(w, "me", entry) {
			t.Fatal("a dead letter twice")
		}
		_, dead := w.entries(w.keys.Dead())
		if len(dead) != 1 || len(w.pending(w.keys.Views(), state.GroupRelocator)) != 0 {
			t.Fatalf("dead: %v", dead)
		}
		f, fields, err := event.ParseDead(dead[0])
		w.must(err)
		if f.SourceID != entry || f.Reason != "conflict" || f.Attempts != 8 || f.Error != "taken: "+hostile {
			t.Errorf("%+v", f)
		}
		if got, err := event.ParseView(fields); err != nil || got != v {
			t.Errorf("%+v, %v", got, err)
		}
	})
	t.Run("does nothing to an entry of another consumer", func(t *testing.T) {
		w := newWorld(t)
		entry := w.append(v)
		if deadLetter(w, "late", entry) || w.length(w.keys.Dead()) != 0 || len(w.pending(w.keys.Views(), state.GroupRelocator)) != 1 {
			t.Error("it became a dead letter")
		}
	})
	t.Run("an entry that is too big for dead stays pending", func(t *testing.T) {
		w := newWorld(t)
		entry := w.append(v)
		big := map[string]string{}
		for i := range 5000 {
			big[fmt.Sprint(i)] = "x"
		}
		_, err := w.DeadLetter(t.Context(), state.GroupRelocator, "me", big, event.Failure{SourceStream: w.keys.Views(), SourceID: entry})
		if !fault.Is(err, fault.Unavailable) {
			t.Errorf("%v", err)
		}
		if len(w.pending(w.keys.Views(), state.GroupRelocator)) != 1 {
			t.Error("it is lost")
		}
	})
}
