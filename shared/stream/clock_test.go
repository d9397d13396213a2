package stream_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/tierflow/tierflow/shared/stream"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

const year = 365 * 24 * time.Hour

func TestAClockThatIsSetIsNoticedAndOneThatDriftsIsNot(t *testing.T) {
	here, there := time.Now(), time.Now().Add(year)
	var c stream.Clock
	read := func(passed, went time.Duration) time.Duration {
		here, there = here.Add(passed), there.Add(went)
		return c.Read(there, here, here)
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

func TestAProcessThatWasPausedDoesNotTakeTheClockForSet(t *testing.T) {
	start, there := time.Now(), time.Now().Add(year)
	at := func(passed time.Duration) time.Time { return start.Add(passed) }
	for name, paused := range map[string]struct {
		asked, answered, server time.Duration // of the second reading
		set                     time.Duration // by which it certainly was
	}{
		"before it asked":               {time.Hour, time.Hour, time.Hour, 0},
		"after the server has answered": {time.Second, time.Hour, time.Second, 0},
		"before the server was asked":   {time.Second, time.Hour, time.Hour, 0},
		"while the clock was set ahead": {time.Second, time.Hour, 3 * time.Hour, 2 * time.Hour},
		"while the clock was set back":  {time.Second, time.Hour, -time.Hour, -time.Hour - time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			var c stream.Clock
			c.Read(there, at(0), at(0))
			if set := c.Read(there.Add(paused.server), at(paused.asked), at(paused.answered)); set != paused.set {
				t.Errorf("it was set by %v", set)
			}
		})
	}
	var c stream.Clock
	c.Read(there, at(0), at(time.Hour))
	if set := c.Read(there.Add(time.Hour+time.Second), at(time.Hour+time.Second), at(time.Hour+time.Second)); set != 0 || c.Steady() != time.Second {
		t.Errorf("after a pause in the first reading: %v, steady for %v", set, c.Steady())
	}
}

// late gives a process the server's time later than it may differ from this machine's, as a pause of the process does.
type late struct {
	redis.Hook
	readings atomic.Int64
}

func (l *late) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if args := cmd.Args(); args[0] == "evalsha" && args[1] == stream.TimeScript.Hash() && err == nil && l.readings.Add(1) == 2 {
			time.Sleep(2500 * time.Millisecond)
		}
		return err
	}
}

func TestAConsumerThatWasPausedDoesNotTakeTheClockOfRedisForSet(t *testing.T) {
	w := newWorld(t)
	client := w.client(w.url)
	l := &late{Hook: &hook{}}
	client.AddHook(l)
	core, logs := observer.New(zap.InfoLevel)
	w.run(stream.Options{Redis: client, Handle: func([]*stream.Delivery) {}, Log: zap.New(core)})
	testserver.Eventually(w, "it has read the time after the pause", soon, func() error {
		if n := l.readings.Load(); n < 4 {
			return fmt.Errorf("%d readings", n)
		}
		return nil
	})
	if n := logs.FilterMessage("the clock of Redis was set").Len(); n != 0 {
		t.Errorf("%v", logs.All())
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
