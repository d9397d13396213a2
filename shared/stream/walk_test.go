package stream_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/tierflow/tierflow/shared/stream"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestOneConsumerOfAGroupWalksThroughThePendingListAtATime(t *testing.T) {
	w := newWorld(t)
	const consumers, minIdle = 10, 3 * time.Second // an interval of a second
	w.add(1)
	w.group("g")
	began := time.Now()
	var all []*running
	for i := range consumers {
		all = append(all, w.run(stream.Options{Consumer: fmt.Sprint(i), MinIdle: minIdle, Handle: func([]*stream.Delivery) {}}))
	}
	for _, r := range all {
		r.upkeeps(3)
	}
	walks := 0
	for _, r := range all {
		walks += r.client.count("xautoclaim")
	}
	if most := int(time.Since(began)/(minIdle/6)) + 2; walks > most || walks == 0 {
		t.Errorf("%d walks of %d consumers with %d upkeeps each or more, want up to %d", walks, consumers, 4, most)
	}
}

func TestAWalkerThatDiesDelaysATakeOverByLessThanAnInterval(t *testing.T) {
	w := newWorld(t)
	const minIdle = 30 * time.Second
	ids := w.leave(1)
	if err := w.rdb.Set(t.Context(), w.stream+":walker", "dead", minIdle/3/4).Err(); err != nil { // it has just renewed its lease
		t.Fatal(err)
	}
	handle, got := w.handler()
	r := w.run(stream.Options{MinIdle: minIdle, Handle: handle})
	h := next(w, got)
	if h.ID != ids[0] || r.client.count("xinfo consumers") > 1 {
		t.Errorf("%s was taken over after %d upkeeps", h.ID, r.client.count("xinfo consumers"))
	}
	w.settle(h)
	w.nothingIsLeft()
}

func TestALeaseOfAWalkerFromBeforeTheClockWentBackDoesNotCount(t *testing.T) {
	w := newWorld(t)
	ids := w.leave(1)
	if err := w.rdb.Set(t.Context(), w.stream+":walker", "dead", 24*time.Hour).Err(); err != nil {
		t.Fatal(err)
	}
	handle, got := w.handler()
	w.run(stream.Options{MinIdle: time.Hour, Handle: handle})
	h := next(w, got)
	if h.ID != ids[0] {
		t.Errorf("%s", h.ID)
	}
	w.settle(h)
}

func TestAWalkerWithoutASlotLetsOthersWalk(t *testing.T) {
	w := newWorld(t)
	w.leave(2)
	handle, got := w.handler()
	w.run(stream.Options{Consumer: "a", MinIdle: time.Hour, Handle: handle})
	a := next(w, got)
	w.run(stream.Options{Consumer: "b", MinIdle: time.Hour, Handle: handle})
	b := next(w, got)
	if a.ID == b.ID {
		t.Errorf("%s twice", a.ID)
	}
	w.settle(a)
	w.settle(b)
	w.nothingIsLeft()
}

// After a restart, nobody waits for the end of an interval.
func TestWhatAConsumerGivesBackIsTakenByOneThatStartsThen(t *testing.T) {
	w := newWorld(t)
	ids := w.add(1)
	a := w.run(stream.Options{Consumer: "a", MinIdle: time.Hour, Handle: func(ds []*stream.Delivery) { ds[0].Later(time.Hour) }})
	testserver.Eventually(t, "the entry waits", soon, func() error {
		if _, parked := a.Load(); parked != 1 {
			return fmt.Errorf("%d entries do", parked)
		}
		return nil
	})
	a.stop()
	a.wait()
	handle, got := w.handler()
	w.run(stream.Options{Consumer: "b", MinIdle: time.Hour, Handle: handle})
	h := next(w, got)
	if h.ID != ids[0] || h.Attempt != 1 {
		t.Errorf("%s, attempt %d", h.ID, h.Attempt)
	}
	w.settle(h)
	w.nothingIsLeft()
}
