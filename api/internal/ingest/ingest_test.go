package ingest_test

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/api/internal/ingest"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m) }

// slowStore is a real store that counts its calls. Where gate is not nil, each call waits until gate is closed.
type slowStore struct {
	*state.Store
	calls   atomic.Int64
	largest atomic.Int64 // events in one call
	gate    chan struct{}
}

func (s *slowStore) Append(ctx context.Context, views []event.View) ([]string, error) {
	s.calls.Add(1)
	n := int64(len(views))
	for largest := s.largest.Load(); n > largest && !s.largest.CompareAndSwap(largest, n); largest = s.largest.Load() {
	}
	if s.gate != nil {
		<-s.gate
	}
	return s.Store.Append(ctx, views)
}

func view(id, count int) event.View {
	return event.View{EventID: uuid.Must(uuid.NewV7()).String(), ID: item.ID(id), Count: item.Count(count), Target: "bronze",
		DBLevel: "bronze", Filename: "f", PostedAt: time.Now()}
}

// waitForCall waits until a call is under way.
func (s *slowStore) waitForCall(t *testing.T) {
	t.Helper()
	testserver.Eventually(t, "a call", 5*time.Second, func() error {
		if s.calls.Load() == 0 {
			return fmt.Errorf("none")
		}
		return nil
	})
}

func open(t *testing.T, gate chan struct{}) (*ingest.Batcher, *slowStore, redis.UniversalClient, func()) {
	t.Helper()
	rdb, err := state.Connect(testserver.Redis(t), -1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rdb.Close() })
	s := &slowStore{gate: gate, Store: state.NewStore(state.Options{Redis: rdb, Keys: state.NewKeys(testserver.Prefix(t)), TTL: time.Hour, Lease: time.Minute})}
	b := ingest.New(ingest.Options{Store: s, MaxBacklog: 1 << 30, Metrics: prometheus.NewRegistry()})
	done := make(chan struct{})
	go func() {
		b.Run()
		close(done)
	}()
	stop := sync.OnceFunc(func() {
		b.Stop()
		<-done
	})
	t.Cleanup(stop)
	return b, s, rdb, stop
}

func TestRequestsThatWaitShareACall(t *testing.T) {
	gate := make(chan struct{})
	b, s, rdb, _ := open(t, gate)
	var wg sync.WaitGroup
	for i := range 1000 {
		wg.Go(func() {
			if err := b.Append(view(2, i)); err != nil { // one item, so one queue
				t.Error(err)
			}
		})
	}
	s.waitForCall(t)
	time.AfterFunc(200*time.Millisecond, func() { close(gate) }) // meanwhile the others queue up
	wg.Wait()
	if n := rdb.XLen(t.Context(), s.Keys().Views()).Val(); n != 1000 {
		t.Fatalf("%d entries", n)
	}
	if calls, largest := s.calls.Load(), s.largest.Load(); calls > 100 || largest > ingest.MaxGroup {
		t.Fatalf("%d calls, %d events in the largest", calls, largest)
	}
}

func TestAppendAllKeepsTheOrderOfEachItem(t *testing.T) {
	b, s, rdb, _ := open(t, nil)
	var views []event.View
	for i := range 3000 {
		views = append(views, view(i%7+1, i))
	}
	if n, err := b.AppendAll(t.Context(), views); n != 3000 || err != nil {
		t.Fatal(n, err)
	}
	last := map[string]int{}
	for _, m := range rdb.XRange(t.Context(), s.Keys().Views(), "-", "+").Val() {
		cid := m.Values["cid"].(string)
		n, err := strconv.Atoi(m.Values["count"].(string))
		if before, ok := last[cid]; err != nil || ok && n <= before {
			t.Fatalf("%d after %d, %v", n, before, err)
		}
		last[cid] = n
	}
}

func TestAFullGroupIsASecondCallAndAGroupThatHasRoomWaits(t *testing.T) {
	gate := make(chan struct{})
	b, s, rdb, _ := open(t, gate)
	var wg sync.WaitGroup
	open := sync.OnceFunc(func() { close(gate) })
	defer wg.Wait()
	defer open()
	calls := func(n int64) {
		t.Helper()
		testserver.Eventually(t, fmt.Sprintf("call %d", n), 5*time.Second, func() error {
			if have := s.calls.Load(); have != n {
				return fmt.Errorf("%d calls", have)
			}
			return nil
		})
	}
	post := func(ids ...int) {
		var views []event.View
		for _, id := range ids {
			views = append(views, view(id, 1))
		}
		wg.Go(func() {
			if n, err := b.AppendAll(t.Context(), views); n != len(ids) || err != nil {
				t.Error(n, err)
			}
		})
	}
	post(1)
	calls(1)
	post(2)
	time.Sleep(50 * time.Millisecond)
	calls(1) // the group has room, so it waits
	full := make([]int, ingest.MaxGroup)
	for i := range full {
		full[i] = i + 1
	}
	post(full...)
	calls(2) // together they do not fit into one group, so the first one is full
	open()
	wg.Wait()
	calls(3)
	if n := rdb.XLen(t.Context(), s.Keys().Views()).Val(); n != int64(len(full))+2 {
		t.Errorf("%d entries", n)
	}
}

func TestStopAnswersEveryRequest(t *testing.T) {
	gate := make(chan struct{})
	b, s, rdb, stop := open(t, gate)
	var wg sync.WaitGroup
	var accepted atomic.Int64
	for i := range 500 {
		wg.Go(func() {
			switch err := b.Append(view(i+1, i)); fault.KindOf(err) {
			case "":
				accepted.Add(1)
			case fault.Unavailable:
			default:
				t.Error(err)
			}
		})
	}
	s.waitForCall(t)
	go close(gate)
	stop()
	wg.Wait()
	if err := b.Append(view(1, 1)); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("after Stop: %v", err)
	}
	if n := rdb.XLen(t.Context(), s.Keys().Views()).Val(); n != accepted.Load() {
		t.Fatalf("%d entries, %d were accepted", n, accepted.Load())
	}
}

func TestAFullQueueRefusesEventsAtOnce(t *testing.T) {
	gate := make(chan struct{})
	b, _, _, _ := open(t, gate)
	t.Cleanup(sync.OnceFunc(func() { close(gate) }))
	refused := make(chan error, 1)
	for i := range 10_000 { // a queue has room for 8,192, and two calls for 256 each
		go func() {
			if err := b.Append(view(2, i)); err != nil {
				select {
				case refused <- err:
				default:
				}
			}
		}()
	}
	select {
	case err := <-refused:
		if !fault.Is(err, fault.Unavailable) {
			t.Fatal(err)
		}
	case <-time.After(1500 * time.Millisecond):
		t.Fatal("no request was refused")
	}
}
