package stream_test

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tierflow/tierflow/shared/stream"
	"github.com/tierflow/tierflow/shared/testserver"
)

func TestAFailedEntryIsTriedAgainAfterABackOffAsTheNextAttempt(t *testing.T) {
	w := newWorld(t)
	handle, got := w.hands()
	w.run(stream.Options{Handle: handle})
	id := w.add(1)[0]
	h := next(w, got)
	failed := time.Now()
	h.answer <- func(d *stream.Delivery) { d.Failed(errors.New("no")) }
	h = next(w, got)
	if since := time.Since(failed); since < 500*time.Millisecond {
		t.Errorf("tried again after %s", since)
	}
	if h.ID != id || h.Attempt != 2 || w.pendingOf(id).RetryCount != 2 {
		t.Fatalf("%s, attempt %d, in Redis %+v", h.ID, h.Attempt, w.pendingOf(id))
	}
	h.answer <- func(*stream.Delivery) {} // nothing said is failed
	h = next(w, got)
	if h.Attempt != 3 {
		t.Fatalf("attempt %d", h.Attempt)
	}
	w.settle(h)
	w.nothingIsLeft()
}

func TestAttemptsAndBackOffSurviveARestart(t *testing.T) {
	// failing makes an entry wait for its second attempt, and stops its consumer.
	failing := func(t *testing.T) (*world, string) {
		w := newWorld(t)
		handle, got := w.hands()
		r := w.run(stream.Options{Consumer: "a", MinIdle: long, Handle: handle})
		id := w.add(1)[0]
		next(w, got).answer <- func(d *stream.Delivery) { d.Failed(errors.New("no")) }
		testserver.Eventually(w, "it is parked", soon, r.parks(1))
		r.stop()
		r.wait()
		return w, id
	}
	t.Run("under the same name", func(t *testing.T) {
		w, id := failing(t)
		handle, got := w.hands()
		started := time.Now()
		w.run(stream.Options{Consumer: "a", MinIdle: long, Handle: handle})
		h := next(w, got)
		if h.ID != id || h.Attempt != 2 {
			t.Fatalf("%s, attempt %d", h.ID, h.Attempt)
		}
		if since := time.Since(started); since < 500*time.Millisecond {
			t.Errorf("tried again after %s", since)
		}
		w.settle(h)
	})
	t.Run("under another name", func(t *testing.T) {
		w, id := failing(t)
		handle, got := w.hands()
		w.run(stream.Options{Consumer: "b", MinIdle: long, Handle: handle})
		h := next(w, got)
		if h.ID != id || h.Attempt != 2 {
			t.Fatalf("%s, attempt %d", h.ID, h.Attempt)
		}
		w.settle(h)
	})
	t.Run("a crash counts as an attempt, under the same name too", func(t *testing.T) {
		w := newWorld(t)
		w.add(1)
		w.group("g")
		id := w.read("g", "a", 1)[0]
		handle, got := w.hands()
		w.run(stream.Options{Consumer: "a", MinIdle: long, Handle: handle})
		h := next(w, got)
		if h.ID != id || h.Attempt != 2 || w.pendingOf(id).RetryCount != 2 {
			t.Fatalf("%s, attempt %d, in Redis %+v", h.ID, h.Attempt, w.pendingOf(id))
		}
		w.settle(h)
	})
	t.Run("an entry that failed often waits long", func(t *testing.T) {
		w := newWorld(t)
		w.add(2)
		w.group("g")
		id := w.read("g", "a", 1)[0]
		// 20 attempts: minutes of back-off
		if err := w.rdb.Do(t.Context(), "XCLAIM", w.stream, "g", "a", 0, id, "RETRYCOUNT", 20, "JUSTID").Err(); err != nil {
			t.Fatal(err)
		}
		handle, got := w.hands()
		r := w.run(stream.Options{Consumer: "a", Handle: handle})
		h := next(w, got)
		if h.ID == id {
			t.Fatal("it did not wait")
		}
		w.settle(h)
		r.upkeeps(3)
		none(w, got)
		if p := w.pendingOf(id); p.RetryCount != 21 || p.Idle > short {
			t.Fatalf("%+v", p)
		}
	})
}

func TestLaterIsNoAttempt(t *testing.T) {
	for _, wait := range []time.Duration{time.Millisecond, 0} {
		t.Run(fmt.Sprintf("wait %s", wait), func(t *testing.T) {
			w := newWorld(t)
			handle, got := w.hands()
			r := w.run(stream.Options{Handle: handle})
			id := w.add(1)[0]
			for range 5 {
				h := next(w, got)
				if h.ID != id || h.Attempt != 1 {
					t.Fatalf("%s, attempt %d", h.ID, h.Attempt)
				}
				h.answer <- func(d *stream.Delivery) { d.Later(wait) }
			}
			h := next(w, got)
			if n := w.pendingOf(id).RetryCount; n != 1 {
				t.Fatalf("Redis counts %d", n)
			}
			h.answer <- func(d *stream.Delivery) { d.Later(time.Hour) }
			testserver.Eventually(w, "it is parked", soon, r.parks(1))
			r.stop()
			r.wait()
			// Nor is being handed back, to whomever.
			w.run(stream.Options{Consumer: "other", Handle: handle})
			h = next(w, got)
			if h.ID != id || h.Attempt != 1 {
				t.Fatalf("handed back: %s, attempt %d", h.ID, h.Attempt)
			}
			w.settle(h)
			w.nothingIsLeft()
		})
	}
}

func TestMoreThanCanBeParkedComesBackWithoutAnAttempt(t *testing.T) {
	w := newWorld(t)
	const most, more = 10_000, 20
	w.add(most + more)
	seen := map[string]int{} // one handler at a time
	again := make(chan string, 10*more)
	w.run(stream.Options{Batch: 500, Handle: func(ds []*stream.Delivery) {
		for _, d := range ds {
			if seen[d.ID]++; seen[d.ID] > 1 && len(again) < cap(again) {
				again <- d.ID
			}
			if d.Attempt != 1 {
				t.Errorf("%s is attempt %d", d.ID, d.Attempt)
			}
			d.Later(time.Hour)
		}
	}})
	others := map[string]bool{}
	for len(others) < more {
		others[next(w, again)] = true
	}
	if n := len(w.pending()); n != most+more {
		t.Errorf("%d are pending", n)
	}
}

func TestAPoisonEntryHoldsUpNothingElse(t *testing.T) {
	w := newWorld(t)
	ids := w.add(101)
	var settled atomic.Int64
	retried := make(chan int64, 100)
	w.run(stream.Options{Handle: func(ds []*stream.Delivery) {
		d := ds[0]
		if d.ID == ids[0] {
			retried <- d.Attempt
			d.Failed(errors.New("poison"))
			return
		}
		w.ack(d.ID)
		d.Settled()
		settled.Add(1)
	}})
	if a := next(w, retried); a != 1 {
		t.Fatalf("attempt %d", a)
	}
	if a := next(w, retried); a != 2 { // after half a second at least
		t.Fatalf("attempt %d", a)
	}
	testserver.Eventually(w, "the others are settled", soon, func() error {
		if p := w.pending(); settled.Load() != 100 || len(p) != 1 || p[0].ID != ids[0] {
			return fmt.Errorf("%d settled, pending %v", settled.Load(), p)
		}
		return nil
	})
}
