package stream_test

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tierflow/tierflow/shared/stream"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestAFailedEntryIsTriedAgainAfterABackOffAsTheNextAttempt(t *testing.T) {
	w := newWorld(t)
	handle, got := w.handler()
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
	// Each entry has failed often before, if it has: then its back-off is minutes, else a second.
	for _, often := range []bool{false, true} {
		for _, crash := range []bool{false, true} {
			for _, name := range []string{"a", "b"} {
				t.Run(fmt.Sprintf("often %t, crash %t, goes on as %s", often, crash, name), func(t *testing.T) {
					w := newWorld(t)
					w.add(1)
					w.group("g")
					id := w.read("g", "before", 1)[0]
					attempt := int64(2) // taking it over is one
					if often {
						w.count(id, "before", 20)
						attempt = 21
					}
					gate, url := testserver.RedisGate(t, w.url)
					handle, got := w.handler()
					r := w.run(stream.Options{Redis: w.client(url), Consumer: "a", Handle: handle})
					h := next(w, got)
					if h.Attempt != attempt {
						t.Fatalf("attempt %d", h.Attempt)
					}
					failed := time.Now()
					h.answer <- func(d *stream.Delivery) { d.Failed(errors.New("no")) }
					testserver.Eventually(w, "it is parked", soon, r.parks(1))
					if crash {
						gate.Close() // it cannot give anything back
					}
					r.stop()
					r.wait()

					handle, got = w.handler()
					r = w.run(stream.Options{Consumer: name, Handle: handle})
					if often {
						w.add(1)
						w.settle(next(w, got))
						testserver.Eventually(w, "it is parked", soon, r.parks(1))
						r.upkeeps(3)
						none(w, got)
						if p := w.pendingOf(id); p.Consumer != name || p.RetryCount != attempt+1 || p.Idle > short {
							t.Fatalf("%+v", p)
						}
						return
					}
					h = next(w, got)
					if h.ID != id || h.Attempt != attempt+1 || w.pendingOf(id).RetryCount != attempt+1 {
						t.Fatalf("%s, attempt %d, in Redis %+v", h.ID, h.Attempt, w.pendingOf(id))
					}
					if since := time.Since(failed); since < time.Second { // of 1 to 2 seconds
						t.Errorf("tried again after %s", since)
					}
					w.settle(h)
					w.nothingIsLeft()
				})
			}
		}
	}
}

func TestACrashCountsAsAnAttemptAndItsEntriesWaitNoLongerThanATakeOver(t *testing.T) {
	for _, name := range []string{"a", "b"} {
		for _, count := range []int64{1, 20} { // after 20, a back-off would last minutes
			t.Run(fmt.Sprintf("delivered %d times, goes on as %s", count, name), func(t *testing.T) {
				w := newWorld(t)
				w.add(1)
				w.group("g")
				id := w.read("g", "a", 1)[0]
				w.count(id, "a", count)
				handle, got := w.handler()
				w.run(stream.Options{Consumer: name, Handle: handle})
				h := next(w, got)
				if h.ID != id || h.Attempt != count+1 || w.pendingOf(id).RetryCount != count+1 {
					t.Fatalf("%s, attempt %d, in Redis %+v", h.ID, h.Attempt, w.pendingOf(id))
				}
				w.settle(h)
			})
		}
	}
}

func TestACrashCountsAgainAfterTheNextAttemptHasBegun(t *testing.T) {
	w := newWorld(t)
	gate, url := testserver.RedisGate(t, w.url)
	handle, got := w.handler()
	r := w.run(stream.Options{Redis: w.client(url), Consumer: "a", Handle: handle})
	id := w.add(1)[0]
	next(w, got).answer <- func(d *stream.Delivery) { d.Failed(errors.New("no")) }
	h := next(w, got)
	if h.Attempt != 2 {
		t.Fatalf("attempt %d", h.Attempt)
	}
	gate.Close()
	r.stop()
	h.answer <- obedient
	r.wait()
	w.run(stream.Options{Consumer: "a", Handle: handle})
	if h = next(w, got); h.ID != id || h.Attempt != 3 {
		t.Fatalf("%s, attempt %d", h.ID, h.Attempt)
	}
	w.settle(h)
}

func TestLaterCountsAsNoAttempt(t *testing.T) {
	for _, wait := range []time.Duration{time.Millisecond, 0} {
		t.Run(fmt.Sprintf("wait %s", wait), func(t *testing.T) {
			w := newWorld(t)
			handle, got := w.handler()
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
			// A give-back counts as none either, whichever consumer gets the entry.
			w.run(stream.Options{Consumer: "other", Handle: handle})
			h = next(w, got)
			if h.ID != id || h.Attempt != 1 {
				t.Fatalf("given back: %s, attempt %d", h.ID, h.Attempt)
			}
			w.settle(h)
			w.nothingIsLeft()
		})
	}
}

func TestAnEntryThatCannotBeParkedComesBackWithoutAnAttempt(t *testing.T) {
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

func TestAPoisonEntryDelaysNoOther(t *testing.T) {
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
