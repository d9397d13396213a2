package state_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
)

func TestUnsettledCountsUnreadAndPendingEntries(t *testing.T) {
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

	// Entries that a committer or a releaser has not settled count as well.
	w.must(w.Stray(t.Context(), committed(view(1, 7, 1, "silver", "bronze", "f"), "silver", event.OutcomeStray)))
	w.must(w.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: w.keys.Relocated(), Values: []string{"a", "b"}}).Err())
	unsettled(2)
	w.read(w.keys.Relocated(), state.GroupCommitter)
	unsettled(2)
	w.must(w.rdb.XAck(t.Context(), w.keys.Relocated(), state.GroupCommitter, w.pending(w.keys.Relocated(), state.GroupCommitter)[0]).Err())
	unsettled(1)
}

func TestInFlightNamesEveryItemOfAnUnsettledEntry(t *testing.T) {
	w := newWorld(t)
	inFlight := func(want ...item.ID) {
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

func TestDeadEventsNamesTheEventsThatAreDeadLetters(t *testing.T) {
	w := newWorld(t)
	for i := range 1200 {
		w.must(w.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: w.keys.Dead(), Values: []any{"event_id", fmt.Sprintf("e%d", i)}}).Err())
	}
	got, err := w.DeadEvents(t.Context(), "e0", "e1199", "e1200")
	if err != nil || len(got) != 2 || !got["e0"] || !got["e1199"] {
		t.Errorf("%v, %v", got, err)
	}
}

func TestInFlightReadsMoreThanOnePage(t *testing.T) {
	w := newWorld(t)
	var views []event.View
	for i := range 2500 {
		views = append(views, view(i, item.ID(i+1), 1, "silver", "bronze", "f"))
	}
	_, err := w.Append(t.Context(), views)
	w.must(err)
	if got, err := w.InFlight(t.Context()); err != nil || len(got) != 2500 {
		t.Errorf("%d, %v", len(got), err)
	}
}

func TestAnItemWithoutAReadableStateHasNone(t *testing.T) {
	w := newWorld(t)
	if _, ok, err := w.Get(t.Context(), 7); ok || err != nil {
		t.Error("a state where there is none", err)
	}
	for name, value := range unreadable {
		if name == "other spacing" || name == "followed by more" {
			continue // JSON all the same
		}
		w.must(w.rdb.Set(t.Context(), w.keys.State(7), value, 0).Err())
		if _, ok, err := w.Get(t.Context(), 7); ok || err != nil {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
	}
}

func TestGetManyReturnsTheSameAsGet(t *testing.T) {
	w := newWorld(t)
	if states, err := w.GetMany(t.Context(), nil); err != nil || len(states) != 0 {
		t.Errorf("%v, %v", states, err)
	}
	w.append(view(1, 7, 1, "silver", "bronze", hostile))
	w.must(w.rdb.Set(t.Context(), w.keys.State(8), "hello", 0).Err())
	states, err := w.GetMany(t.Context(), []item.ID{9, 7, 8, 7})
	w.must(err)
	if len(states) != 4 || states[0] != nil || states[2] != nil || *states[1] != w.get(7) || *states[3] != w.get(7) {
		t.Errorf("%v", states)
	}
}

func TestProgressIsReadAsWrittenAndExpires(t *testing.T) {
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

func TestRelocationsArePausedUntilTheyAreResumed(t *testing.T) {
	w := newWorld(t)
	for _, want := range []bool{true, true, false, false} {
		w.must(w.SetPaused(t.Context(), want, "an operator"))
		if got, err := w.Paused(t.Context()); err != nil || got != want {
			t.Errorf("%v, %v, not %v", got, err, want)
		}
	}
}

func TestWithoutRedisEveryCallFailsAsUnavailable(t *testing.T) {
	s := storeWithoutRedis(t)
	v := view(1, 7, 1, "silver", "bronze", "f")
	ctx := t.Context()
	for name, call := range map[string]func() error{
		"Append":   func() error { _, err := s.Append(ctx, []event.View{v}); return err },
		"Get":      func() error { _, _, err := s.Get(ctx, 7); return err },
		"Take":     func() error { _, _, err := s.Take(ctx, "1-0", 7, "t", "w"); return err },
		"Settle":   func() error { return s.Settle(ctx, state.NewState(v), "t") },
		"Emit":     func() error { _, err := s.Emit(ctx, state.NewState(v), "t", moved(v, "silver")); return err },
		"Stray":    func() error { return s.Stray(ctx, event.Committed{}) },
		"Lock":     func() error { _, err := s.Lock(ctx, 7, "t"); return err },
		"Renew":    func() error { _, err := s.Renew(ctx, 7, "t"); return err },
		"Unlock":   func() error { return s.Unlock(ctx, 7, "t") },
		"Released": func() error { return s.Released(ctx, 7, "t", "1-0") },
		"Holder":   func() error { _, err := s.Holder(ctx, 7); return err },
		"Holders":  func() error { _, err := s.Holders(ctx, []item.ID{7}); return err },
		"DeadLetter": func() error {
			_, err := s.DeadLetter(ctx, "g", "c", nil, event.Failure{SourceStream: "x:views"})
			return err
		},
		"RetryView":      func() error { _, err := s.RetryView(ctx, state.Ref{ID: "1-0"}, "1-0", "", v); return err },
		"Retry":          func() error { _, err := s.Retry(ctx, state.Ref{ID: "1-0"}, "x", v.Fields()); return err },
		"Unsettled":      func() error { _, err := s.Unsettled(ctx); return err },
		"Agree":          func() error { return s.Agree(ctx) },
		"InFlight":       func() error { _, err := s.InFlight(ctx); return err },
		"DeadEvents":     func() error { _, err := s.DeadEvents(ctx, "e"); return err },
		"Paused":         func() error { _, err := s.Paused(ctx); return err },
		"SetPaused":      func() error { return s.SetPaused(ctx, true, "") },
		"SetProgress":    func() error { return s.SetProgress(ctx, 7, state.Progress{}) },
		"GetProgress":    func() error { _, _, err := s.GetProgress(ctx, 7); return err },
		"GetMany":        func() error { _, err := s.GetMany(ctx, []item.ID{7}); return err },
		"Forget":         func() error { _, err := s.Forget(ctx, 7, "t", true); return err },
		"CopiesUnderWay": func() error { _, err := s.CopiesUnderWay(ctx, 7); return err },
		"Now":            func() error { _, err := s.Now(ctx, "x:views"); return err },
	} {
		if err := call(); !fault.Is(err, fault.Unavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTheHoldersOfManyItemsAreReadInOneRoundTrip(t *testing.T) {
	w := newWorld(t)
	ids := []item.ID{7, 8, 9}
	for _, id := range []item.ID{7, 9} {
		_, err := w.Lock(t.Context(), id, state.NewReleaseToken("me", id.String()))
		w.must(err)
	}
	got, err := w.Holders(t.Context(), ids)
	w.must(err)
	if want := []state.Token{"releasing me 7", "", "releasing me 9"}; !slices.Equal(got, want) {
		t.Errorf("%q, not %q", got, want)
	}
}
