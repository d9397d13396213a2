package stream_test

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/tierflow/tierflow/shared/stream"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestAnIdleConsumerStopsAtOnceAndLeavesNoTrace(t *testing.T) {
	w := newWorld(t)
	r := w.run(stream.Options{MinIdle: long, Handle: func([]*stream.Delivery) {}})
	r.client.await(w, "xreadgroup", 1)
	stopAt := time.Now()
	r.stop()
	r.wait()
	if took := time.Since(stopAt); took > 3*time.Second {
		t.Errorf("stopping took %s", took)
	}
	if cs := w.rdb.XInfoConsumers(t.Context(), w.stream, "g").Val(); len(cs) != 0 {
		t.Fatalf("left: %+v", cs)
	}
}

func TestAStopWaitsForHandlersAndGivesBackTheRestAtOnce(t *testing.T) {
	w := newWorld(t)
	handle, got := w.handler()
	r := w.run(stream.Options{Consumer: "a", Slots: 2, MinIdle: long, Drain: long, Handle: handle})
	w.add(2)
	parked, inHand := next(w, got), next(w, got)
	parked.answer <- func(d *stream.Delivery) { d.Later(time.Hour) }
	testserver.Eventually(w, "one is parked", soon, func() error {
		if running, parked := r.Load(); running != 1 || parked != 1 {
			return fmt.Errorf("%d running, %d parked", running, parked)
		}
		return nil
	})
	r.stop()
	testserver.Eventually(w, "what is parked is given back while the handler goes on", soon, func() error {
		if p := w.pendingOf(parked.ID); p.Idle < long {
			return fmt.Errorf("%+v", p)
		}
		return nil
	})
	handleB, gotB := w.handler()
	w.run(stream.Options{Consumer: "b", MinIdle: long, Handle: handleB})
	h := next(w, gotB)
	if h.ID != parked.ID {
		t.Fatalf("b got %s", h.ID)
	}
	w.settle(h)
	if inHand.Context.Err() != nil {
		t.Fatal("the handler was cancelled")
	}
	w.add(1)
	w.settle(next(w, gotB)) // a takes nothing new
	none(w, got)
	select {
	case <-r.stopped:
		t.Fatal("it did not wait for its handler")
	default:
	}
	w.settle(inHand)
	r.wait()
	w.nothingIsLeft()
	for _, c := range w.rdb.XInfoConsumers(t.Context(), w.stream, "g").Val() {
		if c.Name == "a" {
			t.Fatal("the consumer was not removed")
		}
	}
}

func TestARetiredConsumerFinishesItsWorkGivesBackTheRestAndCanResume(t *testing.T) {
	w := newWorld(t)
	handle, got := w.handler()
	r := w.run(stream.Options{Consumer: "a", Slots: 2, MinIdle: long, Drain: time.Millisecond, Handle: handle})
	w.add(2)
	parked, inHand := next(w, got), next(w, got)
	parked.answer <- func(d *stream.Delivery) { d.Later(time.Hour) }
	testserver.Eventually(w, "one is parked", soon, func() error {
		if _, parked := r.Load(); parked != 1 {
			return fmt.Errorf("%d parked", parked)
		}
		return nil
	})
	r.Retire()
	testserver.Eventually(w, "what is parked is given back", soon, func() error {
		if p := w.pendingOf(parked.ID); p.Idle < long {
			return fmt.Errorf("%+v", p)
		}
		return nil
	})
	handleB, gotB := w.handler()
	b := w.run(stream.Options{Consumer: "b", MinIdle: long, Handle: handleB})
	if h := next(w, gotB); h.ID != parked.ID {
		t.Fatalf("b got %s", h.ID)
	} else {
		w.settle(h)
	}
	w.add(1)
	w.settle(next(w, gotB)) // a takes nothing new
	b.stop()
	b.wait()
	if inHand.Context.Err() != nil || r.Ended() {
		t.Fatal("the handler was not waited for")
	}
	if !r.Resume() {
		t.Fatal("it does not go on")
	}
	w.add(1)
	w.settle(next(w, got))
	r.Retire()
	w.settle(inHand)
	r.wait() // without a stop
	if r.Resume() || !r.Ended() {
		t.Fatal("it has not ended")
	}
	w.nothingIsLeft()
}

func TestAfterAStopNothingRunsAnyMore(t *testing.T) {
	w := newWorldAlone(t)
	ours := func() error {
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		if bytes.Contains(stacks, []byte("stream.(*Consumer)")) {
			return fmt.Errorf("%s", stacks)
		}
		return nil
	}
	if err := ours(); err != nil {
		t.Fatal(err)
	}
	handle, got := w.handler()
	r := w.run(stream.Options{Slots: 3, Drain: 10 * time.Millisecond, Handle: handle})
	w.add(3)
	next(w, got).answer <- func(d *stream.Delivery) { d.Later(time.Hour) }
	w.settle(next(w, got))
	next(w, got).answer <- obedient
	r.stop()
	r.wait()
	testserver.Eventually(t, "no goroutine is left", soon, ours) // one may be at its very end
}

func TestAfterTheDrainTimeHandlersAreCancelledAndTheirEntriesGivenBack(t *testing.T) {
	w := newWorld(t)
	handle, got := w.handler()
	r := w.run(stream.Options{Consumer: "a", MinIdle: long, Drain: 10 * time.Millisecond, Handle: handle})
	id := w.add(1)[0]
	h := next(w, got)
	if h.Context.Err() != nil {
		t.Fatal("cancelled already")
	}
	r.stop()
	next(w, h.Context.Done())
	if cause := context.Cause(h.Context); cause == nil || cause == context.Canceled {
		t.Errorf("cause: %v", cause)
	}
	select {
	case <-r.stopped:
		t.Fatal("it did not wait for its handler")
	default:
	}
	h.answer <- func(d *stream.Delivery) { d.Failed(d.Context.Err()) }
	r.wait()
	if p := w.pendingOf(id); p.Consumer != "a" || p.Idle < long {
		t.Fatalf("%+v", p)
	}
	w.run(stream.Options{Consumer: "b", MinIdle: long, Handle: handle})
	h = next(w, got)
	if h.ID != id || h.Attempt != 1 { // being stopped is no failure of the entry
		t.Fatalf("%s, attempt %d", h.ID, h.Attempt)
	}
	w.settle(h)
	w.nothingIsLeft()
}
