package stream_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/tierflow/tierflow/shared/stream"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// counted waits until an entry of a consumer has this delivery count.
func (w *world) counted(id, consumer string, want int64) {
	w.Helper()
	testserver.Eventually(w, fmt.Sprintf("%s has %s, delivered %d times", consumer, id, want), soon, func() error {
		if p := w.pendingOf(id); p.Consumer != consumer || p.RetryCount != want {
			return fmt.Errorf("%+v", p)
		}
		return nil
	})
}

func TestAnEntryThatWaitsBeginsOnceWhenItIsWoken(t *testing.T) {
	w := newWorld(t)
	handle, got := w.handler()
	r := w.run(stream.Options{Handle: handle, MinIdle: long})
	w.add(1)
	h := next(w, got)
	h.Wake() // before the handler has returned
	h.answer <- func(d *stream.Delivery) { d.Reason = "tier"; d.Await() }
	h = next(w, got)
	h.answer <- func(d *stream.Delivery) { d.Reason = "tier"; d.Await() }
	testserver.Eventually(w, "it waits", soon, func() error {
		if n := r.Waiting()["tier"]; n != 1 {
			return fmt.Errorf("%v", r.Waiting())
		}
		return nil
	})
	h.Wake()
	h.Wake()
	h = next(w, got)
	if h.Attempt != 1 {
		t.Errorf("attempt %d", h.Attempt)
	}
	w.settle(h)
	h.Wake()
	w.nothingIsLeft()
	none(w, got)
}

func TestAConsumerThatDiesWhileItsEntryWaitsCostsNoAttempt(t *testing.T) {
	w := newWorld(t)
	id := w.add(1)[0]
	for i := range 5 {
		name := fmt.Sprintf("c%d", i/2) // each second one has the name of the one that has died
		gate, url := testserver.RedisGate(t, w.url)
		defer gate.Open()
		handle, got := w.handler()
		w.run(stream.Options{Consumer: name, Redis: w.client(url), Handle: handle})
		h := next(w, got)
		if h.Attempt != 1 {
			t.Fatalf("after %d deaths it is begun as attempt %d", i, h.Attempt)
		}
		w.counted(id, name, 1)
		h.answer <- (*stream.Delivery).Await
		w.counted(id, name, 0)
		gate.Close() // to Redis, it is dead
	}
}

func TestAConsumerThatDiesAfterAWaitCostsAnAttempt(t *testing.T) {
	w := newWorld(t)
	id := w.add(1)[0]
	gate, url := testserver.RedisGate(t, w.url)
	defer gate.Open()
	handle, got := w.handler()
	w.run(stream.Options{Consumer: "a", Redis: w.client(url), Handle: handle})
	h := next(w, got)
	h.answer <- (*stream.Delivery).Await
	h.Wake()
	h = next(w, got)
	w.counted(id, "a", 1)
	gate.Close()
	handle, got = w.handler()
	w.run(stream.Options{Consumer: "b", Handle: handle})
	if h := next(w, got); h.Attempt != 2 {
		t.Errorf("attempt %d", h.Attempt)
	}
}

func TestEntriesThatWaitAreGivenBackWithoutAnAttempt(t *testing.T) {
	w := newWorld(t)
	id := w.add(1)[0]
	for i := range 3 {
		handle, got := w.handler()
		r := w.run(stream.Options{Consumer: fmt.Sprint(i), Handle: handle, MinIdle: long})
		h := next(w, got)
		if h.Attempt != 1 {
			t.Fatalf("attempt %d", h.Attempt)
		}
		h.answer <- (*stream.Delivery).Await
		w.counted(id, fmt.Sprint(i), 0)
		r.stop()
		r.wait()
		w.counted(id, fmt.Sprint(i), 0)
	}
}

func TestEntriesThatWaitCostRedisNothing(t *testing.T) {
	w := newWorld(t)
	const n = 3000
	var parked sync.WaitGroup
	parked.Add(n)
	r := w.run(stream.Options{Slots: 100, MinIdle: long, Handle: func(ds []*stream.Delivery) {
		ds[0].Await()
		parked.Done()
	}})
	w.add(n)
	parked.Wait()
	testserver.Eventually(w, "all wait", soon, func() error {
		if running, parked := r.Load(); running > 0 || parked != n {
			return fmt.Errorf("%d run, %d are parked", running, parked)
		}
		return nil
	})
	before, reads := r.client.total(), r.client.count("xreadgroup")
	r.client.await(w, "xreadgroup", 3)
	if sent := r.client.total() - before; sent > 2*(r.client.count("xreadgroup")-reads)+20 {
		t.Errorf("%d commands during 3 reads", sent)
	}
}

func TestAHandlersDeliveriesAreUncountedTogether(t *testing.T) {
	w := newWorld(t)
	const n = 400
	r := w.run(stream.Options{Batch: n, MinIdle: long, Handle: func(ds []*stream.Delivery) {
		for _, d := range ds {
			d.Await()
		}
	}})
	ids := w.add(n)
	testserver.Eventually(w, "all wait", soon, r.parks(n))
	w.counted(ids[n-1], "me", 0)
	if scripts := r.client.count("evalsha") + r.client.count("eval"); scripts > 40 {
		t.Errorf("%d scripts for %d deliveries", scripts, n)
	}
}

func TestAHandlerThatHangsGivesItsSlotToOthersAndHoldsUpNoStop(t *testing.T) {
	w := newWorld(t)
	handle, got := w.handler()
	r := w.run(stream.Options{Slots: 1, MinIdle: long, Handle: handle})
	ids := w.add(2)
	h := next(w, got)
	none(w, got)
	h.Hangs()
	h.Hangs()
	other := next(w, got)
	w.settle(other)
	w.counted(ids[0], "me", 0) // its consumer may die now
	if running, _ := r.Load(); running > 1 {
		t.Errorf("%d run", running)
	}
	r.stop()
	r.wait()
	w.settle(h) // the system call returns after all
	w.nothingIsLeft()
}

func TestEntriesThatWaitForTheirTurnAreBounded(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	var waiting []*stream.Delivery
	free := false
	r := w.run(stream.Options{Slots: 8, Handle: func(ds []*stream.Delivery) {
		mu.Lock()
		defer mu.Unlock()
		if !free {
			waiting = append(waiting, ds[0])
			ds[0].AwaitTurn()
			return
		}
		w.ack(ds[0].ID)
		ds[0].Settled()
	}})
	w.add(1000)
	testserver.Eventually(w, "many wait", soon, func() error {
		if running, parked := r.Load(); running > 0 || parked < 512 {
			return fmt.Errorf("%d run, %d are parked", running, parked)
		}
		return nil
	})
	r.upkeeps(1) // turns go on
	if n := len(w.pending()); n > 512+8 {
		t.Errorf("%d were read", n)
	}
	mu.Lock()
	free = true
	mu.Unlock()
	for _, d := range waiting {
		d.Wake()
	}
	w.nothingIsLeft()
}
