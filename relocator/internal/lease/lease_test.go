package lease_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/tierflow/tierflow/relocator/internal/lease"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m) }

const (
	mine     state.Token = "releasing w1 1"
	patience             = 30 * time.Second
)

// world is a Redis and a Keeper. In the store a lock lives for an hour, and the Keeper renews it every 100 ms as if it lived
// for 300 ms. So no lock ends early on a slow machine, and a renewal shows in the lock's remaining life.
type world struct {
	*testing.T
	rdb    redis.UniversalClient // not through the gate
	gate   *testserver.Gate
	store  *state.Store
	keeper *lease.Keeper
	warned *observer.ObservedLogs
}

func newWorld(t *testing.T, life time.Duration) *world {
	t.Helper()
	direct := testserver.Redis(t)
	gate, gated := testserver.RedisGate(t, direct)
	w := &world{T: t, gate: gate}
	connect := func(url string) redis.UniversalClient {
		rdb, err := state.Connect(url, 2)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { rdb.Close() })
		return rdb
	}
	w.rdb = connect(direct)
	core, warned := observer.New(zapcore.WarnLevel)
	w.warned = warned
	w.store = state.NewStore(state.Options{Redis: connect(gated), Keys: state.NewKeys(testserver.Prefix(t)), TTL: time.Hour, Lease: time.Hour})
	w.keeper = lease.NewKeeper(w.store, life, zap.New(core))
	return w
}

// lock takes the lock of an item and leaves it a minute to live, so that a renewal shows.
func (w *world) lock(id item.ID) {
	w.Helper()
	if who, err := w.store.Lock(context.Background(), id, mine); err != nil || who != "" {
		w.Fatal(who, err)
	}
	w.shorten(id)
}

func (w *world) shorten(id item.ID) {
	w.Helper()
	if ok, err := w.rdb.PExpire(context.Background(), w.store.Keys().Lock(id), time.Minute).Result(); err != nil || !ok {
		w.Fatal(ok, err)
	}
}

// renewed reports whether the lock was renewed since it was shortened.
func (w *world) renewed(id item.ID) bool {
	w.Helper()
	life, err := w.rdb.PTTL(context.Background(), w.store.Keys().Lock(id)).Result()
	if err != nil {
		w.Fatal(err)
	}
	return life > time.Minute
}

func (w *world) waitForRenewal(id item.ID) {
	w.Helper()
	testserver.Eventually(w, "the lock is renewed", patience, func() error {
		if !w.renewed(id) {
			return errors.New("it is not")
		}
		return nil
	})
}

// renewals lets the Keeper renew the lock of another item five times, and so gives it the time to renew others.
func (w *world) renewals() {
	w.Helper()
	const other item.ID = 99
	w.lock(other)
	d, end := working(w)
	defer end()
	var n atomic.Int64
	ctx, release := w.keeper.Hold(d, other, mine, func(context.Context) { n.Add(1) })
	defer release()
	testserver.Eventually(w, "five renewals", patience, func() error {
		if ctx.Err() != nil {
			w.Fatal(context.Cause(ctx))
		}
		if n.Load() < 5 {
			return fmt.Errorf("%d", n.Load())
		}
		return nil
	})
}

// working is a delivery whose handler is inside of a long call.
func working(w *world) (d *stream.Delivery, end func()) {
	d = &stream.Delivery{Context: w.Context()}
	return d, d.Working()
}

func nothing(context.Context) {}

const life = 300 * time.Millisecond

func TestALockIsRenewedUntilItsJobIsOver(t *testing.T) {
	w := newWorld(t, life)
	w.lock(7)
	d, end := working(w)
	defer end()
	ctx, release := w.keeper.Hold(d, 7, mine, nothing)
	w.waitForRenewal(7)
	w.shorten(7)
	w.waitForRenewal(7) // and once more
	if ctx.Err() != nil {
		t.Fatal(context.Cause(ctx))
	}
	release()
	w.shorten(7)
	w.renewals()
	if w.renewed(7) {
		t.Error("the lock is renewed after the job")
	}
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) || fault.Is(err, fault.Lost) {
		t.Errorf("the context ended with %v", err)
	}
}

func TestAJobEndsWhenItsLockIsLost(t *testing.T) {
	for name, lose := range map[string]func(w *world, key string) error{
		"another worker has it": func(w *world, key string) error {
			return w.rdb.Set(context.Background(), key, "releasing w2 2", time.Minute).Err()
		},
		"it has expired": func(w *world, key string) error { return w.rdb.Del(context.Background(), key).Err() },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, life)
			w.lock(7)
			d, end := working(w)
			defer end()
			ctx, release := w.keeper.Hold(d, 7, mine, nothing)
			defer release()
			w.waitForRenewal(7)
			if err := lose(w, w.store.Keys().Lock(7)); err != nil {
				t.Fatal(err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(patience):
				t.Fatal("the job goes on")
			}
			if err := context.Cause(ctx); err != lease.ErrLost || !fault.Is(err, fault.Lost) {
				t.Errorf("the job ended with %v", err)
			}
			if w.renewed(7) {
				t.Error("the lock of the other was renewed")
			}
		})
	}
}

// Such a job would hold up its item for ever.
func TestALockIsNotRenewedWhileItsJobShowsNoProgress(t *testing.T) {
	w := newWorld(t, life)
	w.lock(7)
	d := &stream.Delivery{Context: t.Context()}
	ctx, release := w.keeper.Hold(d, 7, mine, nothing)
	defer release()
	w.renewals()
	if w.renewed(7) {
		t.Fatal("the lock is renewed")
	}
	if ctx.Err() != nil {
		t.Fatalf("the job ended: %v", context.Cause(ctx)) // it may still hold the lock
	}
	defer d.Working()() // it goes on
	w.waitForRenewal(7)
}

func TestAJobGoesOnWhileRedisDoesNotAnswerAndItsLockIsRenewedThen(t *testing.T) {
	w := newWorld(t, life)
	w.lock(7)
	d, end := working(w)
	defer end()
	ctx, release := w.keeper.Hold(d, 7, mine, nothing)
	defer release()
	w.waitForRenewal(7)
	w.gate.Close()
	testserver.Eventually(t, "renewals fail", patience, func() error {
		if w.warned.FilterMessage("renewals of locks wait and are tried again").Len() == 0 {
			return errors.New("it was not logged")
		}
		return nil
	})
	if ctx.Err() != nil {
		t.Fatalf("the job ended: %v", context.Cause(ctx)) // the lock may still be its own
	}
	w.shorten(7)
	w.gate.Open()
	w.waitForRenewal(7)
}

// A worker shows the progress of its move that often.
func TestBetweenTwoRenewalsTheJobIsCalledEverySecond(t *testing.T) {
	w := newWorld(t, 6*time.Second) // a renewal at every second call
	w.lock(7)
	d, end := working(w)
	defer end()
	renewed := make(chan bool, 10)
	_, release := w.keeper.Hold(d, 7, mine, func(context.Context) { renewed <- w.renewed(7) })
	defer release()
	if first, second := <-renewed, <-renewed; first || !second {
		t.Errorf("renewed at the first call: %t, at the second: %t", first, second)
	}
}

func TestTheLastStepsOfACancelledJobStillHaveTime(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	ctx, end := lease.Fenced(&stream.Delivery{Context: cancelled})
	defer end()
	if _, bounded := ctx.Deadline(); ctx.Err() != nil || !bounded {
		t.Errorf("%v, with a deadline: %t", ctx.Err(), bounded)
	}
}

func TestNoTwoAttemptsHaveTheSameName(t *testing.T) {
	a, b := lease.Random(), lease.Random()
	if name := regexp.MustCompile(`^[0-9a-f]{16}$`); a == b || !name.MatchString(a) || !name.MatchString(b) {
		t.Errorf("%q and %q", a, b)
	}
}
