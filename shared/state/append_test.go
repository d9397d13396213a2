package state_test

import (
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

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
			w.lives(8, 0) // an unsettled event always has a state
		})
	}
}

func TestTheStateIsOfTheNewestEventOfABatch(t *testing.T) {
	w := newWorld(t)
	ids, err := w.Append(t.Context(), []event.View{view(1, 7, 1, "bronze", "bronze", "f"), view(2, 7, 1500, "silver", "bronze", "f")})
	w.must(err)
	if s := w.get(7); s.EntryID != ids[1] || s.Count != 1500 || s.Status != state.Update {
		t.Errorf("%+v", s)
	}
	w.lives(7, 0)
}

func TestAppendTakesTheExpiryOfAnOlderEventsStateAway(t *testing.T) {
	w := newWorld(t)
	w.append(view(1, 7, 5, "bronze", "bronze", "f"))
	w.must(w.rdb.Expire(t.Context(), w.keys.State(7), ttl).Err())
	w.append(view(2, 7, 6, "bronze", "bronze", "f"))
	w.lives(7, 0)
	w.must(w.rdb.Expire(t.Context(), w.keys.State(7), ttl).Err())
	id, err := w.AppendIf(t.Context(), w.get(7).EntryID, view(3, 7, 6, "bronze", "bronze", "f"))
	w.must(err)
	if id == "" {
		t.Fatal("nothing was appended")
	}
	w.lives(7, 0)
}

func TestARetriedViewIsAppendedOnceUnlessThereIsANewerEvent(t *testing.T) {
	v := view(1, 7, 1500, "silver", "bronze", hostile)
	again := view(2, 7, 1500, "bronze", "bronze", hostile) // decided again by the api, with an event id of its own
	// dead makes an entry of dead whose source was a view.
	dead := func(t *testing.T) (w *world, deadID, source string) {
		w = newWorld(t)
		source = w.append(v)
		ok, err := w.DeadLetter(t.Context(), state.GroupRelocator, "me", map[string]string{"cid": "7"}, event.Failure{SourceStream: w.keys.Views(), SourceID: source})
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		ids, _ := w.entries(w.keys.Dead())
		return w, ids[0], source
	}
	t.Run("appends it once, with its state", func(t *testing.T) {
		w, id, source := dead(t)
		r, err := w.RetryView(t.Context(), state.Ref{ID: id}, source, "", again)
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
		if r, err := w.RetryView(t.Context(), state.Ref{ID: id}, source, "", again); err != nil || !r.Gone {
			t.Errorf("the second time: %+v, %v", r, err)
		}
		if w.length(w.keys.Dead()) != 0 || w.length(w.keys.Views()) != 2 {
			t.Error("dead or views are wrong")
		}
	})
	t.Run("is refused where there is a newer event", func(t *testing.T) {
		w, id, source := dead(t)
		w.append(view(3, 7, 9, "bronze", "bronze", hostile))
		before := w.raw(7)
		for range 2 {
			if r, err := w.RetryView(t.Context(), state.Ref{ID: id}, source, "", again); err != nil || !r.Newer {
				t.Errorf("%+v, %v", r, err)
			}
		}
		if w.raw(7) != before || w.length(w.keys.Dead()) != 1 || w.length(w.keys.Views()) != 2 {
			t.Error("something has changed")
		}
	})
	t.Run("is refused when the row has a newer count whose state has expired", func(t *testing.T) {
		w, id, source := dead(t)
		newer := w.append(view(3, 7, 9, "bronze", "bronze", hostile))
		w.must(w.rdb.Del(t.Context(), w.keys.State(7)).Err())
		for range 2 {
			if r, err := w.RetryView(t.Context(), state.Ref{ID: id}, source, newer, again); err != nil || !r.Newer {
				t.Errorf("%+v, %v", r, err)
			}
		}
		if w.raw(7) != "" || w.length(w.keys.Dead()) != 1 || w.length(w.keys.Views()) != 2 {
			t.Error("something has changed")
		}
	})
	t.Run("is not refused for an older count of the row, nor for an id that views has not reached", func(t *testing.T) {
		for _, row := range []string{"1-0", "99999999999999-0"} {
			w, id, source := dead(t)
			w.must(w.rdb.Del(t.Context(), w.keys.State(7)).Err())
			if r, err := w.RetryView(t.Context(), state.Ref{ID: id}, source, row, again); err != nil || r.EntryID == "" {
				t.Errorf("%s: %+v, %v", row, r, err)
			}
		}
	})
	t.Run("fails, and keeps the dead letter, where Redis cannot say what views has reached", func(t *testing.T) {
		w, id, source := dead(t)
		w.must(w.rdb.Del(t.Context(), w.keys.State(7)).Err())
		w.must(w.rdb.Set(t.Context(), w.keys.Views(), "no stream", 0).Err())
		if r, err := w.RetryView(t.Context(), state.Ref{ID: id}, source, "99999999999999-0", again); err == nil {
			t.Errorf("%+v", r)
		}
		if w.length(w.keys.Dead()) != 1 {
			t.Error("the dead letter is gone")
		}
	})
	t.Run("is not refused where views is gone", func(t *testing.T) {
		w, id, source := dead(t)
		w.must(w.rdb.Del(t.Context(), w.keys.State(7), w.keys.Views()).Err())
		if r, err := w.RetryView(t.Context(), state.Ref{ID: id}, source, "99999999999999-0", again); err != nil || r.EntryID == "" {
			t.Errorf("%+v, %v", r, err)
		}
	})
	t.Run("works where the state is missing or unreadable", func(t *testing.T) {
		for name, value := range unreadable {
			w, id, source := dead(t)
			w.must(w.rdb.Set(t.Context(), w.keys.State(7), value, time.Hour).Err())
			if r, err := w.RetryView(t.Context(), state.Ref{ID: id}, source, "", again); err != nil || r.EntryID == "" {
				t.Errorf("%s: %+v, %v", name, r, err)
			}
			w.lives(7, 0)
		}
	})
}

func TestARetriedEntryGoesBackToItsOwnStream(t *testing.T) {
	w := newWorld(t)
	id, err := w.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: w.keys.Dead(), Values: []string{"a", "b"}}).Result()
	w.must(err)
	fields := moved(view(1, 7, 1, "silver", "bronze", hostile), "silver").Fields()
	r, err := w.Retry(t.Context(), state.Ref{ID: id}, w.keys.Relocated(), fields)
	w.must(err)
	ids, entries := w.entries(w.keys.Relocated())
	if len(ids) != 1 || r.EntryID != ids[0] {
		t.Fatalf("%+v, %v", r, ids)
	}
	w.sameEntry(entries[0], fields)
	if r, err := w.Retry(t.Context(), state.Ref{ID: id}, w.keys.Relocated(), fields); err != nil || !r.Gone || w.length(w.keys.Relocated()) != 1 {
		t.Errorf("the second time: %+v, %v", r, err)
	}
}

// The client of ingest must not send a command twice: after a lost reply there is an error and one event.
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
