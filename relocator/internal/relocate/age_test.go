package relocate_test

import (
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/relocator/internal/relocatortest"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
)

// future is the id of an entry that no stream of these tests reaches.
const future = "99999999999999-0"

func TestAnEventIsSupersededWhereTheRowHasANewerCount(t *testing.T) {
	for name, count := range map[string]int{"and it needs no move": 12, "and it asks for a move": 5000} {
		t.Run(name, func(t *testing.T) {
			w := relocatortest.New(t)
			body := w.Item(1, "a")
			w.Post(1, count)
			// A newer count of another item stands for one of this item whose state has expired.
			w.Item(2, "b")
			newer := w.Post(2, 3)
			w.Exec("UPDATE contents SET view_count = 7, count_entry = ? WHERE cid = 1", newer)
			before := w.Row(1)
			w.Relocator("r1")
			w.Settled()
			if got := w.Row(1); got != before {
				t.Errorf("row\n%+v, not\n%+v", got, before)
			}
			if n := w.Redis.XLen(t.Context(), w.Store.Keys().Relocated()).Val(); n != 0 {
				t.Errorf("%d relocations", n)
			}
			if d := w.Redis.TTL(t.Context(), w.Store.Keys().State(1)).Val(); d != -1 {
				t.Errorf("the state lives for %s", d)
			}
			w.Lies(1, "bronze", body)
		})
	}
}

func TestAnEntryIDOfTheRowThatViewsHasNotReachedIsForgotten(t *testing.T) {
	w := relocatortest.New(t)
	w.Item(1, "a")
	body := w.Item(2, "b")
	w.Exec("UPDATE contents SET view_count = 7, count_entry = ?", future)
	entry := w.Post(1, 12)
	w.Post(2, 1500)
	w.Run()
	w.Settled()
	if r := w.Row(1); r.ViewCount != 12 || r.CountEntry != entry {
		t.Errorf("row: %+v", r)
	}
	w.Lies(2, "silver", body)
	w.DeadLetters(0)
}

// TestAnEntryOfAWipedRedisChangesNothing has a worker look at the row with an entry that `views` has never given out.
func TestAnEntryOfAWipedRedisChangesNothing(t *testing.T) {
	w := relocatortest.New(t)
	w.Item(1, "a")
	w.Post(1, 3) // makes the stream
	w.Exec("UPDATE contents SET view_count = 7, count_entry = ?", future)
	before := w.Row(1)
	views := w.Store.Keys().Views()
	// The newest entry gets an id of the future, and the stream forgets that it has given it out.
	const lost = "99999999999998-0"
	fields := w.Redis.XRange(t.Context(), views, "-", "+").Val()[0].Values
	if err := w.Redis.XGroupCreate(t.Context(), views, state.GroupRelocator, "0").Err(); err != nil {
		t.Fatal(err)
	}
	values := map[string]string{}
	for k, v := range fields {
		values[k] = v.(string)
	}
	st, _, err := w.Store.Get(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	st.EntryID = lost
	if err := w.Redis.Set(t.Context(), w.Store.Keys().State(1), st.JSON(), 0).Err(); err != nil {
		t.Fatal(err)
	}
	d := &stream.Delivery{Single: true, Stream: views, ID: lost, Values: values, Attempt: 1, Context: t.Context()}
	w.RelocateHandler("r1").Handle([]*stream.Delivery{d})
	if got := w.Row(1); got != before {
		t.Errorf("row\n%+v, not\n%+v", got, before)
	}
	if n, err := w.Redis.Exists(t.Context(), w.Store.Keys().Lock(1)).Result(); err != nil || n != 0 {
		t.Errorf("the lock is held: %v", err)
	}
	if p := w.Redis.XPending(t.Context(), views, state.GroupRelocator); p.Err() != nil && p.Err() != redis.Nil {
		t.Error(p.Err())
	}
}
