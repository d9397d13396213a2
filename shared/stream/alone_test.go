package stream_test

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tierflow/tierflow/shared/stream"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// apart makes a handler of batches that sets all entries apart whose field n is in slow, settles the others, and gives single
// ones to the test.
func (w *world) apart(slow ...string) (stream.Handler, <-chan work) {
	single, got := w.handler()
	return func(ds []*stream.Delivery) {
		if ds[0].Single {
			single(ds)
			return
		}
		var acked []string
		for _, d := range ds {
			isSlow := false
			for _, n := range slow {
				isSlow = isSlow || d.Values["n"] == n
			}
			if isSlow {
				d.Alone()
				continue
			}
			acked = append(acked, d.ID)
			d.Settled()
		}
		if len(acked) > 0 {
			w.ack(acked...)
		}
	}, got
}

func (w *world) onlyPending(ids ...string) {
	w.Helper()
	testserver.Eventually(w, fmt.Sprintf("only %v are pending", ids), soon, func() error {
		info, err := w.rdb.XInfoGroups(w.Context(), w.stream).Result()
		if err != nil || len(info) != 1 || info[0].Lag != 0 {
			return fmt.Errorf("%+v, %v", info, err)
		}
		all := w.pending()
		for i, p := range all {
			if i >= len(ids) || p.ID != ids[i] {
				return fmt.Errorf("%+v", all)
			}
		}
		if len(all) != len(ids) {
			return fmt.Errorf("%+v", all)
		}
		return nil
	})
}

func TestAnEntrySetApartHoldsUpNoneOfItsBatchAndStaysAlone(t *testing.T) {
	w := newWorld(t)
	ids := w.add(10)
	handle, got := w.apart("3", "4")
	r := w.run(stream.Options{Batch: 100, Alone: 1, MinIdle: long, Handle: handle})
	first := next(w, got)
	w.onlyPending(ids[3], ids[4])
	if first.ID != ids[3] || first.Attempt != 1 {
		t.Fatalf("%s was begun, attempt %d", first.ID, first.Attempt)
	}
	testserver.Eventually(t, "one is in hand and one waits", soon, func() error {
		if running, parked := r.Load(); running != 1 || parked != 1 || r.Waiting()["slot"] != 1 {
			return fmt.Errorf("%d running, %d parked, waiting: %v", running, parked, r.Waiting())
		}
		return nil
	})
	w.counted(ids[4], "me", 0) // its wait may be long
	w.add(3)
	none(w, got) // there is one slot
	if info, err := w.rdb.XInfoGroups(w.Context(), w.stream).Result(); err != nil || info[0].Lag != 3 {
		t.Errorf("as many wait as have a slot, and more are read: %+v, %v", info, err)
	}
	first.answer <- func(d *stream.Delivery) { d.Later(time.Millisecond) }
	second := next(w, got)
	if second.ID != ids[4] || second.Attempt != 1 {
		t.Fatalf("%s was begun, attempt %d", second.ID, second.Attempt)
	}
	w.counted(ids[4], "me", 1)
	w.settle(second)
	again := next(w, got)
	if again.ID != ids[3] {
		t.Fatalf("%s was begun", again.ID)
	}
	again.answer <- (*stream.Delivery).Await
	again.Wake()
	w.settle(next(w, got))
	w.nothingIsLeft()
}

func TestNoEntrySetApartIsBegunDuringAHoldOrAfterAStop(t *testing.T) {
	w := newWorld(t)
	ids := w.add(3)
	handle, got := w.apart("0", "1", "2")
	var hold atomic.Bool
	r := w.run(stream.Options{Batch: 100, Alone: 1, MinIdle: long, Drain: long, Handle: handle, Hold: hold.Load})
	first := next(w, got)
	hold.Store(true)
	testserver.Eventually(t, "the consumer holds", soon, func() error {
		if !r.Holding() {
			return errors.New("it does not")
		}
		return nil
	})
	w.settle(first)
	w.onlyPending(ids[1], ids[2])
	none(w, got)
	hold.Store(false)
	second := next(w, got)
	r.stop()
	testserver.Eventually(t, "the last one is given back", soon, func() error {
		if p := w.pendingOf(ids[2]); p.Idle < long {
			return fmt.Errorf("%+v", p)
		}
		return nil
	})
	w.settle(second)
	r.wait()
	none(w, got)
	other, taken := w.handler()
	w.run(stream.Options{Consumer: "other", MinIdle: long, Handle: other})
	if h := next(w, taken); h.ID != ids[2] || h.Attempt != 1 {
		t.Errorf("%s, attempt %d", h.ID, h.Attempt)
	} else {
		w.settle(h)
	}
}

func TestAnEntryThatWaitsCanBeHurriedOrAckedWithAnother(t *testing.T) {
	w := newWorld(t)
	ids := w.add(2)
	handle, got := w.handler()
	r := w.run(stream.Options{Slots: 2, MinIdle: long, Handle: handle})
	works := map[string]work{}
	for range ids {
		h := next(w, got)
		works[h.ID] = h
	}
	later := func(d *stream.Delivery) { d.Later(time.Hour) }
	parked := func(n int) {
		t.Helper()
		testserver.Eventually(t, fmt.Sprintf("%d wait", n), soon, func() error {
			if running, parked := r.Load(); running != 0 || parked != n {
				return fmt.Errorf("%d running, %d parked", running, parked)
			}
			return nil
		})
	}
	works[ids[0]].Acked() // it is in hand, and so nothing happens
	works[ids[0]].Hurry()
	works[ids[0]].answer <- later
	works[ids[1]].answer <- later
	parked(2)
	w.ack(ids[0])
	works[ids[0]].Acked()
	works[ids[0]].Acked()
	parked(1)
	works[ids[0]].Hurry()
	works[ids[1]].Hurry()
	h := next(w, got)
	if h.ID != ids[1] || h.Attempt != 1 {
		t.Fatalf("%s was begun, attempt %d", h.ID, h.Attempt)
	}
	works[ids[1]].Acked() // it is in hand again
	w.settle(h)
	w.nothingIsLeft()
	parked(0)
}

func TestAnEntryThatIsDueSharesItsBatchWithNewOnes(t *testing.T) {
	w := newWorld(t)
	ids := w.add(1)
	batches, release := make(chan []*stream.Delivery), make(chan struct{})
	w.run(stream.Options{Batch: 100, MinIdle: long, Handle: func(ds []*stream.Delivery) {
		batches <- ds
		<-release
		for _, d := range ds {
			if d.ID == ids[0] && len(ds) == 1 {
				d.Later(time.Nanosecond)
				continue
			}
			w.ack(d.ID)
			d.Settled()
		}
	}})
	next(w, batches)
	ids = append(ids, w.add(2)...)
	release <- struct{}{}
	var got []string
	for _, d := range next(w, batches) {
		got = append(got, d.ID)
	}
	if !slices.Equal(got, ids) {
		t.Errorf("the batch is %v, not %v", got, ids)
	}
	close(release)
	w.nothingIsLeft()
}
