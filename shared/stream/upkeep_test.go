package stream_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/stream"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

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
		handle, got := w.handler()
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
		handle, got := w.handler()
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
		handle, got := w.handler()
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
	t.Run("while it is parked and given back", func(t *testing.T) {
		w := newWorld(t)
		handle, got := w.handler()
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

func TestAVanishedGroupContinuesWhereItHadSettledEverything(t *testing.T) {
	w := newWorld(t)
	handle, got := w.handler()
	r := w.run(stream.Options{Slots: 4, Handle: handle})
	w.add(10)
	for range 10 {
		w.settle(next(w, got))
	}
	w.nothingIsLeft()
	r.upkeeps(2) // it knows by now up to where everything is settled
	w.rdb.XGroupDestroy(t.Context(), w.stream, "g")
	w.settleAll(got, w.add(3))
	w.nothingIsLeft()
	none(w, got)
}

func TestAVanishedGroupLosesNoPendingEntry(t *testing.T) {
	w := newWorld(t)
	handle, got := w.handler()
	r := w.run(stream.Options{Slots: 2, Handle: handle})
	ids := w.add(5)
	w.settle(next(w, got))
	inHand := map[string]work{}
	for len(inHand) < 2 {
		h := next(w, got)
		inHand[h.ID] = h
		go func() {
			<-h.Context.Done() // the heartbeat finds that no consumer has it
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

func TestAConsumerContinuesAfterRedisIsWiped(t *testing.T) {
	w := newWorld(t)
	handle, got := w.handler()
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
	handle, got := w.handler()
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

func TestAConsumerContinuesAfterAnOutageOfRedis(t *testing.T) {
	w := newWorld(t)
	gate, url := testserver.RedisGate(t, w.url)
	gate.Close()
	handle, got := w.handler()
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

func TestTrimmingRemovesOnlyEntriesThatEveryGroupHasSettledAndKeepsSome(t *testing.T) {
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
	there(ids[550:]) // the newest 250 stay for the live view
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
