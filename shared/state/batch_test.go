package state_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
)

func TestABatchIsSettledAndOnlyTheStatesOfItsOwnEventsExpire(t *testing.T) {
	w := newWorld(t)
	const items = 300 // more than one script settles
	var all []state.Settlement
	for id := item.ID(1); id <= items; id++ {
		older := w.append(view(int(id), id, 1, "bronze", "bronze", hostile))
		entry := w.append(view(1000+int(id), id, 2, "bronze", "bronze", hostile))
		all = append(all, state.Settlement{ID: id, EntryID: older, Superseded: true}, state.Settlement{ID: id, EntryID: entry})
	}
	moved := w.get(2)
	moved.Target, moved.DBLevel, moved.WorkerID, moved.Status = "silver", "silver", "w", state.Update
	all[3].State = &moved
	newer := w.append(view(3000, 3, 3, "bronze", "bronze", hostile))
	w.must(w.rdb.Del(t.Context(), w.keys.State(4)).Err())
	for range 2 { // the second time after a lost reply
		w.must(w.SettleAll(t.Context(), all))
	}
	if p := w.pending(w.keys.Views(), state.GroupRelocator); len(p) != 1 || p[0] != newer {
		t.Errorf("pending: %v, not only %s", p, newer)
	}
	w.lives(1, ttl)
	if st := w.get(2); st.Target != "silver" || st.DBLevel != "silver" || st.WorkerID != "" || st.Status != state.Done {
		t.Errorf("state %+v", st)
	}
	w.lives(2, ttl)
	if left := w.rdb.TTL(t.Context(), w.keys.State(3)).Val(); left != -1 || w.get(3).EntryID != newer {
		t.Errorf("the state of the newer event lives for %s", left)
	}
	if n := w.rdb.Exists(t.Context(), w.keys.State(4)).Val(); n != 0 {
		t.Error("a state was made")
	}
}

func TestStatesAndLocksOfManyItemsAreSeenTogether(t *testing.T) {
	w := newWorld(t)
	entry := w.append(view(1, 7, 5, "bronze", "bronze", hostile))
	w.must(w.rdb.Set(t.Context(), w.keys.Lock(7), "mine", time.Hour).Err())
	w.must(w.rdb.Set(t.Context(), w.keys.Lock(8), "another", time.Hour).Err())
	w.must(w.rdb.Set(t.Context(), w.keys.State(9), "no state", time.Hour).Err())
	seen, err := w.See(t.Context(), []item.ID{8, 7, 9})
	w.must(err)
	if len(seen) != 3 || seen[0].State != nil || seen[0].Lock != "another" || seen[1].State == nil || seen[1].State.EntryID != entry ||
		seen[1].Lock != "mine" || seen[2] != (state.Seen{}) {
		t.Errorf("seen: %s", fmt.Sprint(seen))
	}
}
