package stream_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/stream"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestAHandlerGetsAnEntrysFieldsAndTheEntryStaysPendingUntilItsAck(t *testing.T) {
	w := newWorld(t)
	handle, got := w.handler()
	r := w.run(stream.Options{Handle: handle})
	id := w.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: w.stream, Values: []string{"a", "1", "b", "x y\n\"é\""}}).Val()

	h := next(w, got)
	if h.ID != id || h.Attempt != 1 || h.Values["a"] != "1" || h.Values["b"] != "x y\n\"é\"" || len(h.Values) != 2 {
		t.Fatalf("got %s %d %v", h.ID, h.Attempt, h.Values)
	}
	r.upkeeps(3)
	if p := w.pendingOf(id); p.Consumer != "me" || p.RetryCount != 1 {
		t.Fatalf("pending: %+v", p)
	}
	none(w, got)
	w.settle(h)
	w.nothingIsLeft()
}

func TestAConsumerNeverReadsMoreThanItCanBegin(t *testing.T) {
	for _, c := range []struct {
		name         string
		slots, batch int
	}{{"one slot", 1, 1}, {"three slots", 3, 1}, {"two slots of batches", 2, 5}} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.add(50)
			began := make(chan []*stream.Delivery, 100)
			end := make(chan struct{})
			r := w.run(stream.Options{Slots: c.slots, Batch: c.batch, Handle: func(ds []*stream.Delivery) {
				began <- ds
				select {
				case <-end:
				case <-w.over:
					return
				}
				for _, d := range ds {
					w.ack(d.ID)
					d.Settled()
				}
			}})
			room := c.slots * c.batch
			var inHand int
			for range c.slots {
				ds := next(w, began)
				if len(ds) != c.batch {
					t.Fatalf("a handler got %d entries, not %d", len(ds), c.batch)
				}
				inHand += len(ds)
			}
			r.upkeeps(3)
			if n := len(w.pending()); n != room || inHand != room {
				t.Fatalf("%d pending, %d in hand, room for %d", n, inHand, room)
			}
			if running, parked := r.Load(); running != c.slots || parked != 0 {
				t.Fatalf("load: %d running, %d parked", running, parked)
			}
			close(end)
			w.nothingIsLeft()
		})
	}
}

// parks returns a check that so many deliveries are parked and no handler runs.
func (r *running) parks(n int) func() error {
	return func() error {
		if running, parked := r.Load(); running != 0 || parked != n {
			return fmt.Errorf("%d running, %d parked", running, parked)
		}
		return nil
	}
}

func TestNoEntryIsBegunDuringAHold(t *testing.T) {
	w := newWorld(t)
	var hold atomic.Bool
	handle, got := w.handler()
	w.add(1)
	w.group("g")
	w.read("g", "dead", 1)
	r := w.run(stream.Options{Slots: 2, Hold: hold.Load, Handle: handle})
	parked := next(w, got) // the dead one's
	w.add(1)
	running := next(w, got)
	hold.Store(true)
	parked.answer <- func(d *stream.Delivery) { d.Later(time.Millisecond) }
	w.settle(running)
	testserver.Eventually(w, "one is parked", soon, r.parks(1))
	w.add(5)
	r.upkeeps(3)
	none(w, got)
	if p := w.pending(); len(p) != 1 || p[0].Consumer != "me" || p[0].Idle > short {
		t.Fatalf("pending: %+v", p)
	}
	hold.Store(false)
	for range 6 {
		w.settle(next(w, got))
	}
	w.nothingIsLeft()
}

func TestABatchGetsAVerdictForEachOfItsEntries(t *testing.T) {
	w := newWorld(t)
	ids := w.add(12)
	batches := make(chan []*stream.Delivery, 100)
	var first sync.Once
	w.run(stream.Options{Batch: 12, Handle: func(ds []*stream.Delivery) {
		batches <- slices.Clone(ds)
		verdict := func(i int, d *stream.Delivery) { w.ack(d.ID); d.Settled() }
		first.Do(func() {
			verdict = func(i int, d *stream.Delivery) {
				switch i % 3 {
				case 0:
					w.ack(d.ID)
					d.Settled()
				case 1:
					d.Later(time.Millisecond)
				case 2:
					d.Failed(errors.New("no"))
				}
			}
		})
		for i, d := range ds {
			verdict(i, d)
		}
	}})
	if ds := next(w, batches); len(ds) != 12 || ds[0].ID != ids[0] || ds[11].ID != ids[11] {
		t.Fatalf("the first batch has %d", len(ds))
	}
	w.nothingIsLeft()
	again := map[string]int64{}
	for len(batches) > 0 {
		for _, d := range <-batches {
			again[d.ID] = d.Attempt
		}
	}
	for i, id := range ids {
		if want := []int64{0, 1, 2}[i%3]; again[id] != want {
			t.Errorf("entry %d came again as attempt %d, not %d", i, again[id], want)
		}
	}
}

func TestOneLostEntryOfABatchCancelsOnlyItself(t *testing.T) {
	w := newWorld(t)
	w.add(2)
	began := make(chan []*stream.Delivery, 1)
	end := make(chan struct{})
	w.run(stream.Options{Consumer: "a", Batch: 2, Handle: func(ds []*stream.Delivery) {
		began <- ds
		for {
			for _, d := range ds {
				d.Progress()
			}
			select {
			case <-w.over:
				return
			case <-end:
				w.ack(ds[1].ID)
				ds[1].Settled()
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}})
	ds := next(w, began)
	if err := w.rdb.XClaimJustID(t.Context(), &redis.XClaimArgs{Stream: w.stream, Group: "g", Consumer: "thief", Messages: []string{ds[0].ID}}).Err(); err != nil {
		t.Fatal(err)
	}
	next(w, ds[0].Context.Done())
	if ds[1].Context.Err() != nil {
		t.Fatal("the other one was cancelled as well")
	}
	if p := w.pendingOf(ds[0].ID); p.Consumer != "thief" {
		t.Fatalf("%+v", p)
	}
	close(end)
	w.ack(ds[0].ID)
	w.nothingIsLeft()
}

// Consumers come and go, lose replies and connections, and fail: in the end every entry has had its effect.
func TestNoEntryIsLostWhateverConsumersDo(t *testing.T) {
	w := newWorld(t)
	const entries = 400
	var effects sync.Map
	handle := func(ds []*stream.Delivery) {
		for _, d := range ds {
			switch rand.N(10) {
			case 0:
				d.Later(time.Duration(rand.N(20)) * time.Millisecond)
			case 1: // acked, but nothing said
				effects.Store(d.ID, true)
				w.ack(d.ID)
			case 2: // wakes up late
				select {
				case <-d.Context.Done():
				case <-time.After(rand.N(2 * short)):
				}
				d.Later(0)
			default:
				effects.Store(d.ID, true)
				w.ack(d.ID)
				d.Settled()
			}
		}
	}
	gate, url := testserver.RedisGate(t, w.url)
	var stable []*running
	for i := range 2 {
		stable = append(stable, w.run(stream.Options{
			Consumer: fmt.Sprint("stable", i), Slots: 3, Batch: 1 + i*3, Redis: w.client(url), Handle: handle,
		}))
	}
	var ids []string
	for range 10 {
		ids = append(ids, w.add(entries/10)...)
		cut := gate.CutReply([]string{"xreadgroup", "xautoclaim", "xpending"}[rand.N(3)])
		passing := w.run(stream.Options{Consumer: "passing", Slots: 5, Drain: 50 * time.Millisecond, Handle: handle})
		next(w, cut)
		passing.upkeeps(1)
		if rand.N(2) == 0 {
			gate.Close()
			passing.upkeeps(1)
			gate.Open()
		}
		passing.stop()
		passing.wait()
	}
	w.nothingIsLeft()
	for _, id := range ids {
		if _, ok := effects.Load(id); !ok {
			t.Errorf("%s is lost", id)
		}
	}
	for _, s := range stable {
		s.stop()
		s.wait()
	}
	for _, c := range w.rdb.XInfoConsumers(t.Context(), w.stream, "g").Val() {
		if c.Name != "passing" { // it may have given something back
			t.Errorf("left: %+v", c)
		}
	}
}
