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
	w.must(w.rdb.Set(t.Context(), w.keys.State(9), `no state, "x": "", "entry_id": "new", "updated_at": ""`, time.Hour).Err())
	seen, err := w.See(t.Context(), []item.ID{8, 7, 9})
	w.must(err)
	if len(seen) != 3 || seen[0].Entry != "" || seen[0].Lock != "another" || seen[1].Lock != "mine" || seen[2].Entry != "" || seen[2].Lock != "" {
		t.Fatalf("seen: %s", fmt.Sprint(seen))
	}
	if seen[1].Entry != entry {
		t.Errorf("the state names %q, not %q", seen[1].Entry, entry)
	}
	settled := w.get(7)
	if !seen[1].Says(settled) {
		t.Errorf("the state does not say what it says: %+v", settled)
	}
	for field, change := range map[string]func(*state.State){
		"count": func(s *state.State) { s.Count++ }, "target": func(s *state.State) { s.Target = "gold" },
		"db_level": func(s *state.State) { s.DBLevel = "gold" }, "filename": func(s *state.State) { s.Filename += "x" },
		"event_id": func(s *state.State) { s.EventID += "x" }, "entry_id": func(s *state.State) { s.EntryID = "1-0" },
	} {
		other := settled
		if change(&other); seen[1].Says(other) || seen[0].Says(other) || seen[2].Says(other) {
			t.Errorf("the state says another %s", field)
		}
	}
	for i, newer := range []bool{false, true, false} { // an item without a state has no newer event
		if seen[i].Newer("1-0") != newer || seen[i].Newer(entry) {
			t.Errorf("item %d has an event that is newer than 1-0: %v; than %s: %v", i, seen[i].Newer("1-0"), entry, seen[i].Newer(entry))
		}
	}
}
