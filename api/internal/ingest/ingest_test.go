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

// slow is a real store whose trips are counted, and wait to be let through where gate is not nil.
type slow struct {
	*state.Store
	trips atomic.Int64
	most  atomic.Int64
	gate  chan struct{}
}

func (s *slow) Append(ctx context.Context, views []event.View) ([]string, error) {
	s.trips.Add(1)
	for most := s.most.Load(); int64(len(views)) > most && !s.most.CompareAndSwap(most, int64(len(views))); most = s.most.Load() {
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

func open(t *testing.T, gate chan struct{}) (*ingest.Batcher, *slow, redis.UniversalClient, func()) {
	t.Helper()
	rdb, err := state.Connect(testserver.Redis(t), -1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rdb.Close() })
	s := &slow{gate: gate, Store: state.NewStore(state.Options{Redis: rdb, Keys: state.NewKeys(testserver.Prefix(t)), TTL: time.Hour, Lease: time.Minute})}
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

func TestRequestsThatWaitShareATrip(t *testing.T) {
	gate := make(chan struct{})
	b, s, rdb, _ := open(t, gate)
	var wg sync.WaitGroup
	for i := range 1000 {
		wg.Go(func() {
			if err := b.Append(view(2, i)); err != nil { // one content, one lane
				t.Error(err)
			}
		})
	}
	testserver.Eventually(t, "the first trip", 5*time.Second, func() error {
		if s.trips.Load() == 0 {
			return fmt.Errorf("none")
		}
		return nil
	})
	time.AfterFunc(200*time.Millisecond, func() { close(gate) }) // meanwhile the others queue up
	wg.Wait()
	if n := rdb.XLen(t.Context(), s.Keys().Views()).Val(); n != 1000 {
		t.Fatalf("%d entries", n)
	}
	if trips, most := s.trips.Load(), s.most.Load(); trips > 100 || most > ingest.MaxGroup {
		t.Fatalf("%d trips, %d events in one", trips, most)
	}
}

func TestAppendAllKeepsTheOrderOfEachContent(t *testing.T) {
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

func TestAGroupThatGrowsNoMoreIsASecondTripAndOneThatCanGrowWaits(t *testing.T) {
	gate := make(chan struct{})
	b, s, rdb, _ := open(t, gate)
	var wg sync.WaitGroup
	open := sync.OnceFunc(func() { close(gate) })
	defer wg.Wait()
	defer open()
	trips := func(n int64) {
		t.Helper()
		testserver.Eventually(t, fmt.Sprintf("trip %d", n), 5*time.Second, func() error {
			if have := s.trips.Load(); have != n {
				return fmt.Errorf("%d trips", have)
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
	trips(1)
	post(2)
	time.Sleep(50 * time.Millisecond)
	trips(1) // it waits for company
	full := make([]int, ingest.MaxGroup)
	for i := range full {
		full[i] = i + 1
	}
	post(full...)
	trips(2) // together they were too many for one: the first is complete
	open()
	wg.Wait()
	trips(3)
	if n := rdb.XLen(t.Context(), s.Keys().Views()).Val(); n != int64(len(full))+2 {
		t.Errorf("%d entries", n)
	}
}

func TestStopAnswersEverybody(t *testing.T) {
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
	testserver.Eventually(t, "a trip", 5*time.Second, func() error {
		if s.trips.Load() == 0 {
			return fmt.Errorf("none")
		}
		return nil
	})
	go close(gate)
	stop()
	wg.Wait()
	if err := b.Append(view(1, 1)); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("after the end: %v", err)
	}
	if n := rdb.XLen(t.Context(), s.Keys().Views()).Val(); n != accepted.Load() {
		t.Fatalf("%d entries, %d were accepted", n, accepted.Load())
	}
}

func TestAFullQueueIsRefusedAtOnce(t *testing.T) {
	gate := make(chan struct{})
	b, _, _, _ := open(t, gate)
	t.Cleanup(sync.OnceFunc(func() { close(gate) }))
	refused := make(chan error, 1)
	for i := range 10_000 { // a queue has room for 8,192, and two trips for 256 each
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
		t.Fatal("nobody was refused")
	}
}
