package state_test

import (
	"fmt"
	"testing"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
)

func TestForgettingAnItemDeletesItsStateAndLockOnlyUnderItsOwnLock(t *testing.T) {
	w := newWorld(t)
	forget := func(token state.Token, gone, want bool) {
		t.Helper()
		if ours, err := w.Forget(t.Context(), 7, token, gone); err != nil || ours != want {
			t.Fatalf("%t, %v", ours, err)
		}
	}
	lock := func(token state.Token) {
		t.Helper()
		if holder, err := w.Lock(t.Context(), 7, token); err != nil || holder != "" {
			t.Fatal(holder, err)
		}
	}
	w.append(view(1, 7, 1, "silver", "bronze", hostile))
	mine := state.NewForgetToken("a")
	forget(mine, true, false)
	lock("another")
	forget(mine, true, false)
	if w.raw(7) == "" || w.holder(7) != "another" {
		t.Error("without the lock something was deleted")
	}
	forget("another", false, true)
	if w.raw(7) == "" || w.holder(7) != "" {
		t.Error("an item whose row stays is unlocked and keeps its state")
	}
	lock(mine)
	forget(mine, true, true)
	if w.raw(7) != "" || w.holder(7) != "" {
		t.Error("the state or the lock is still there")
	}
}

func TestCopiesUnderWayAreThoseThatTheirGroupsHaveNotSettled(t *testing.T) {
	w := newWorld(t)
	check := func(when string, id item.ID, want state.Copies) {
		t.Helper()
		if c, err := w.CopiesUnderWay(t.Context(), id); err != nil || c != want {
			t.Errorf("%s: %+v, not %+v, %v", when, c, want, err)
		}
	}
	check("nothing was moved", 7, state.Copies{})
	for id := item.ID(7); id <= 8; id++ { // 8 stays unsettled, and 7 has an entry before and one behind it
		v := view(int(id), id, 1500, "silver", "bronze", fmt.Sprint(id))
		st := state.NewState(v)
		st.EntryID = w.append(v)
		if got, _, err := w.Take(t.Context(), st.EntryID, id, "mine", "w"); err != nil || got != state.Mine {
			t.Fatal(got, err)
		}
		if ok, err := w.Emit(t.Context(), st, "mine", moved(v, "silver")); err != nil || !ok {
			t.Fatal(ok, err)
		}
	}
	check("emitted and not read", 7, state.Copies{Uncommitted: true})
	entries := w.read(w.keys.Relocated(), state.GroupCommitter)
	check("read and not committed", 7, state.Copies{Uncommitted: true})
	v := view(7, 7, 1500, "silver", "bronze", "7")
	for _, err := range w.Finish(t.Context(), []state.Finished{
		{EntryID: entries[0].ID, Event: committed(v, "silver", event.OutcomeCommitted), RowLevel: "silver"}}) {
		w.must(err)
	}
	check("committed and not released", 7, state.Copies{Unreleased: true})
	check("another item", 8, state.Copies{Uncommitted: true})
	entry := w.read(w.keys.Committed(), state.GroupReleaser)[0].ID
	check("read and not released", 7, state.Copies{Unreleased: true})
	w.must(w.Stray(t.Context(), committed(view(8, 8, 1500, "silver", "bronze", "8"), "silver", event.OutcomeStray)))
	w.must(w.Released(t.Context(), 7, "mine", entry))
	check("released", 7, state.Copies{})
	check("emitted, and an earlier copy is a stray", 8, state.Copies{Uncommitted: true, Unreleased: true})
}
