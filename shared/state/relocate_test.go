package state_test

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/state"
)

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

func TestTakeLocksTheItemOfTheNewestEvent(t *testing.T) {
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
	t.Run("keeps the expiry of the state", func(t *testing.T) {
		w := newWorld(t)
		entry := w.append(view(1, 7, 5, "bronze", "bronze", "f"))
		_, _, err := w.Take(t.Context(), entry, 7, "t", "w")
		w.must(err)
		w.lives(7, 0)
		w.must(w.rdb.Expire(t.Context(), w.keys.State(7), ttl).Err())
		_, _, err = w.Take(t.Context(), entry, 7, "t", "w")
		w.must(err)
		w.lives(7, ttl)
	})
	t.Run("is busy while another worker has the lock, and changes nothing", func(t *testing.T) {
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
}

func TestTakeSettlesAnEventThatIsNotTheNewest(t *testing.T) {
	t.Run("whoever has the lock", func(t *testing.T) {
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
	t.Run("compares entry ids as numbers", func(t *testing.T) {
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
	t.Run("counts a missing or unreadable state as no newer event", func(t *testing.T) {
		w := newWorld(t)
		entry := w.append(view(1, 7, 5, "bronze", "bronze", "f"))
		values := map[string]string{"missing": ""}
		maps.Copy(values, unreadable)
		for name, value := range values {
			w.must(w.rdb.Del(t.Context(), w.keys.State(7)).Err())
			if name != "missing" {
				w.must(w.rdb.Set(t.Context(), w.keys.State(7), value, 0).Err())
			}
			if got, _, err := w.Take(t.Context(), entry, 7, "t", "w"); err != nil || got != state.Mine {
				t.Errorf("%s: %d, %v", name, got, err)
			}
			if w.raw(7) != value {
				t.Errorf("%s: it was written", name)
			}
		}
	})
	t.Run("leaves an entry alone that has no state and is not pending: a worker has kept it while Redis was wiped", func(t *testing.T) {
		w := newWorld(t)
		gone := func(what, entry string) {
			t.Helper()
			if got, _, err := w.Take(t.Context(), entry, 7, "t", "w"); err != nil || got != state.Settled {
				t.Errorf("%s: %d, %v", what, got, err)
			}
			if w.raw(7) != "" || w.holder(7) != "" {
				t.Errorf("%s: state %q, held by %q", what, w.raw(7), w.holder(7))
			}
		}
		entry := w.append(view(1, 7, 5, "bronze", "bronze", "f"))
		w.must(w.rdb.XAck(t.Context(), w.keys.Views(), state.GroupRelocator, entry).Err())
		w.must(w.rdb.Del(t.Context(), w.keys.State(7)).Err())
		gone("acked", entry)
		w.must(w.rdb.XGroupDestroy(t.Context(), w.keys.Views(), state.GroupRelocator).Err())
		gone("without the group", entry)
		w.must(w.rdb.Del(t.Context(), w.keys.Views()).Err())
		gone("without the stream", entry)
	})
	t.Run("fails where Redis cannot say whether the entry is pending", func(t *testing.T) {
		w := newWorld(t)
		w.must(w.rdb.Set(t.Context(), w.keys.Views(), "no stream", 0).Err())
		if got, _, err := w.Take(t.Context(), "1-0", 7, "t", "w"); err == nil {
			t.Errorf("it is %d", got)
		}
	})
}

func TestSettleEndsAViewEventWithoutAMove(t *testing.T) {
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
	t.Run("does not delete the lock of another worker", func(t *testing.T) {
		w := newWorld(t)
		entry := w.append(v)
		w.must(w.rdb.Set(t.Context(), w.keys.Lock(7), "another", time.Hour).Err())
		w.must(w.Settle(t.Context(), settled(entry), "mine"))
		if w.holder(7) != "another" || len(w.pending(w.keys.Views(), state.GroupRelocator)) != 0 {
			t.Error("lock or entry are wrong")
		}
	})
	t.Run("does not write over the state of a newer event", func(t *testing.T) {
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
	t.Run("writes nothing where the state is gone, cannot be read, or is another event's", func(t *testing.T) {
		w := newWorld(t)
		w.must(w.Settle(t.Context(), settled("5-0"), "mine"))
		if w.raw(7) != "" {
			t.Errorf("missing: %s", w.raw(7))
		}
		for name, value := range unreadable {
			w.must(w.rdb.Set(t.Context(), w.keys.State(7), value, 0).Err())
			w.must(w.Settle(t.Context(), settled("5-0"), "mine"))
			if w.raw(7) != value {
				t.Errorf("%s: %s", name, w.raw(7))
			}
		}
		for _, c := range newerCases {
			other := state.State{ID: 7, Target: "a", DBLevel: "b", Filename: "f", Status: state.Update, EventID: uuid(9), EntryID: c.theirs, UpdatedAt: posted}
			w.set(other)
			w.must(w.Settle(t.Context(), settled(c.mine), "mine"))
			if own := c.theirs == c.mine; (w.get(7) == done(c.mine)) != own || !own && w.get(7) != other {
				t.Errorf("%s against %s: %s", c.theirs, c.mine, w.raw(7))
			}
		}
	})
}

func TestSupersede(t *testing.T) {
	w := newWorld(t)
	v := view(1, 7, 5, "bronze", "bronze", hostile)
	entry := w.append(v)
	before := w.raw(7)
	w.must(w.rdb.Set(t.Context(), w.keys.Lock(7), "mine", time.Hour).Err())
	for range 2 {
		w.must(w.Supersede(t.Context(), 7, "mine", entry))
	}
	if w.raw(7) != before || w.holder(7) != "" || len(w.pending(w.keys.Views(), state.GroupRelocator)) != 0 {
		t.Errorf("state %s, held by %q", w.raw(7), w.holder(7))
	}
	w.lives(7, 0)
}

func TestTheLastViewIsTheNewestIDThatViewsHasGivenOut(t *testing.T) {
	w := newWorld(t)
	last := func(want string) {
		t.Helper()
		if got, err := w.LastView(t.Context(), 7); err != nil || got != want {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	last("0-0")
	entry := w.append(view(1, 7, 5, "bronze", "bronze", "f"))
	last(entry)
	w.must(w.rdb.XDel(t.Context(), w.keys.Views(), entry).Err())
	last(entry)
	w.must(w.rdb.Del(t.Context(), w.keys.Views()).Err())
	last("0-0")
}

// moved is what a relocator emits for a view.
func moved(v event.View, to string) event.Relocated {
	return event.Relocated{
		EventID: v.EventID, ID: v.ID, From: v.DBLevel, To: to, Filename: v.Filename, Generation: 3, Count: v.Count, Bytes: 1 << 40,
		Digest: "sha256:00", Method: "copy", WorkerID: "w", StartedAt: posted, FinishedAt: posted.Add(time.Second),
		CountEntry: "5-0",
	}
}

func TestEmitReportsACopyOnlyUnderItsOwnLock(t *testing.T) {
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
	t.Run("emits once, however often it is called", func(t *testing.T) {
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
		w.lives(7, 0) // until the commit: the event may have to be appended again
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
	t.Run("does not write over the state of a newer event", func(t *testing.T) {
		w, st := holding(t)
		w.append(view(2, 7, 2500, "gold", "bronze", hostile))
		before := w.raw(7)
		emit(w, st, true)
		if w.raw(7) != before || w.length(w.keys.Relocated()) != 1 {
			t.Errorf("state %s", w.raw(7))
		}
		w.lives(7, 0)
	})
	t.Run("makes no state where there is none or none that can be read", func(t *testing.T) {
		values := map[string]string{"missing": ""}
		maps.Copy(values, unreadable)
		for name, value := range values {
			w, st := holding(t)
			w.must(w.rdb.Del(t.Context(), w.keys.State(7)).Err())
			if name != "missing" {
				w.must(w.rdb.Set(t.Context(), w.keys.State(7), value, 0).Err())
			}
			emit(w, st, true)
			if w.raw(7) != value || w.length(w.keys.Relocated()) != 1 {
				t.Errorf("%s: %s", name, w.raw(7))
			}
		}
	})
}

func TestAStrayIsAnEntryOfCommitted(t *testing.T) {
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

func TestALockOfAReleaseIsRenewedAndDeletedByItsHolderOnly(t *testing.T) {
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

func TestReleasedUnlocksTheItemAndAcksTheEntry(t *testing.T) {
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
