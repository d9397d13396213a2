package state_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/content"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
	"github.com/tierflow/tierflow/shared/testserver"
)

var filenames = map[string]string{"plain": "g.mp4", "hostile": hostile, "quotes": `"\"\\""`, "long": strings.Repeat("😀", 700)}

// newerCases say which of two ids a script must take for the newer one.
var newerCases = []struct {
	theirs, mine string
	newer        bool
}{
	{"10-0", "9-1", true}, {"9-1", "10-0", false}, {"9-10", "9-9", true}, {"9-9", "9-10", false}, {"9-1", "9-1", false},
	{"1-18446744073709551615", "1-18446744073709551614", true}, {"1-18446744073709551614", "1-18446744073709551615", false},
	{"9007199254740993-0", "9007199254740992-0", true}, {"9007199254740992-0", "9007199254740993-0", false},
	{"2-0", "1-18446744073709551615", true}, {"", "1-0", false}, {"later", "1-0", false},
}

func TestAppendWritesTheEntryAndTheStateInOneStep(t *testing.T) {
	for name, filename := range filenames {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			move := view(1, 7, 1<<63-1, "gold", "bronze", filename)
			still := view(2, 8, 5, "bronze", "bronze", filename)
			ids, err := w.Append(t.Context(), []event.View{move, still})
			w.must(err)
			got, entries := w.entries(w.keys.Views())
			if !slices.Equal(ids, got) {
				t.Fatalf("ids %v, in the stream %v", ids, got)
			}
			for i, v := range []event.View{move, still} {
				w.sameEntry(entries[i], v.Fields())
				want := state.NewState(v)
				want.EntryID = ids[i]
				if got := w.get(v.ID); got != want {
					t.Errorf("state %+v, not %+v", got, want)
				}
				if w.raw(v.ID) != want.JSON() {
					t.Errorf("state %s, not %s", w.raw(v.ID), want.JSON())
				}
			}
			w.lives(7, 0)
			w.lives(8, ttl)
		})
	}
}

func TestTheStateIsThatOfTheNewestEventOfABatch(t *testing.T) {
	w := newWorld(t)
	ids, err := w.Append(t.Context(), []event.View{view(1, 7, 1, "bronze", "bronze", "f"), view(2, 7, 1500, "silver", "bronze", "f")})
	w.must(err)
	if s := w.get(7); s.EntryID != ids[1] || s.Count != 1500 || s.Status != state.Update {
		t.Errorf("%+v", s)
	}
	w.lives(7, 0) // the first one's time to live is gone
}

func TestTake(t *testing.T) {
	for name, filename := range filenames {
		t.Run("takes the lock and names the worker: "+name, func(t *testing.T) {
			w := newWorld(t)
			v := view(1, 7, 1500, "silver", "bronze", filename)
			entry := w.append(v)
			token := state.NewToken(v.EventID, "w1", "r")
			for range 2 { // a lost reply
				got, _, err := w.Take(t.Context(), entry, 7, token, `w"\1`)
				w.must(err)
				if got != state.Mine {
					t.Fatalf("answer %d", got)
				}
			}
			want := state.NewState(v)
			want.EntryID, want.WorkerID = entry, `w"\1`
			w.same(w.get(7), want)
			if s := w.get(7); time.Since(s.UpdatedAt) > time.Minute || w.raw(7) != s.JSON() {
				t.Errorf("state %s", w.raw(7))
			}
			w.lives(7, 0)
			if w.holder(7) != token {
				t.Errorf("held by %q", w.holder(7))
			}
			if d := w.rdb.PTTL(t.Context(), w.keys.Lock(7)).Val(); d > lease || d < lease/2 {
				t.Errorf("the lease is %s", d)
			}
			if p := w.pending(w.keys.Views(), state.GroupRelocator); !slices.Equal(p, []string{entry}) {
				t.Errorf("pending %v", p)
			}
		})
	}
	t.Run("a state that is done keeps a time to live", func(t *testing.T) {
		w := newWorld(t)
		entry := w.append(view(1, 7, 5, "bronze", "bronze", "f"))
		_, _, err := w.Take(t.Context(), entry, 7, "t", "w")
		w.must(err)
		w.lives(7, ttl)
	})
	t.Run("is busy while another one is at work, and changes nothing", func(t *testing.T) {
		w := newWorld(t)
		entry := w.append(view(1, 7, 1500, "silver", "bronze", "f"))
		before := w.raw(7)
		w.must(w.rdb.Set(t.Context(), w.keys.Lock(7), "another", time.Hour).Err())
		for range 2 {
			got, who, err := w.Take(t.Context(), entry, 7, "mine", "w")
			w.must(err)
			if got != state.Busy || who != "another" {
				t.Fatalf("answer %d, %q", got, who)
			}
		}
		if w.raw(7) != before || len(w.pending(w.keys.Views(), state.GroupRelocator)) != 1 {
			t.Error("something has changed")
		}
	})
	t.Run("settles an event that is not the newest, whoever has the lock", func(t *testing.T) {
		w := newWorld(t)
		entry := w.append(view(1, 7, 1500, "silver", "bronze", hostile))
		newer := w.append(view(2, 7, 2500, "gold", "bronze", hostile))
		w.must(w.rdb.Set(t.Context(), w.keys.Lock(7), "another", time.Hour).Err())
		before := w.raw(7)
		for range 2 {
			got, _, err := w.Take(t.Context(), entry, 7, "mine", "w")
			w.must(err)
			if got != state.Settled {
				t.Fatalf("answer %d", got)
			}
		}
		if p := w.pending(w.keys.Views(), state.GroupRelocator); !slices.Equal(p, []string{newer}) {
			t.Errorf("pending %v", p)
		}
		if w.holder(7) != "another" || w.raw(7) != before {
			t.Error("lock or state have changed")
		}
	})
	t.Run("finds the newer one by digits", func(t *testing.T) {
		w := newWorld(t)
		for _, c := range newerCases {
			w.set(state.State{ID: 7, Target: "a", DBLevel: "b", Filename: "f", Status: state.Update, EventID: uuid(1), EntryID: c.theirs, UpdatedAt: posted})
			got, _, err := w.Take(t.Context(), c.mine, 7, "t", "w")
			w.must(err)
			if (got == state.Settled) != c.newer {
				t.Errorf("%s against %s: %d", c.theirs, c.mine, got)
			}
		}
	})
	t.Run("takes no state, and one that cannot be read, for no newer event", func(t *testing.T) {
		w := newWorld(t)
		if got, _, err := w.Take(t.Context(), "1-0", 7, "t", "w"); err != nil || got != state.Mine {
			t.Errorf("%d, %v", got, err)
		}
		if w.raw(7) != "" {
			t.Errorf("a state was made: %s", w.raw(7))
		}
		for name, value := range unreadable {
			w.must(w.rdb.Set(t.Context(), w.keys.Content(7), value, 0).Err())
			if got, _, err := w.Take(t.Context(), "1-0", 7, "t", "w"); err != nil || got != state.Mine {
				t.Errorf("%s: %d, %v", name, got, err)
			}
			if w.raw(7) != value {
				t.Errorf("%s: it was written", name)
			}
		}
	})
}

func TestSettle(t *testing.T) {
	v := view(1, 7, 5, "bronze", "silver", hostile)
	settled := func(entry string) state.State {
		s := state.NewState(v)
		s.EntryID, s.DBLevel, s.Target, s.WorkerID = entry, "bronze", "bronze", "w"
		return s
	}
	done := func(entry string) state.State {
		s := settled(entry)
		s.Status, s.WorkerID = state.Done, ""
		return s
	}
	t.Run("writes the state, unlocks and acks", func(t *testing.T) {
		w := newWorld(t)
		entry := w.append(v)
		w.must(w.rdb.Set(t.Context(), w.keys.Lock(7), "mine", time.Hour).Err())
		for range 2 {
			w.must(w.Settle(t.Context(), settled(entry), "mine"))
		}
		if w.get(7) != done(entry) {
			t.Errorf("%+v", w.get(7))
		}
		w.lives(7, ttl)
		if w.holder(7) != "" || len(w.pending(w.keys.Views(), state.GroupRelocator)) != 0 {
			t.Error("lock or entry are still there")
		}
	})
	t.Run("leaves a lock that is somebody else's", func(t *testing.T) {
		w := newWorld(t)
		entry := w.append(v)
		w.must(w.rdb.Set(t.Context(), w.keys.Lock(7), "another", time.Hour).Err())
		w.must(w.Settle(t.Context(), settled(entry), "mine"))
		if w.holder(7) != "another" || len(w.pending(w.keys.Views(), state.GroupRelocator)) != 0 {
			t.Error("lock or entry are wrong")
		}
	})
	t.Run("leaves a newer event's state", func(t *testing.T) {
		w := newWorld(t)
		entry := w.append(v)
		w.append(view(2, 7, 2500, "gold", "bronze", hostile))
		before := w.raw(7)
		w.must(w.Settle(t.Context(), settled(entry), "mine"))
		if w.raw(7) != before {
			t.Errorf("state %s", w.raw(7))
		}
		w.lives(7, 0)
	})
	t.Run("writes over a missing, an unreadable and an older state", func(t *testing.T) {
		w := newWorld(t)
		for name, value := range unreadable {
			w.must(w.rdb.Set(t.Context(), w.keys.Content(7), value, 0).Err())
			w.must(w.Settle(t.Context(), settled("5-0"), "mine"))
			if w.get(7) != done("5-0") {
				t.Errorf("%s: %s", name, w.raw(7))
			}
		}
		w.must(w.rdb.Del(t.Context(), w.keys.Content(7)).Err())
		w.must(w.Settle(t.Context(), settled("5-0"), "mine"))
		if w.get(7) != done("5-0") {
			t.Errorf("missing: %s", w.raw(7))
		}
		for _, c := range newerCases {
			if _, _, ok := strings.Cut(c.theirs, "-"); !ok {
				continue
			}
			w.set(state.State{ID: 7, Target: "a", DBLevel: "b", Filename: "f", Status: state.Update, EventID: uuid(9), EntryID: c.theirs, UpdatedAt: posted})
			w.must(w.Settle(t.Context(), settled(c.mine), "mine"))
			if (w.get(7) != done(c.mine)) != c.newer {
				t.Errorf("%s against %s: %s", c.theirs, c.mine, w.raw(7))
			}
		}
	})
}

// moved is what a relocator emits for a view.
func moved(v event.View, to string) event.Relocated {
	return event.Relocated{
		EventID: v.EventID, ID: v.ID, From: v.DBLevel, To: to, Filename: v.Filename, Generation: 3, Count: v.Count, Bytes: 1 << 40,
		Digest: "sha256:00", Method: "copy", WorkerID: "w", StartedAt: posted, FinishedAt: posted.Add(time.Second),
	}
}

func TestEmit(t *testing.T) {
	v := view(1, 7, 1500, "silver", "bronze", hostile)
	// holding makes an event whose lock is ours, with progress.
	holding := func(t *testing.T) (w *world, st state.State) {
		w = newWorld(t)
		st = state.NewState(v)
		st.EntryID = w.append(v)
		if got, _, err := w.Take(t.Context(), st.EntryID, 7, "mine", "w"); err != nil || got != state.Mine {
			t.Fatal(got, err)
		}
		w.must(w.SetProgress(t.Context(), 7, state.Progress{EventID: v.EventID}))
		return w, st
	}
	emit := func(w *world, st state.State, want bool) {
		w.Helper()
		ok, err := w.Emit(w.Context(), st, "mine", moved(v, "silver"))
		w.must(err)
		if ok != want {
			w.Fatalf("emitted: %v", ok)
		}
	}
	t.Run("hands over once, however often it is called", func(t *testing.T) {
		w, st := holding(t)
		for range 3 {
			emit(w, st, true)
		}
		_, entries := w.entries(w.keys.Relocated())
		if len(entries) != 1 {
			t.Fatalf("%d entries", len(entries))
		}
		w.sameEntry(entries[0], moved(v, "silver").Fields())
		want := st
		want.Status = state.Done
		if w.get(7) != want {
			t.Errorf("state %+v", w.get(7))
		}
		w.lives(7, ttl)
		if h := w.holder(7); !strings.HasPrefix(string(h), "emitted "+v.EventID+" ") {
			t.Errorf("held by %q", h)
		}
		if d := w.rdb.PTTL(t.Context(), w.keys.Lock(7)).Val(); d > lease || d < lease/2 {
			t.Errorf("the lease is %s", d)
		}
		if _, ok, err := w.GetProgress(t.Context(), 7); ok || err != nil {
			t.Error("there is still progress", err)
		}
		if len(w.pending(w.keys.Views(), state.GroupRelocator)) != 0 {
			t.Error("the view is still pending")
		}
	})
	for name, holder := range map[string]string{"free": "", "another one's": "another", "emitted by another attempt": "emitted " + v.EventID + " other"} {
		t.Run("is refused, and changes nothing, when the lock is "+name, func(t *testing.T) {
			w, st := holding(t)
			w.must(w.rdb.Del(t.Context(), w.keys.Lock(7)).Err())
			if holder != "" {
				w.must(w.rdb.Set(t.Context(), w.keys.Lock(7), holder, time.Hour).Err())
			}
			before := w.raw(7)
			for range 2 {
				emit(w, st, false)
			}
			if w.length(w.keys.Relocated()) != 0 || w.raw(7) != before || string(w.holder(7)) != holder ||
				len(w.pending(w.keys.Views(), state.GroupRelocator)) != 1 {
				t.Error("something has changed")
			}
			if _, ok, _ := w.GetProgress(t.Context(), 7); !ok {
				t.Error("progress is gone")
			}
		})
	}
	t.Run("leaves a newer event's state", func(t *testing.T) {
		w, st := holding(t)
		w.append(view(2, 7, 2500, "gold", "bronze", hostile))
		before := w.raw(7)
		emit(w, st, true)
		if w.raw(7) != before || w.length(w.keys.Relocated()) != 1 {
			t.Errorf("state %s", w.raw(7))
		}
		w.lives(7, 0)
	})
	t.Run("writes over a state that is missing or cannot be read", func(t *testing.T) {
		values := map[string]string{"missing": ""}
		maps.Copy(values, unreadable)
		for name, value := range values {
			w, st := holding(t)
			w.must(w.rdb.Del(t.Context(), w.keys.Content(7)).Err())
			if name != "missing" {
				w.must(w.rdb.Set(t.Context(), w.keys.Content(7), value, 0).Err())
			}
			emit(w, st, true)
			if s := w.get(7); s.EntryID != st.EntryID || s.Status != state.Done {
				t.Errorf("%s: %+v", name, s)
			}
		}
	})
}

func TestStray(t *testing.T) {
	w := newWorld(t)
	c := event.Committed{EventID: uuid(1), ID: 7, From: "bronze", To: "silver", Filename: hostile, CommittedAt: posted}
	w.must(w.Stray(t.Context(), c))
	c.Outcome = event.OutcomeStray
	_, entries := w.entries(w.keys.Committed())
	if len(entries) != 1 {
		t.Fatalf("%d entries", len(entries))
	}
	w.sameEntry(entries[0], c.Fields())
}

func committed(v event.View, to string, outcome event.Outcome) event.Committed {
	return event.Committed{EventID: v.EventID, ID: v.ID, From: v.DBLevel, To: to, Filename: v.Filename, Generation: 4, Outcome: outcome, CommittedAt: posted}
}

func TestFinish(t *testing.T) {
	v := view(1, 7, 1500, "silver", "bronze", hostile)
	// emitted makes an event that waits for its commit; its entry of relocated is pending.
	emitted := func(t *testing.T) (w *world, entry string) {
		w = newWorld(t)
		st := state.NewState(v)
		st.EntryID = w.append(v)
		if got, _, err := w.Take(t.Context(), st.EntryID, 7, "mine", "w"); err != nil || got != state.Mine {
			t.Fatal(got, err)
		}
		if ok, err := w.Emit(t.Context(), st, "mine", moved(v, "silver")); err != nil || !ok {
			t.Fatal(ok, err)
		}
		return w, w.read(w.keys.Relocated(), state.GroupCommitter)[0].ID
	}
	finish := func(w *world, fs ...state.Finished) {
		w.Helper()
		for _, err := range w.Finish(w.Context(), fs) {
			w.must(err)
		}
	}
	t.Run("of a commit clears from, names the new level, unlocks and acks", func(t *testing.T) {
		w, entry := emitted(t)
		want := w.get(7)
		want.DBLevel = "silver"
		c := committed(v, "silver", event.OutcomeCommitted)
		for n := 1; n <= 2; n++ { // a repeat tells the releaser again, which is no harm
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
			if w.raw(7) != w.get(7).JSON() || !stream.Newer(ids[2], newest) {
				t.Errorf("state %s", w.raw(7))
			}
			// The older entries of the content are settled by it, the new one is the newest.
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
	t.Run("of a superseded move whose row is where it should be says done", func(t *testing.T) {
		w, entry := emitted(t)
		finish(w, state.Finished{EntryID: entry, Event: committed(v, "silver", event.OutcomeSuperseded), RowLevel: "silver"})
		if s := w.get(7); s.Status != state.Done || s.DBLevel != "silver" || w.length(w.keys.Views()) != 2 {
			t.Errorf("%+v", s)
		}
		w.lives(7, ttl)
	})
	t.Run("of a superseded move leaves a newer event alone: its level may be an old one, read by a committer that was paused",
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
	t.Run("leaves the level where there is no row", func(t *testing.T) {
		w, entry := emitted(t)
		finish(w, state.Finished{EntryID: entry, Event: committed(v, "silver", event.OutcomeCommitted)})
		if s := w.get(7); s.DBLevel != "bronze" {
			t.Errorf("%+v", s)
		}
	})
	t.Run("unlocks whichever attempt of this event emitted it, and nobody else", func(t *testing.T) {
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
	t.Run("makes no state where there is none or none that can be read", func(t *testing.T) {
		values := map[string]string{"missing": "", "no JSON inside": strings.Replace(
			state.State{ID: 7, Target: "gold", DBLevel: "bronze", Filename: "@", Status: state.Update, EventID: uuid(1), EntryID: "1-0", UpdatedAt: posted}.JSON(), `"@"`, `"a"b"`, 1)}
		maps.Copy(values, unreadable)
		for name, value := range values {
			w, entry := emitted(t)
			w.must(w.rdb.Del(t.Context(), w.keys.Content(7)).Err())
			if name != "missing" {
				w.must(w.rdb.Set(t.Context(), w.keys.Content(7), value, 0).Err())
			}
			finish(w, state.Finished{EntryID: entry, Event: committed(v, "silver", event.OutcomeCommitted), RowLevel: "silver"})
			if w.raw(7) != value || w.length(w.keys.Views()) != 1 || w.length(w.keys.Committed()) != 1 ||
				len(w.pending(w.keys.Relocated(), state.GroupCommitter)) != 0 {
				t.Errorf("%s: state %q", name, w.raw(7))
			}
		}
	})
	t.Run("of many fails only where it fails", func(t *testing.T) {
		w, entry := emitted(t)
		w.must(w.rdb.LPush(t.Context(), w.keys.Content(8), "no string").Err())
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
		gate, url := testserver.RedisGate(t, testserver.Redis(t))
		gate.Close()
		rdb, err := state.Connect(url, -1)
		if err != nil {
			t.Fatal(err)
		}
		defer rdb.Close()
		s := state.NewStore(state.Options{Redis: rdb, Keys: state.NewKeys("x:"), TTL: ttl, Lease: lease})
		errs := s.Finish(t.Context(), make([]state.Finished, 2))
		if len(errs) != 2 || !fault.Is(errs[0], fault.Unavailable) || !fault.Is(errs[1], fault.Unavailable) {
			t.Errorf("%v", errs)
		}
	})
}

func TestTheLockOfARelease(t *testing.T) {
	w := newWorld(t)
	for range 2 {
		if who, err := w.Lock(t.Context(), 7, "mine"); err != nil || who != "" {
			t.Fatal(who, err)
		}
	}
	if who, err := w.Lock(t.Context(), 7, "other"); err != nil || who != "mine" {
		t.Fatal(who, err)
	}
	if ok, err := w.Renew(t.Context(), 7, "other"); err != nil || ok {
		t.Fatal(ok, err)
	}
	w.must(w.rdb.PExpire(t.Context(), w.keys.Lock(7), lease/10).Err())
	if ok, err := w.Renew(t.Context(), 7, "mine"); err != nil || !ok {
		t.Fatal(ok, err)
	}
	if d := w.rdb.PTTL(t.Context(), w.keys.Lock(7)).Val(); d < lease/2 {
		t.Errorf("renewed to %s", d)
	}
	w.must(w.SetProgress(t.Context(), 7, state.Progress{}))
	w.must(w.Unlock(t.Context(), 7, "other"))
	if _, ok, _ := w.GetProgress(t.Context(), 7); w.holder(7) != "mine" || !ok {
		t.Error("somebody else has unlocked it")
	}
	for range 2 {
		w.must(w.Unlock(t.Context(), 7, "mine"))
	}
	if _, ok, _ := w.GetProgress(t.Context(), 7); w.holder(7) != "" || ok {
		t.Error("it is still locked")
	}
	if ok, err := w.Renew(t.Context(), 7, "mine"); err != nil || ok {
		t.Error("a lock that is gone was renewed", err)
	}
}

func TestReleasedUnlocksAndAcks(t *testing.T) {
	w := newWorld(t)
	w.must(w.Stray(t.Context(), event.Committed{ID: 7, To: "silver", Filename: "f"}))
	entry := w.read(w.keys.Committed(), state.GroupReleaser)[0].ID
	if who, err := w.Lock(t.Context(), 7, "mine"); err != nil || who != "" {
		t.Fatal(who, err)
	}
	for range 2 {
		w.must(w.Released(t.Context(), 7, "mine", entry))
	}
	if w.holder(7) != "" || len(w.pending(w.keys.Committed(), state.GroupReleaser)) != 0 {
		t.Error("lock or entry are still there")
	}
}

func TestTokensOfTwoAttemptsDiffer(t *testing.T) {
	tokens := []state.Token{state.NewToken("e", "w", "1"), state.NewToken("e", "w", "2"), state.NewToken("f", "w", "1"),
		state.NewReleaseToken("w", "1"), state.NewReleaseToken("w", "2")}
	for i, a := range tokens {
		for _, b := range tokens[i+1:] {
			if a == b {
				t.Errorf("%q twice", a)
			}
		}
	}
}

func TestBury(t *testing.T) {
	v := view(1, 7, 1500, "silver", "bronze", hostile)
	bury := func(w *world, consumer, entry string) bool {
		w.Helper()
		_, entries := w.entries(w.keys.Views())
		ok, err := w.Bury(w.Context(), state.GroupRelocator, consumer, entries[0], event.Failure{
			Stage: "relocate", Reason: "conflict", Error: "taken: " + hostile, Attempts: 8,
			SourceStream: w.keys.Views(), SourceID: entry, FailedAt: posted,
		})
		w.must(err)
		return ok
	}
	t.Run("settles an entry and keeps it, once", func(t *testing.T) {
		w := newWorld(t)
		entry := w.append(v)
		if !bury(w, "me", entry) {
			t.Fatal("not buried")
		}
		if bury(w, "me", entry) {
			t.Fatal("buried twice")
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
	t.Run("leaves another consumer's entry alone", func(t *testing.T) {
		w := newWorld(t)
		entry := w.append(v)
		if bury(w, "late", entry) || w.length(w.keys.Dead()) != 0 || len(w.pending(w.keys.Views(), state.GroupRelocator)) != 1 {
			t.Error("it was buried")
		}
	})
	t.Run("leaves an entry that is too big to be kept pending", func(t *testing.T) {
		w := newWorld(t)
		entry := w.append(v)
		big := map[string]string{}
		for i := range 5000 {
			big[fmt.Sprint(i)] = "x"
		}
		_, err := w.Bury(t.Context(), state.GroupRelocator, "me", big, event.Failure{SourceStream: w.keys.Views(), SourceID: entry})
		if !fault.Is(err, fault.Unavailable) {
			t.Errorf("%v", err)
		}
		if len(w.pending(w.keys.Views(), state.GroupRelocator)) != 1 {
			t.Error("it is lost")
		}
	})
}

func TestRetryView(t *testing.T) {
	v := view(1, 7, 1500, "silver", "bronze", hostile)
	again := view(2, 7, 1500, "bronze", "bronze", hostile) // decided again by the api, with an event id of its own
	// dead makes an entry of dead whose source was a view.
	dead := func(t *testing.T) (w *world, deadID, source string) {
		w = newWorld(t)
		source = w.append(v)
		ok, err := w.Bury(t.Context(), state.GroupRelocator, "me", map[string]string{"cid": "7"}, event.Failure{SourceStream: w.keys.Views(), SourceID: source})
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		ids, _ := w.entries(w.keys.Dead())
		return w, ids[0], source
	}
	t.Run("appends it once, with its state", func(t *testing.T) {
		w, id, source := dead(t)
		r, err := w.RetryView(t.Context(), id, source, again)
		w.must(err)
		ids, entries := w.entries(w.keys.Views())
		if r.Gone || r.Newer || len(ids) != 2 || r.EntryID != ids[1] {
			t.Fatalf("%+v, views %v", r, ids)
		}
		w.sameEntry(entries[1], again.Fields())
		want := state.NewState(again)
		want.EntryID, want.Status = ids[1], state.Update
		if w.get(7) != want || w.raw(7) != want.JSON() {
			t.Errorf("state %s", w.raw(7))
		}
		w.lives(7, 0)
		if r, err := w.RetryView(t.Context(), id, source, again); err != nil || !r.Gone {
			t.Errorf("the second time: %+v, %v", r, err)
		}
		if w.length(w.keys.Dead()) != 0 || w.length(w.keys.Views()) != 2 {
			t.Error("dead or views are wrong")
		}
	})
	t.Run("is refused when a newer event is there", func(t *testing.T) {
		w, id, source := dead(t)
		w.append(view(3, 7, 9, "bronze", "bronze", hostile))
		before := w.raw(7)
		for range 2 {
			if r, err := w.RetryView(t.Context(), id, source, again); err != nil || !r.Newer {
				t.Errorf("%+v, %v", r, err)
			}
		}
		if w.raw(7) != before || w.length(w.keys.Dead()) != 1 || w.length(w.keys.Views()) != 2 {
			t.Error("something has changed")
		}
	})
	t.Run("works where the state is missing or cannot be read", func(t *testing.T) {
		for name, value := range unreadable {
			w, id, source := dead(t)
			w.must(w.rdb.Set(t.Context(), w.keys.Content(7), value, time.Hour).Err())
			if r, err := w.RetryView(t.Context(), id, source, again); err != nil || r.EntryID == "" {
				t.Errorf("%s: %+v, %v", name, r, err)
			}
			w.lives(7, 0)
		}
	})
}

func TestRetryOfAnotherStreamsEntry(t *testing.T) {
	w := newWorld(t)
	id, err := w.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: w.keys.Dead(), Values: []string{"a", "b"}}).Result()
	w.must(err)
	fields := moved(view(1, 7, 1, "silver", "bronze", hostile), "silver").Fields()
	r, err := w.Retry(t.Context(), w.keys.Dead(), id, w.keys.Relocated(), fields)
	w.must(err)
	ids, entries := w.entries(w.keys.Relocated())
	if len(ids) != 1 || r.EntryID != ids[0] {
		t.Fatalf("%+v, %v", r, ids)
	}
	w.sameEntry(entries[0], fields)
	if r, err := w.Retry(t.Context(), w.keys.Dead(), id, w.keys.Relocated(), fields); err != nil || !r.Gone || w.length(w.keys.Relocated()) != 1 {
		t.Errorf("the second time: %+v, %v", r, err)
	}
}

func TestUnsettledCountsWhatIsUnreadAndWhatIsPending(t *testing.T) {
	w := newWorld(t)
	unsettled := func(want int64) {
		t.Helper()
		if n, err := w.Unsettled(t.Context()); err != nil || n != want {
			t.Errorf("%d, %v, not %d", n, err, want)
		}
	}
	unsettled(0)
	var ids []string
	for i := range 5 {
		ids = append(ids, w.append(view(i, 7, 1, "silver", "bronze", "f")))
	}
	unsettled(5) // pending
	w.must(w.rdb.XAck(t.Context(), w.keys.Views(), state.GroupRelocator, ids[0], ids[3]).Err())
	unsettled(3)
	_, err := w.Append(t.Context(), []event.View{view(6, 7, 1, "silver", "bronze", "f")})
	w.must(err)
	unsettled(4)
	w.must(w.rdb.XGroupDestroy(t.Context(), w.keys.Views(), state.GroupRelocator).Err())
	unsettled(6) // at most
	w.must(w.rdb.XGroupCreate(t.Context(), w.keys.Views(), state.GroupRelocator, ids[2]).Err())
	if n, err := w.Unsettled(t.Context()); err != nil || n < 3 || n > 6 {
		t.Errorf("after the group was made again: %d, %v", n, err)
	}
	w.must(w.rdb.Del(t.Context(), w.keys.Views()).Err())
	unsettled(0)

	// What a committer or a releaser has not settled counts as well.
	w.must(w.Stray(t.Context(), committed(view(1, 7, 1, "silver", "bronze", "f"), "silver", event.OutcomeStray)))
	w.must(w.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: w.keys.Relocated(), Values: []string{"a", "b"}}).Err())
	unsettled(2)
	w.read(w.keys.Relocated(), state.GroupCommitter)
	unsettled(2)
	w.must(w.rdb.XAck(t.Context(), w.keys.Relocated(), state.GroupCommitter, w.pending(w.keys.Relocated(), state.GroupCommitter)[0]).Err())
	unsettled(1)
}

func TestInFlightNamesEveryContentOfAnUnsettledEntry(t *testing.T) {
	w := newWorld(t)
	inFlight := func(want ...content.ID) {
		t.Helper()
		got, err := w.InFlight(t.Context())
		w.must(err)
		for _, id := range want {
			if !got[id] {
				t.Errorf("%s is missing: %v", id, got)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%v, not %v", got, want)
		}
	}
	inFlight()
	first := w.append(view(1, 1, 1, "silver", "bronze", "f"))
	second := w.append(view(2, 2, 1, "silver", "bronze", "f"))
	inFlight(1, 2)
	w.must(w.rdb.XAck(t.Context(), w.keys.Views(), state.GroupRelocator, first).Err())
	inFlight(2)
	_, err := w.Append(t.Context(), []event.View{view(3, 3, 1, "silver", "bronze", "f")})
	w.must(err)
	w.must(w.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: w.keys.Relocated(), Values: moved(view(4, 4, 1, "silver", "bronze", "f"), "silver").Fields()}).Err())
	w.must(w.Stray(t.Context(), event.Committed{ID: 5, To: "silver", Filename: "f"}))
	inFlight(2, 3, 4, 5)
	if got, err := w.InFlight(t.Context(), 1, 3, 5); err != nil || len(got) != 2 || !got[3] || !got[5] {
		t.Errorf("of 1, 3 and 5: %v, %v", got, err)
	}
	w.must(w.rdb.XAck(t.Context(), w.keys.Views(), state.GroupRelocator, second).Err())
	inFlight(3, 4, 5)
	w.must(w.rdb.XGroupDestroy(t.Context(), w.keys.Views(), state.GroupRelocator).Err())
	inFlight(1, 2, 3, 4, 5)
	w.must(w.rdb.Del(t.Context(), w.keys.Views()).Err())
	inFlight(4, 5)
}

func TestDeadTellsWhichEventsFailedForGood(t *testing.T) {
	w := newWorld(t)
	for i := range 1200 {
		w.must(w.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: w.keys.Dead(), Values: []any{"event_id", fmt.Sprintf("e%d", i)}}).Err())
	}
	got, err := w.Dead(t.Context(), "e0", "e1199", "e1200")
	if err != nil || len(got) != 2 || !got["e0"] || !got["e1199"] {
		t.Errorf("%v, %v", got, err)
	}
}

func TestInFlightSeesMoreThanOnePage(t *testing.T) {
	w := newWorld(t)
	var views []event.View
	for i := range 2500 {
		views = append(views, view(i, content.ID(i+1), 1, "silver", "bronze", "f"))
	}
	_, err := w.Append(t.Context(), views)
	w.must(err)
	if got, err := w.InFlight(t.Context()); err != nil || len(got) != 2500 {
		t.Errorf("%d, %v", len(got), err)
	}
}

func TestGet(t *testing.T) {
	w := newWorld(t)
	if _, ok, err := w.Get(t.Context(), 7); ok || err != nil {
		t.Error("a state where there is none", err)
	}
	for name, value := range unreadable {
		if name == "other spacing" || name == "followed by more" {
			continue // JSON all the same
		}
		w.must(w.rdb.Set(t.Context(), w.keys.Content(7), value, 0).Err())
		if _, ok, err := w.Get(t.Context(), 7); ok || err != nil {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
	}
}

func TestGetManyAnswersAsGetDoes(t *testing.T) {
	w := newWorld(t)
	if states, err := w.GetMany(t.Context(), nil); err != nil || len(states) != 0 {
		t.Errorf("%v, %v", states, err)
	}
	w.append(view(1, 7, 1, "silver", "bronze", hostile))
	w.must(w.rdb.Set(t.Context(), w.keys.Content(8), "hello", 0).Err())
	states, err := w.GetMany(t.Context(), []content.ID{9, 7, 8, 7})
	w.must(err)
	if len(states) != 4 || states[0] != nil || states[2] != nil || *states[1] != w.get(7) || *states[3] != w.get(7) {
		t.Errorf("%v", states)
	}
	w.must(w.Forget(t.Context(), 7))
	if w.raw(7) != "" {
		t.Error("not forgotten")
	}
}

func TestProgressIsReadAsItWasWrittenAndExpires(t *testing.T) {
	w := newWorld(t)
	if _, ok, err := w.GetProgress(t.Context(), 7); ok || err != nil {
		t.Error("progress where there is none", err)
	}
	p := state.Progress{EventID: uuid(1), From: "bronze", To: "silver", Filename: hostile, WorkerID: "w", BytesDone: 1 << 40, BytesTotal: 1 << 41}
	w.must(w.SetProgress(t.Context(), 7, p))
	got, ok, err := w.GetProgress(t.Context(), 7)
	if err != nil || !ok || time.Since(got.UpdatedAt) > time.Minute {
		t.Errorf("%+v, %v, %v", got, ok, err)
	}
	got.UpdatedAt = time.Time{}
	if got != p {
		t.Errorf("%+v, not %+v", got, p)
	}
	if d := w.rdb.PTTL(t.Context(), w.keys.Progress(7)).Val(); d <= 0 || d > lease {
		t.Errorf("it lives for %s", d)
	}
	w.must(w.rdb.HSet(t.Context(), w.keys.Progress(7), "bytes_done", "many").Err())
	if _, _, err := w.GetProgress(t.Context(), 7); err == nil || !strings.Contains(err.Error(), "bytes_done") {
		t.Errorf("%v", err)
	}
}

func TestPause(t *testing.T) {
	w := newWorld(t)
	for _, want := range []bool{true, true, false, false} {
		w.must(w.SetPaused(t.Context(), want, "an operator"))
		if got, err := w.Paused(t.Context()); err != nil || got != want {
			t.Errorf("%v, %v, not %v", got, err, want)
		}
	}
}

func TestWithoutRedisEveryCallSaysUnavailable(t *testing.T) {
	gate, url := testserver.RedisGate(t, testserver.Redis(t))
	gate.Close()
	rdb, err := state.Connect(url, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer rdb.Close()
	s := state.NewStore(state.Options{Redis: rdb, Keys: state.NewKeys("x:"), TTL: ttl, Lease: lease})
	v := view(1, 7, 1, "silver", "bronze", "f")
	ctx := t.Context()
	for name, call := range map[string]func() error{
		"Append":      func() error { _, err := s.Append(ctx, []event.View{v}); return err },
		"Get":         func() error { _, _, err := s.Get(ctx, 7); return err },
		"Take":        func() error { _, _, err := s.Take(ctx, "1-0", 7, "t", "w"); return err },
		"Settle":      func() error { return s.Settle(ctx, state.NewState(v), "t") },
		"Emit":        func() error { _, err := s.Emit(ctx, state.NewState(v), "t", moved(v, "silver")); return err },
		"Stray":       func() error { return s.Stray(ctx, event.Committed{}) },
		"Lock":        func() error { _, err := s.Lock(ctx, 7, "t"); return err },
		"Renew":       func() error { _, err := s.Renew(ctx, 7, "t"); return err },
		"Unlock":      func() error { return s.Unlock(ctx, 7, "t") },
		"Released":    func() error { return s.Released(ctx, 7, "t", "1-0") },
		"Holder":      func() error { _, err := s.Holder(ctx, 7); return err },
		"Bury":        func() error { _, err := s.Bury(ctx, "g", "c", nil, event.Failure{SourceStream: "x:views"}); return err },
		"RetryView":   func() error { _, err := s.RetryView(ctx, "1-0", "1-0", v); return err },
		"Retry":       func() error { _, err := s.Retry(ctx, "x:dead", "1-0", "x", v.Fields()); return err },
		"Unsettled":   func() error { _, err := s.Unsettled(ctx); return err },
		"Agree":       func() error { return s.Agree(ctx) },
		"InFlight":    func() error { _, err := s.InFlight(ctx); return err },
		"Dead":        func() error { _, err := s.Dead(ctx, "e"); return err },
		"Paused":      func() error { _, err := s.Paused(ctx); return err },
		"SetPaused":   func() error { return s.SetPaused(ctx, true, "") },
		"SetProgress": func() error { return s.SetProgress(ctx, 7, state.Progress{}) },
		"GetProgress": func() error { _, _, err := s.GetProgress(ctx, 7); return err },
		"GetMany":     func() error { _, err := s.GetMany(ctx, []content.ID{7}); return err },
		"Forget":      func() error { return s.Forget(ctx, 7) },
		"Now":         func() error { _, err := s.Now(ctx, "x:views"); return err },
	} {
		if err := call(); !fault.Is(err, fault.Unavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The client for ingest must not send a command twice: a lost reply is an error, and one event.
func TestALostReplyOfAppendIsOneEvent(t *testing.T) {
	w := newWorld(t)
	gate, url := testserver.RedisGate(t, testserver.Redis(t))
	rdb, err := state.Connect(url, -1)
	w.must(err)
	defer rdb.Close()
	s := state.NewStore(state.Options{Redis: rdb, Keys: w.keys, TTL: ttl, Lease: lease})
	_, err = s.Append(t.Context(), []event.View{view(1, 7, 1, "silver", "bronze", "f")}) // loads the script
	w.must(err)
	cut := gate.CutReply("evalsha")
	_, err = s.Append(t.Context(), []event.View{view(2, 7, 1, "silver", "bronze", "f")})
	if !fault.Is(err, fault.Unavailable) {
		t.Errorf("%v", err)
	}
	<-cut
	if n := w.length(w.keys.Views()); n != 2 {
		t.Errorf("%d entries", n)
	}
}
