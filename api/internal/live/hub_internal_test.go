package live

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m) }

const patience = time.Minute

type world struct {
	t    *testing.T
	rdb  redis.UniversalClient // of the hub
	test redis.UniversalClient // of the test
	keys state.Keys
	hub  *Hub
}

// newWorld starts a hub whose ring has so many events.
func newWorld(t *testing.T, length int) *world {
	t.Helper()
	w := &world{t: t, keys: state.NewKeys(testserver.Prefix(t))}
	for _, client := range []*redis.UniversalClient{&w.rdb, &w.test} {
		rdb, err := state.Connect(testserver.Redis(t), 1)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { rdb.Close() })
		*client = rdb
	}
	w.hub = NewHub(state.NewStore(state.Options{Redis: w.rdb, Keys: w.keys, TTL: time.Hour, Lease: time.Minute}), zap.NewNop())
	w.hub.ring = newRing(length)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { w.hub.Run(ctx) })
	t.Cleanup(wg.Wait)
	t.Cleanup(cancel)
	return w
}

// post appends views that are numbered from first on.
func (w *world) post(first, n int) {
	w.t.Helper()
	if _, err := w.test.Pipelined(w.t.Context(), func(pipe redis.Pipeliner) error {
		for i := range n {
			pipe.XAdd(w.t.Context(), &redis.XAddArgs{Stream: w.keys.Views(), Values: []string{"count", fmt.Sprint(first + i)}})
		}
		return nil
	}); err != nil {
		w.t.Fatal(err)
	}
}

var errDone = errors.New("done")

// seen is what a watcher has got.
type seen struct {
	next  int // the number of the next view
	at    Position
	reset int
	slow  bool
}

// watch watches from a position until view number `until` has come. Views must come in order and once. before is called
// before each.
func (w *world) watch(from Position, next, until int, before func()) (seen, error) {
	s := seen{next: next, at: from}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err := w.hub.Watch(ctx, from, patience, func(e *Event, at Position) error {
		if e == nil {
			return errors.New("no event has come")
		}
		s.at = Position{entry: at.entry, ids: append([]string(nil), at.ids...)}
		switch e.Stream {
		case Slow:
			s.slow = true
			return nil
		case Reset:
			s.reset++
			return nil
		}
		if s.reset == 0 && string(e.Data) != fmt.Sprintf(`{"count":"%d"}`, s.next) {
			return fmt.Errorf("got %s, want view %d", e.Data, s.next)
		}
		s.next++
		if before != nil {
			before()
		}
		if s.next > until {
			return errDone
		}
		return nil
	})
	return s, err
}

func (w *world) end() Position {
	w.t.Helper()
	p, err := w.hub.End(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func TestAThousandWatchersShareOneReaderAndGetEveryEvent(t *testing.T) {
	const watchers, views = 1000, 3000
	w := newWorld(t, ringLength)
	start := w.end()
	var all sync.WaitGroup
	failed := make(chan error, watchers+1)
	watch := func() {
		if _, err := w.watch(start, 0, views, nil); err != errDone {
			failed <- err
		}
	}
	begun := make(chan struct{}, 1)
	all.Go(func() {
		_, err := w.watch(start, 0, views, func() {
			select {
			case begun <- struct{}{}:
			default:
			}
		})
		if err != errDone {
			failed <- err
		}
	})
	w.post(0, 1)
	<-begun
	goroutines, connections := runtime.NumGoroutine(), w.rdb.PoolStats().TotalConns
	for range watchers {
		all.Go(watch)
	}
	testserver.Eventually(t, "all watch", patience, func() error {
		w.hub.mu.Lock()
		defer w.hub.mu.Unlock()
		if w.hub.watchers != watchers+1 {
			return fmt.Errorf("%d", w.hub.watchers)
		}
		return nil
	})
	if n := runtime.NumGoroutine() - goroutines; n > watchers+20 {
		t.Errorf("%d watchers added %d goroutines", watchers, n)
	}
	w.post(1, views)
	all.Wait()
	close(failed)
	for err := range failed {
		t.Fatal(err)
	}
	if n := w.rdb.PoolStats().TotalConns; n > connections+3 {
		t.Errorf("there are %d connections to Redis, and there were %d with one watcher", n, connections)
	}
}

func TestAWatcherThatDoesNotReadIsCutOffAndResumes(t *testing.T) {
	const length, views = 64, 2000
	w := newWorld(t, length)
	start := w.end()
	ringIs := func(next int) {
		t.Helper()
		testserver.Eventually(t, "the hub has read all", patience, func() error {
			w.hub.ring.mu.Lock()
			defer w.hub.ring.mu.Unlock()
			if w.hub.ring.next != uint64(next) {
				return fmt.Errorf("%d", w.hub.ring.next)
			}
			return nil
		})
	}
	blocked, unblock := make(chan struct{}), make(chan struct{})
	type result struct {
		seen
		err error
	}
	stuck := make(chan result, 1)
	go func() {
		s, err := w.watch(start, 0, views, sync.OnceFunc(func() { close(blocked); <-unblock }))
		stuck <- result{s, err}
	}()
	w.post(0, 1)
	<-blocked
	before := int(func() uint64 { w.hub.ring.mu.Lock(); defer w.hub.ring.mu.Unlock(); return w.hub.ring.next }())
	w.post(1, views)
	ringIs(before + views)
	close(unblock)
	got := <-stuck
	if got.err != errSlow || !got.slow {
		t.Fatalf("a watcher that does not read: %v, %+v", got.err, got.seen)
	}
	position, err := ParsePosition(w.keys, got.at.String())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, floor, _ := w.hub.ring.start(); position.reaches(floor) {
		t.Fatal("the ring is too long for this test")
	}
	s, err := w.watch(position, got.next, views, nil) // the ring does not reach back: from Redis
	if err != errDone || s.reset > 0 {
		t.Fatalf("resumed: %v, %+v", err, s)
	}
	w.post(views+1, length/2)
	ringIs(before + views + length/2)
	if _, _, floor, _ := w.hub.ring.start(); !s.at.reaches(floor) {
		t.Fatal("the ring does not have what came last")
	}
	w.rdb.Close() // Redis is not needed for what the ring has
	if s, err = w.watch(s.at, s.next, views+length/2, nil); err != errDone {
		t.Fatalf("resumed from the ring: %v, %+v", err, s)
	}
}

// The ring begins after a dead letter that somebody has retried since. No reading of the streams reaches its id.
func TestAPositionBeforeADeadLetterThatIsGoneIsResumed(t *testing.T) {
	w := newWorld(t, ringLength)
	w.post(0, 1)
	before := w.end()
	const last = 4 * catchUps
	dead, err := w.test.XAdd(t.Context(), &redis.XAddArgs{Stream: w.keys.Dead(), Values: []string{"count", "x"}}).Result()
	if err != nil {
		t.Fatal(err)
	}
	begun := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		_, err := w.watch(w.end(), 1, last, sync.OnceFunc(func() { close(begun) }))
		ended <- err
	}()
	testserver.Eventually(t, "the ring begins", patience, func() error {
		if _, _, floor, _ := w.hub.ring.start(); floor == nil || floor[len(floor)-1] != dead {
			return fmt.Errorf("at %q", floor)
		}
		return nil
	})
	if err := w.test.XDel(t.Context(), w.keys.Dead(), dead).Err(); err != nil {
		t.Fatal(err)
	}
	w.post(1, 1)
	<-begun
	next := 2
	s, err := w.watch(before, 1, last, func() { // each view comes when the one before was read
		w.post(next, 1)
		next++
	})
	if err != errDone || s.reset > 0 {
		t.Errorf("%v, %+v", err, s)
	}
	if err := <-ended; err != errDone {
		t.Error(err)
	}
}

func TestAPositionWhoseEventsWereTrimmedIsReset(t *testing.T) {
	w := newWorld(t, ringLength)
	w.post(0, 1)
	start := w.end()
	w.post(1, 20)
	if err := w.test.XTrimMaxLen(t.Context(), w.keys.Views(), 5).Err(); err != nil {
		t.Fatal(err)
	}
	s, err := w.watch(start, 16, 20, nil)
	if err != errDone || s.reset != 1 || s.next != 21 {
		t.Fatalf("%v, %+v", err, s)
	}
	// A position that is not older than what was trimmed is no loss, nor is a dead letter that somebody dropped.
	if err := w.test.XAdd(t.Context(), &redis.XAddArgs{Stream: w.keys.Dead(), ID: "1-1", Values: []string{"count", "x"}}).Err(); err != nil {
		t.Fatal(err)
	}
	if err := w.test.XDel(t.Context(), w.keys.Dead(), "1-1").Err(); err != nil {
		t.Fatal(err)
	}
	lost, err := w.hub.store.Trimmed(t.Context(), w.hub.streams, []string{s.at.ids[0], "0-0", "0-0", "0-0"})
	if err != nil || lost {
		t.Errorf("%v, %v", lost, err)
	}
}
