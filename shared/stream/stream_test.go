package stream_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/stream"
	"github.com/tierflow/tierflow/shared/testserver"
)

func TestAnEntryIsHandedOutWithItsFieldsAndStaysPendingUntilItsHandlerHasAckedIt(t *testing.T) {
	w := newWorld(t)
	handle, got := w.hands()
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

func TestItNeverHoldsMoreThanItCanBegin(t *testing.T) {
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

func TestWhatALostReplyHadIsAdoptedAndIsNoAttempt(t *testing.T) {
	w := newWorld(t)
	ids := w.add(5)
	gate, url := testserver.RedisGate(t, w.url)
	cut := gate.CutReply("xreadgroup")
	handle, got := w.hands()
	w.run(stream.Options{Redis: w.client(url), Slots: 5, Handle: handle})
	next(w, cut)
	var seen []string
	for range ids {
		h := next(w, got)
		if h.Attempt != 1 {
			t.Errorf("%s is handed out as attempt %d", h.ID, h.Attempt)
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

func TestALostReplyOfATakeOverLosesNothing(t *testing.T) {
	w := newWorld(t)
	w.add(1)
	w.group("g")
	id := w.read("g", "dead", 1)[0]
	gate, url := testserver.RedisGate(t, w.url)
	var once sync.Once
	var cut <-chan struct{}
	// Cut the reply of the first take-over that takes something: the entry must be idle long enough.
	testserver.Eventually(w, "the dead one's entry is idle", soon, func() error {
		if p := w.pendingOf(id); p.Idle < short {
			return fmt.Errorf("idle %s", p.Idle)
		}
		return nil
	})
	once.Do(func() { cut = gate.CutReply("xautoclaim") })
	handle, got := w.hands()
	w.run(stream.Options{Redis: w.client(url), Handle: handle})
	next(w, cut)
	h := next(w, got)
	if h.ID != id {
		t.Fatalf("got %s", h.ID)
	}
	w.settle(h)
	w.nothingIsLeft()
}

func TestAPausedConsumerDoesNotStealBackWhatOthersTookOver(t *testing.T) {
	w := newWorld(t)
	gate, url := testserver.RedisGate(t, w.url)
	handleA, gotA := w.hands()
	a := w.run(stream.Options{Consumer: "a", Redis: w.client(url), Handle: handleA})
	id := w.add(1)[0]
	ha := next(w, gotA)

	gate.Close() // to Redis, a is paused
	handleB, gotB := w.hands()
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

func TestAHeartbeatKeepsLongWorkAndWhatIsParked(t *testing.T) {
	w := newWorld(t)
	handle, got := w.hands()
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

func TestAHandlerWithoutASignOfLifeLosesItsEntryToAnotherConsumer(t *testing.T) {
	w := newWorld(t)
	gotA := make(chan hand, 10)
	a := w.run(stream.Options{Consumer: "a", Slots: 2, Handle: func(ds []*stream.Delivery) {
		gotA <- hand{ds[0], nil}
		select {
		case <-ds[0].Context.Done():
		case <-w.over:
		}
	}})
	id := w.add(1)[0]
	ha := next(w, gotA)
	// Alone, a leaves it where it is, and does not hand it out twice.
	testserver.Eventually(w, "nobody renews it", soon, func() error {
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
	handleB, gotB := w.hands()
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
	handle, got := w.hands()
	w.run(stream.Options{Consumer: "heir", Handle: handle})
	h := next(w, got)
	if h.ID != dead || h.Attempt != 2 {
		t.Fatalf("got %s, attempt %d, not %s", h.ID, h.Attempt, dead)
	}
	w.settle(h)
	close(end)
	w.nothingIsLeft()
}

func TestTakingOverStopsWhereTheSlotsEnd(t *testing.T) {
	w := newWorld(t)
	w.add(10)
	w.group("g")
	w.read("g", "dead", 10)
	handle, got := w.hands()
	r := w.run(stream.Options{Slots: 3, Handle: handle})
	var hs []hand
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

func TestADeletedPendingEntryIsReported(t *testing.T) {
	lost := func() (func(string), chan string) {
		c := make(chan string, 10)
		return func(id string) { c <- id }, c
	}
	t.Run("of a dead consumer", func(t *testing.T) {
		w := newWorld(t)
		w.add(2)
		w.group("g")
		ids := w.read("g", "dead", 2)
		w.rdb.XDel(t.Context(), w.stream, ids[0])
		handle, got := w.hands()
		report, lost := lost()
		w.run(stream.Options{Handle: handle, Lost: report})
		if id := next(w, lost); id != ids[0] {
			t.Fatalf("reported %s", id)
		}
		h := next(w, got)
		if h.ID != ids[1] {
			t.Fatalf("got %s", h.ID)
		}
		w.settle(h)
		w.nothingIsLeft()
	})
	t.Run("from before a restart", func(t *testing.T) {
		w := newWorld(t)
		w.add(1)
		w.group("g")
		id := w.read("g", "me", 1)[0]
		w.rdb.XDel(t.Context(), w.stream, id)
		report, lost := lost()
		w.run(stream.Options{MinIdle: long, Handle: func([]*stream.Delivery) {}, Lost: report})
		if got := next(w, lost); got != id {
			t.Fatalf("reported %s", got)
		}
		w.nothingIsLeft()
	})
	t.Run("in hand", func(t *testing.T) {
		w := newWorld(t)
		handle, got := w.hands()
		report, lost := lost()
		w.run(stream.Options{Handle: handle, Lost: report})
		w.add(1)
		h := next(w, got)
		w.rdb.XDel(t.Context(), w.stream, h.ID)
		next(w, h.Context.Done())
		h.answer <- obedient
		if id := next(w, lost); id != h.ID {
			t.Fatalf("reported %s", id)
		}
		w.nothingIsLeft()
	})
	t.Run("while it fails", func(t *testing.T) {
		w := newWorld(t)
		handle, got := w.hands()
		report, lost := lost()
		w.run(stream.Options{MinIdle: long, Handle: handle, Lost: report})
		w.add(1)
		h := next(w, got)
		w.rdb.XDel(t.Context(), w.stream, h.ID)
		h.answer <- func(d *stream.Delivery) { d.Failed(errors.New("no")) }
		if id := next(w, lost); id != h.ID {
			t.Fatalf("reported %s", id)
		}
		w.nothingIsLeft()
	})
	t.Run("while it is parked and handed back", func(t *testing.T) {
		w := newWorld(t)
		handle, got := w.hands()
		report, lost := lost()
		r := w.run(stream.Options{MinIdle: long, Handle: handle, Lost: report})
		w.add(1)
		h := next(w, got)
		h.answer <- func(d *stream.Delivery) { d.Later(time.Hour) }
		testserver.Eventually(w, "it is parked", soon, r.parks(1))
		w.rdb.XDel(t.Context(), w.stream, h.ID)
		r.stop()
		if id := next(w, lost); id != h.ID {
			t.Fatalf("reported %s", id)
		}
		w.nothingIsLeft()
	})
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

func TestAVanishedGroupGoesOnWhereItHadSettledEverything(t *testing.T) {
	w := newWorld(t)
	handle, got := w.hands()
	r := w.run(stream.Options{Slots: 4, Handle: handle})
	w.add(10)
	for range 10 {
		w.settle(next(w, got))
	}
	w.nothingIsLeft()
	r.upkeeps(2) // it knows by now up to where
	w.rdb.XGroupDestroy(t.Context(), w.stream, "g")
	w.settleAll(got, w.add(3))
	w.nothingIsLeft()
	none(w, got)
}

func TestAVanishedGroupLosesNothingThatWasPending(t *testing.T) {
	w := newWorld(t)
	handle, got := w.hands()
	r := w.run(stream.Options{Slots: 2, Handle: handle})
	ids := w.add(5)
	w.settle(next(w, got))
	inHand := map[string]hand{}
	for len(inHand) < 2 {
		h := next(w, got)
		inHand[h.ID] = h
		go func() {
			<-h.Context.Done() // the heartbeat finds that it is nobody's
			h.answer <- obedient
		}()
	}
	r.upkeeps(2)
	w.rdb.XGroupDestroy(t.Context(), w.stream, "g")
	// Work that is not settled any more by anybody comes again, and what was unread comes as well.
	missing := map[string]bool{}
	for _, id := range ids[1:] {
		missing[id] = true
	}
	for len(missing) > 0 {
		h := next(w, got)
		delete(missing, h.ID)
		w.settle(h)
	}
	w.nothingIsLeft()
}

func TestARedeliveryOfAnEntryInHandIsNotHandedOutTwice(t *testing.T) {
	w := newWorld(t)
	handle, got := w.hands()
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

func TestAWipedRedisIsNoEnd(t *testing.T) {
	w := newWorld(t)
	handle, got := w.hands()
	r := w.run(stream.Options{Slots: 2, Handle: handle})
	w.add(3)
	for range 2 {
		w.settle(next(w, got))
	}
	inHand := next(w, got)
	r.upkeeps(2)
	if err := w.rdb.Del(t.Context(), w.stream).Err(); err != nil {
		t.Fatal(err)
	}
	next(w, inHand.Context.Done())
	inHand.answer <- obedient
	w.settleAll(got, w.add(3))
	w.nothingIsLeft()
}

func TestAWipedStreamWhoseIdsBeginLowerIsReadFromItsStart(t *testing.T) {
	w := newWorld(t)
	handle, got := w.hands()
	r := w.run(stream.Options{Handle: handle})
	w.add(1)
	w.settle(next(w, got))
	r.upkeeps(2)
	pipe := w.rdb.TxPipeline()
	pipe.Del(t.Context(), w.stream)
	pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: w.stream, ID: "5-0", Values: []string{"n", "low"}})
	if _, err := pipe.Exec(t.Context()); err != nil {
		t.Fatal(err)
	}
	h := next(w, got)
	if h.ID != "5-0" {
		t.Fatalf("got %s", h.ID)
	}
	w.settle(h)
	w.nothingIsLeft()
}

func TestRedisBeingAwayIsNoEnd(t *testing.T) {
	w := newWorld(t)
	gate, url := testserver.RedisGate(t, w.url)
	gate.Close()
	handle, got := w.hands()
	r := w.run(stream.Options{Redis: w.client(url), Handle: handle})
	w.add(2)
	gate.Open()
	h := next(w, got)
	gate.Close()
	h.answer <- func(d *stream.Delivery) { d.Later(time.Millisecond) }
	gate.Open()
	for range 2 {
		w.settle(next(w, got))
	}
	w.nothingIsLeft()
	gate.Close()
	r.stop()
	r.wait() // with Redis away, too
}

func TestHoldHandsOutNothing(t *testing.T) {
	w := newWorld(t)
	var hold atomic.Bool
	handle, got := w.hands()
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

func TestAnIdleConsumerStopsAtOnceAndLeavesNoTrace(t *testing.T) {
	w := newWorld(t)
	r := w.run(stream.Options{MinIdle: long, Handle: func([]*stream.Delivery) {}})
	r.client.await(w, "xreadgroup", 1)
	asked := time.Now()
	r.stop()
	r.wait()
	if took := time.Since(asked); took > 3*time.Second {
		t.Errorf("stopping took %s", took)
	}
	if cs := w.rdb.XInfoConsumers(t.Context(), w.stream, "g").Val(); len(cs) != 0 {
		t.Fatalf("left: %+v", cs)
	}
}

func TestAStopWaitsForHandlersAndHandsBackTheRestAtOnce(t *testing.T) {
	w := newWorld(t)
	handle, got := w.hands()
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
	testserver.Eventually(w, "what is parked is handed back while the handler goes on", soon, func() error {
		if p := w.pendingOf(parked.ID); p.Idle < long {
			return fmt.Errorf("%+v", p)
		}
		return nil
	})
	handleB, gotB := w.hands()
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

func TestARetiredConsumerFinishesWhatItHasHandsBackTheRestAndCanGoOn(t *testing.T) {
	w := newWorld(t)
	handle, got := w.hands()
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
	testserver.Eventually(w, "what is parked is handed back", soon, func() error {
		if p := w.pendingOf(parked.ID); p.Idle < long {
			return fmt.Errorf("%+v", p)
		}
		return nil
	})
	handleB, gotB := w.hands()
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

func TestWhatAnotherHandsOverIsBegunSoonAndIsNoAttempt(t *testing.T) {
	w := newWorld(t)
	w.group("g")
	w.add(1)
	id := w.read("g", "a", 1)[0]
	handle, got := w.hands()
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
	handle, got := w.hands()
	r := w.run(stream.Options{Slots: 3, Drain: 10 * time.Millisecond, Handle: handle})
	w.add(3)
	next(w, got).answer <- func(d *stream.Delivery) { d.Later(time.Hour) }
	w.settle(next(w, got))
	next(w, got).answer <- obedient
	r.stop()
	r.wait()
	testserver.Eventually(t, "no goroutine is left", soon, ours) // one may be at its very end
}

func TestAfterTheDrainTimeHandlersAreCancelledAndTheirEntriesHandedBack(t *testing.T) {
	w := newWorld(t)
	handle, got := w.hands()
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

func TestTrimmingRemovesOnlyWhatEveryGroupHasSettledAndKeepsSome(t *testing.T) {
	w := newWorld(t)
	w.group("other")
	r := w.run(stream.Options{Slots: 1, Batch: 1000, Keep: 250, Handle: func(ds []*stream.Delivery) {
		for _, d := range ds {
			w.ack(d.ID)
			d.Settled()
		}
	}})
	length := func() int64 { return w.rdb.XLen(t.Context(), w.stream).Val() }
	there := func(ids []string) {
		t.Helper()
		for _, id := range ids {
			if len(w.rdb.XRange(t.Context(), w.stream, id, id).Val()) != 1 {
				t.Fatalf("%s was trimmed", id)
			}
		}
	}
	ids := w.add(500)
	w.nothingIsLeft()
	r.upkeeps(2)
	ids = append(ids, w.add(300)...)
	w.nothingIsLeft()
	r.upkeeps(2)
	there(ids) // other has read nothing

	read := w.read("other", "x", 450)
	w.rdb.XAck(t.Context(), w.stream, "other", read[:200]...)
	testserver.Eventually(w, "what both have settled is trimmed", soon, func() error {
		if n := length(); n > 700 { // Redis removes whole nodes of a hundred
			return fmt.Errorf("%d entries", n)
		}
		return nil
	})
	r.upkeeps(2)
	there(ids[200:])

	w.rdb.XAck(t.Context(), w.stream, "other", read[200:]...)
	testserver.Eventually(w, "what was read is trimmed", soon, func() error {
		if n := length(); n > 450 {
			return fmt.Errorf("%d entries", n)
		}
		return nil
	})
	r.upkeeps(2)
	there(ids[450:])

	w.read("other", "x", 350)
	w.rdb.XGroupSetID(t.Context(), w.stream, "other", ids[799])
	for _, p := range w.rdb.XPendingExt(t.Context(), &redis.XPendingExtArgs{Stream: w.stream, Group: "other", Start: "-", End: "+", Count: 1000}).Val() {
		w.rdb.XAck(t.Context(), w.stream, "other", p.ID)
	}
	r.upkeeps(3)
	there(ids[550:]) // the newest 250 are for those who look
}

func TestTrimmingKeepsUpWithABusyStream(t *testing.T) {
	w := newWorld(t)
	r := w.run(stream.Options{Keep: 100, Handle: func(ds []*stream.Delivery) { t.Error("not reached") },
		Hold: func() bool { return true }})
	w.add(1)
	r.upkeeps(2)
	w.add(45_000)
	r.upkeeps(1)
	w.add(200)
	w.rdb.XGroupSetID(t.Context(), w.stream, "g", "$")
	r.upkeeps(1)
	if n := w.rdb.XLen(t.Context(), w.stream).Val(); n > 500 || n < 200 {
		t.Fatalf("%d entries are left after one upkeep", n)
	}
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
func TestNothingIsLostWhateverConsumersDo(t *testing.T) {
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
		if c.Name != "passing" { // it may have handed something back
			t.Errorf("left: %+v", c)
		}
	}
}

func TestTheNewerOfTwoEntriesIsFoundByDigits(t *testing.T) {
	ascending := []string{"", "0-0", "0-1", "0-9", "0-10", "9-1", "9-10", "10-0", "10-18446744073709551614", "10-18446744073709551615",
		"1795392109598-0", "9007199254740992-0", "9007199254740993-0", "9223372036854775808-0", "18446744073709551615-18446744073709551615"}
	for i, a := range ascending {
		for j, b := range ascending {
			if got := stream.Newer(a, b); got != (i > j) {
				t.Errorf("Newer(%q, %q) is %v", a, b, got)
			}
		}
	}
}
