package stream_test

import (
	"errors"
	"testing"
	"time"

	"github.com/tierflow/tierflow/shared/stream"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

const year = 365 * 24 * time.Hour

func TestAClockThatIsSetIsNoticedAndOneThatDriftsIsNot(t *testing.T) {
	here, there := time.Now(), time.Now().Add(year)
	var c stream.Clock
	read := func(passed, went time.Duration) time.Duration {
		here, there = here.Add(passed), there.Add(went)
		return c.Read(there, here)
	}
	if set := read(0, 0); set != 0 || c.Steady() != 0 {
		t.Fatalf("the first reading: %v, %v", set, c.Steady())
	}
	for range 3 {
		if set := read(time.Hour, time.Hour+6*time.Second); set != 0 {
			t.Fatalf("a drift: %v", set)
		}
	}
	if c.Steady() != 3*time.Hour {
		t.Errorf("steady for %v", c.Steady())
	}
	for _, by := range []time.Duration{time.Hour, -time.Hour, year, -year, 5 * time.Second} {
		if set := read(time.Second, time.Second+by); set != by || c.Steady() != 0 {
			t.Errorf("set by %v: %v, %v", by, set, c.Steady())
		}
		if set := read(time.Second, time.Second); set != 0 || c.Steady() != time.Second {
			t.Errorf("after it was set by %v: %v, %v", by, set, c.Steady())
		}
	}
}

func TestEntriesOfADeadConsumerAreTakenOverWhenTheClockOfRedisGoesBack(t *testing.T) {
	for name, startsBefore := range map[string]bool{"while the other runs": true, "before the other starts": false} {
		for _, by := range []time.Duration{time.Hour, year} {
			t.Run(name+" "+by.String(), func(t *testing.T) {
				url, set := testserver.ClockRedis(t)
				t.Setenv("TIERFLOW_TEST_REDIS_URL", url)
				w := newWorldAlone(t)
				set(by)
				w.add(3)
				w.group("g")
				ids := w.read("g", "dead", 3)
				handle, got := w.handler()
				var r *running
				if startsBefore {
					r = w.run(stream.Options{Slots: 4, Handle: handle})
					r.upkeeps(1)
				}
				set(0)
				if !startsBefore {
					w.run(stream.Options{Slots: 4, Handle: handle})
				}
				w.settleAll(got, ids)
				w.settleAll(got, w.add(2)) // with ids of the future
				w.nothingIsLeft()
			})
		}
	}
}

func TestTheRestOfABackOffIsBoundedWhateverTheClockOfRedisDoes(t *testing.T) {
	url, set := testserver.ClockRedis(t)
	t.Setenv("TIERFLOW_TEST_REDIS_URL", url)
	w := newWorldAlone(t)
	handle, got := w.handler()
	set(year)
	r := w.run(stream.Options{MinIdle: long, Handle: handle})
	w.add(1)
	h := next(w, got)
	h.answer <- func(d *stream.Delivery) { d.Failed(errors.New("no")) }
	testserver.Eventually(w, "it waits", soon, r.parks(1))
	r.stop()
	r.wait()
	set(0)
	r = w.run(stream.Options{MinIdle: long, Handle: handle})
	testserver.Eventually(w, "it waits again", soon, r.parks(1))
	if wait := stream.NextDue(r.Consumer); wait > 5*time.Minute {
		t.Errorf("the next attempt is in %v", wait)
	}
}
