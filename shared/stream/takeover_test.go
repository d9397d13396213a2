package stream_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tierflow/tierflow/shared/stream"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestEntriesOfALostReplyAreAdoptedWithoutAnAttempt(t *testing.T) {
	w := newWorld(t)
	ids := w.add(5)
	gate, url := testserver.RedisGate(t, w.url)
	cut := gate.CutReply("xreadgroup")
	handle, got := w.handler()
	w.run(stream.Options{Redis: w.client(url), Slots: 5, Handle: handle})
	next(w, cut)
	var seen []string
	for range ids {
		h := next(w, got)
		if h.Attempt != 1 {
			t.Errorf("%s is begun as attempt %d", h.ID, h.Attempt)
		}
		seen = append(seen, h.ID)
		w.settle(h)
	}
	slices.Sort(seen)
	if !slices.Equal(seen, ids) {
		t.Fatalf("got %v, want %v", seen, ids)
	}
	w.nothingIsLeft()
	none(w, got)
}

func TestALostReplyOfATakeOverLosesNoEntry(t *testing.T) {
	w := newWorld(t)
	w.add(1)
	w.group("g")
	id := w.read("g", "dead", 1)[0]
	gate, url := testserver.RedisGate(t, w.url)
	testserver.Eventually(w, "the dead one's entry is idle", soon, func() error {
		if p := w.pendingOf(id); p.Idle < short {
			return fmt.Errorf("idle %s", p.Idle)
		}
		return nil
	})
	cut := gate.CutReply("xautoclaim") // of the first take-over, which takes something: the entry is idle for long enough
	handle, got := w.handler()
	w.run(stream.Options{Redis: w.client(url), Handle: handle})
	next(w, cut)
	h := next(w, got)
	if h.ID != id {
		t.Fatalf("got %s", h.ID)
	}
	w.settle(h)
	w.nothingIsLeft()
}

func TestAPausedConsumerDoesNotTakeBackEntriesThatOthersTookOver(t *testing.T) {
	w := newWorld(t)
	gate, url := testserver.RedisGate(t, w.url)
	handleA, gotA := w.handler()
	a := w.run(stream.Options{Consumer: "a", Redis: w.client(url), Handle: handleA})
	id := w.add(1)[0]
	ha := next(w, gotA)

	gate.Close() // to Redis, a is paused
	handleB, gotB := w.handler()
	b := w.run(stream.Options{Consumer: "b", Handle: handleB})
	hb := next(w, gotB)
	if hb.ID != id || hb.Attempt != 2 {
		t.Fatalf("taken over: %s, attempt %d", hb.ID, hb.Attempt)
	}
	if ha.Context.Err() != nil {
		t.Fatal("a cannot know yet")
	}
	gate.Open()
	next(w, ha.Context.Done())
	if context.Cause(ha.Context) == context.Canceled {
		t.Error("the cancellation has no cause")
	}
	ha.answer <- obedient
	a.upkeeps(2)
	b.upkeeps(2)
	if p := w.pendingOf(id); p.Consumer != "b" {
		t.Fatalf("it is %s's", p.Consumer)
	}
	if hb.Context.Err() != nil {
		t.Fatal("b has lost it")
	}
	w.settle(hb)
	w.nothingIsLeft()
	none(w, gotA)
	none(w, gotB)
}

func TestAHeartbeatKeepsLongWorkAndParkedEntries(t *testing.T) {
	w := newWorld(t)
	handle, got := w.handler()
	r := w.run(stream.Options{Consumer: "a", Slots: 2, Handle: handle})
	other := w.run(stream.Options{Consumer: "b", Handle: func(ds []*stream.Delivery) {
		t.Errorf("b got %s", ds[0].ID)
	}, Hold: func() bool { return true }})
	w.add(2)
	first, second := next(w, got), next(w, got)
	second.answer <- func(d *stream.Delivery) { d.Later(time.Hour) }
	for range 12 { // for longer than MinIdle
		r.upkeeps(1)
		for _, p := range w.pending() {
			if p.Consumer != "a" || p.Idle > short {
				t.Fatalf("%+v", p)
			}
		}
	}
	other.upkeeps(1)
	if first.Context.Err() != nil {
		t.Fatal("lost")
	}
	w.settle(first)
}

func TestAnEntryIsKeptWhileItsHandlerWaitsForACallThatGivesNoSignOfLife(t *testing.T) {
	w := newWorld(t)
	got, call := make(chan work, 1), make(chan struct{})
	a := w.run(stream.Options{Consumer: "a", Handle: func(ds []*stream.Delivery) {
		done := ds[0].Working()
		got <- work{ds[0], nil}
		select {
		case <-call:
			done()
			<-ds[0].Context.Done() // from now on it shows no progress
		case <-w.over:
		}
	}})
	id := w.add(1)[0]
	h := next(w, got)
	b, gotB := w.handler()
	w.run(stream.Options{Consumer: "b", Handle: b})
	for range 12 { // for longer than MinIdle
		a.upkeeps(1)
		if p := w.pendingOf(id); p.Consumer != "a" || p.Idle > short {
			t.Fatalf("%+v", p)
		}
	}
	if h.Context.Err() != nil {
		t.Fatal("lost")
	}
	close(call)
	w.settle(next(w, gotB))
	w.nothingIsLeft()
}

func TestAHandlerWithoutASignOfLifeLosesItsEntryToAnotherConsumer(t *testing.T) {
	w := newWorld(t)
	gotA := make(chan work, 10)
	a := w.run(stream.Options{Consumer: "a", Slots: 2, Handle: func(ds []*stream.Delivery) {
		gotA <- work{ds[0], nil}
		select {
		case <-ds[0].Context.Done():
		case <-w.over:
		}
	}})
	id := w.add(1)[0]
	ha := next(w, gotA)
	// Alone, a leaves it where it is, and does not begin it twice.
	testserver.Eventually(w, "its consumer does not renew it", soon, func() error {
		if p := w.pendingOf(id); p.Idle < short {
			return fmt.Errorf("idle %s", p.Idle)
		}
		return nil
	})
	a.upkeeps(3)
	none(w, gotA)
	if p := w.pendingOf(id); p.Idle < short || p.RetryCount != 1 {
		t.Fatalf("a has touched it: %+v", p)
	}
	handleB, gotB := w.handler()
	w.run(stream.Options{Consumer: "b", Handle: handleB})
	hb := next(w, gotB)
	if hb.ID != id || hb.Attempt != 2 {
		t.Fatalf("taken over: %s, attempt %d", hb.ID, hb.Attempt)
	}
	next(w, ha.Context.Done())
	w.settle(hb)
	w.nothingIsLeft()
}

func TestADeadConsumersEntryBehindTwentyLiveOnesIsTakenOver(t *testing.T) {
	w := newWorld(t)
	w.add(21)
	var live sync.WaitGroup
	live.Add(20)
	end := make(chan struct{})
	w.run(stream.Options{Consumer: "live", Slots: 20, Handle: func(ds []*stream.Delivery) {
		live.Done()
		for {
			ds[0].Progress()
			select {
			case <-w.over:
				return
			case <-end:
				w.ack(ds[0].ID)
				ds[0].Settled()
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}})
	live.Wait()
	dead := w.read("g", "dead", 1)[0]
	handle, got := w.handler()
	w.run(stream.Options{Consumer: "heir", Handle: handle})
	h := next(w, got)
	if h.ID != dead || h.Attempt != 2 {
		t.Fatalf("got %s, attempt %d, not %s", h.ID, h.Attempt, dead)
	}
	w.settle(h)
	close(end)
	w.nothingIsLeft()
}

func TestATakeOverClaimsNoMoreThanThereAreSlots(t *testing.T) {
	w := newWorld(t)
	w.add(10)
	w.group("g")
	w.read("g", "dead", 10)
	handle, got := w.handler()
	r := w.run(stream.Options{Slots: 3, Handle: handle})
	var hs []work
	for range 3 {
		hs = append(hs, next(w, got))
	}
	r.upkeeps(3)
	none(w, got)
	mine := 0
	for _, p := range w.pending() {
		if p.Consumer == "me" {
			mine++
		}
	}
	if mine != 3 {
		t.Fatalf("%d were taken over with 3 slots", mine)
	}
	for _, h := range hs {
		w.settle(h)
	}
	for range 7 {
		w.settle(next(w, got))
	}
	w.nothingIsLeft()
}

func TestNewEntriesAreReadBetweenTheStepsOfALongWalk(t *testing.T) {
	w := newWorld(t)
	w.add(5000)
	w.group("g")
	w.read("g", "live", 5000)
	r := w.run(stream.Options{MinIdle: long, Slots: 100, Handle: func([]*stream.Delivery) {}})
	r.client.reach(w, "xautoclaim", 5) // each looks at a thousand
	r.client.mu.Lock()
	defer r.client.mu.Unlock()
	read := true
	for _, name := range r.client.names {
		switch name {
		case "xreadgroup":
			read = true
		case "xautoclaim":
			if !read {
				t.Fatalf("nothing was read between two steps: %v", r.client.names)
			}
			read = false
		}
	}
}

// leave makes entries pending with a consumer that died hours ago.
func (w *world) leave(n int) (ids []string) {
	w.Helper()
	w.add(n)
	w.group("g")
	for _, id := range w.read("g", "dead", int64(n)) {
		if err := w.rdb.Do(w.Context(), "XCLAIM", w.stream, "g", "dead", 0, id, "IDLE", (5 * time.Hour).Milliseconds(), "JUSTID").Err(); err != nil {
			w.Fatal(err)
		}
		ids = append(ids, id)
	}
	return ids
}

func TestATakeOverContinuesAsSlotsBecomeFree(t *testing.T) {
	w := newWorld(t)
	ids := w.leave(50)
	handle, got := w.handler()
	w.run(stream.Options{MinIdle: time.Hour, Slots: 3, Handle: handle})
	w.settleAll(got, ids)
	w.nothingIsLeft()
}

func TestNewEntriesGetSlotsDuringALongTakeOver(t *testing.T) {
	w := newWorld(t)
	w.leave(50)
	fresh := w.add(3)
	handle, got := w.handler()
	w.run(stream.Options{MinIdle: time.Hour, Handle: handle})
	for i := range 53 {
		h := next(w, got)
		if slices.Contains(fresh, h.ID) && i > 10 {
			t.Fatalf("a new entry has waited for %d that were taken over", i)
		}
		w.settle(h)
	}
	w.nothingIsLeft()
}

func TestAGroupThatVanishesDuringAWalkIsMadeAgain(t *testing.T) {
	w := newWorld(t)
	w.leave(5)
	handle, got := w.handler()
	r := w.run(stream.Options{MinIdle: time.Hour, Handle: handle})
	h := next(w, got)
	r.client.reach(w, "xinfo consumers", 1) // the upkeep is over, and the next is far away
	w.rdb.XGroupDestroy(t.Context(), w.stream, "g")
	h.answer <- (*stream.Delivery).Settled
	for range 5 { // from the beginning: no upkeep has seen a settled entry
		w.settle(next(w, got))
	}
	w.nothingIsLeft()
}

func TestAnEntryInHandThatIsDeliveredAgainIsNotBegunTwice(t *testing.T) {
	w := newWorld(t)
	handle, got := w.handler()
	r := w.run(stream.Options{MinIdle: long, Slots: 2, Handle: handle})
	id := w.add(1)[0]
	h := next(w, got)
	w.rdb.XGroupDestroy(t.Context(), w.stream, "g")
	testserver.Eventually(w, "it is delivered again", soon, func() error {
		groups, err := w.rdb.XInfoGroups(t.Context(), w.stream).Result()
		if err != nil || len(groups) == 0 || groups[0].Pending == 0 {
			return fmt.Errorf("%+v, %v", groups, err)
		}
		return nil
	})
	r.client.await(w, "xreadgroup", 2)
	none(w, got)
	if p := w.pendingOf(id); p.Consumer != "me" {
		t.Fatalf("%+v", p)
	}
	w.settle(h)
	w.nothingIsLeft()
}

func TestAReassignedEntryIsBegunSoonWithoutAnAttempt(t *testing.T) {
	w := newWorld(t)
	w.group("g")
	w.add(1)
	id := w.read("g", "a", 1)[0]
	handle, got := w.handler()
	w.run(stream.Options{Consumer: "b", MinIdle: long, Adopt: 50 * time.Millisecond, Handle: handle})
	w.add(1)
	w.settle(next(w, got)) // its first upkeep, which adopts as well, is over
	if err := w.rdb.Do(t.Context(), "XCLAIM", w.stream, "g", "b", 0, id, "JUSTID").Err(); err != nil {
		t.Fatal(err)
	}
	h := next(w, got)
	if h.ID != id || h.Attempt != 1 {
		t.Fatalf("%s, attempt %d", h.ID, h.Attempt)
	}
	w.settle(h)
}
