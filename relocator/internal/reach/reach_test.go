package reach_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/tierflow/tierflow/relocator/internal/metrics"
	"github.com/tierflow/tierflow/relocator/internal/reach"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m) }

const patience = 30 * time.Second

// world is a Redis with relocators that read one stream. They have no tiers: an entry names those that it needs, and the
// relocator that reaches them notes the entry.
type world struct {
	*testing.T
	rdb   redis.UniversalClient // not through the gate
	url   string
	gate  *testserver.Gate
	store *state.Store
	log   *zap.Logger
	logs  *observer.ObservedLogs

	failed atomic.Int64 // calls of ServerFailed

	mu     sync.Mutex
	living []state.Worker
	done   map[string]string // the need of an entry to the relocator that it ended with, and its attempt
}

func newWorld(t *testing.T) *world {
	t.Helper()
	direct := testserver.Redis(t)
	w := &world{T: t, url: direct, done: map[string]string{}}
	gate, gated := testserver.RedisGate(t, direct)
	w.gate = gate
	w.rdb = w.connect(direct)
	w.store = state.NewStore(state.Options{Redis: w.connect(gated), Keys: state.NewKeys(testserver.Prefix(t)), TTL: time.Hour, Lease: time.Minute})
	core, logs := observer.New(zapcore.InfoLevel)
	w.log, w.logs = zap.New(core), logs
	if err := stream.CreateGroup(t.Context(), w.rdb, w.stream(), state.GroupRelocator, "0"); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) connect(url string) redis.UniversalClient {
	w.Helper()
	rdb, err := state.Connect(url, 2)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { rdb.Close() })
	return rdb
}

func (w *world) stream() string { return w.store.Keys().Views() }

// post adds an entry that needs these tiers.
func (w *world) post(tiers string) {
	w.Helper()
	if err := w.rdb.XAdd(context.Background(), &redis.XAddArgs{Stream: w.stream(), Values: []string{"needs", tiers, "cid", "7"}}).Err(); err != nil {
		w.Fatal(err)
	}
}

// capable plays the partition assignment, of one partition.
func (w *world) capable(_ int, _ string, tiers ...string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.living {
		if l.Reaches(tiers...) {
			return l.ID
		}
	}
	return ""
}

// reach makes the Reach of a worker. It writes through the gate.
func (w *world) reach(self state.Worker) *reach.Reach {
	return reach.New(reach.Options{Store: w.store, Self: self, Capable: w.capable, Lease: time.Second,
		ServerFailed: func() { w.failed.Add(1) }, Metrics: metrics.New(prometheus.NewRegistry()), Log: w.log})
}

// relocator starts a relocator that reaches these tiers.
func (w *world) relocator(id string, tiers ...string) *reach.Reach {
	w.Helper()
	self := state.Worker{ID: id, Tiers: tiers}
	r := w.reach(self)
	started := make(chan struct{})
	start := sync.OnceFunc(func() { close(started) })
	c := stream.New(stream.Options{Redis: w.connect(w.url), Stream: w.stream(), Backoff: w.store.Keys().Backoff(state.GroupRelocator), Walker: w.store.Keys().Walker(state.GroupRelocator),
		Group: state.GroupRelocator, Consumer: id, MinIdle: time.Minute, Slots: 4, Adopt: 10 * time.Millisecond, Drain: time.Second,
		Hold: func() bool { start(); return false }, Log: zap.NewNop(), Handle: func(ds []*stream.Delivery) {
			d := ds[0]
			if err := r.Check(strings.Split(d.Values["needs"], ",")...); err != nil {
				if !r.Reassign(d, state.GroupRelocator, err) {
					w.Errorf("%v is not of Check", err)
				}
				return
			}
			if err := w.rdb.XAck(d.Context, d.Stream, state.GroupRelocator, d.ID).Err(); err != nil {
				w.Error(err)
			}
			d.Settled()
			w.mu.Lock()
			defer w.mu.Unlock()
			w.done[d.Values["needs"]] = fmt.Sprintf("%s at attempt %d", id, d.Attempt)
		}})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { c.Run(ctx); close(ended) }()
	w.Cleanup(func() { cancel(); <-ended })
	// What a consumer finds pending when it starts counts as an attempt of a worker that crashed. So nobody reassigns to this
	// one before it has started.
	<-started
	w.mu.Lock()
	defer w.mu.Unlock()
	w.living = append(w.living, self)
	return r
}

// wantDone waits until the entry that needs these tiers has ended with a relocator, at its first attempt.
func (w *world) wantDone(tiers, by string) {
	w.Helper()
	testserver.Eventually(w, tiers+" are reached by "+by, patience, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if got := w.done[tiers]; got != by+" at attempt 1" {
			return fmt.Errorf("%q", got)
		}
		delete(w.done, tiers)
		return nil
	})
}

// unreachable waits until Redis names these sets of tiers as reached by nobody.
func (w *world) unreachable(want ...string) {
	w.Helper()
	testserver.Eventually(w, fmt.Sprintf("unreachable: %q", want), patience, func() error {
		sets, err := w.store.Unreachable(context.Background())
		if err != nil {
			return err
		}
		var got []string
		for tiers := range sets {
			got = append(got, tiers)
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			return fmt.Errorf("%q", got)
		}
		return nil
	})
}

func TestARelocatorKnowsWhichTiersItReaches(t *testing.T) {
	for _, c := range []struct {
		reached []string // nil: all
		needs   string
		want    string
	}{
		{nil, "gold,bronze", ""},
		{[]string{"bronze", "gold"}, "gold,bronze", ""},
		{[]string{"bronze"}, "bronze", ""},
		{[]string{"bronze"}, "gold", "this host does not reach gold"},
		{[]string{"bronze"}, "gold,bronze", "this host does not reach bronze and gold"},
		{[]string{"bronze"}, "tape,gold,tape", "this host does not reach gold and tape"},
		{[]string{}, "bronze", "this host does not reach bronze"},
	} {
		r := reach.New(reach.Options{Self: state.Worker{ID: "a", Tiers: c.reached}})
		got := ""
		if err := r.Check(strings.Split(c.needs, ",")...); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%q needs %s: %q, want %q", c.reached, c.needs, got, c.want)
		}
	}
}

func TestAnEntryGoesToARelocatorThatReachesItsTiersAndCountsNoAttempt(t *testing.T) {
	w := newWorld(t)
	w.relocator("a", "bronze", "silver")
	w.relocator("b", "silver", "gold")
	w.relocator("c", "bronze", "tape")
	for tiers, by := range map[string]string{"bronze,silver": "a", "gold": "b", "silver,gold": "b", "tape": "c", "bronze,tape": "c"} {
		for range 5 { // whoever reads it
			w.post(tiers)
			w.wantDone(tiers, by)
		}
	}
	w.unreachable()
}

func TestAnEntryWhoseTiersNobodyReachesWaitsUntilARelocatorDoes(t *testing.T) {
	w := newWorld(t)
	a := w.relocator("a", "bronze")
	w.post("tape,gold")
	w.post("gold")
	w.unreachable("gold", "gold,tape")
	if got := a.Unreachable(); !slices.Equal(got, []string{"gold", "gold,tape"}) {
		t.Errorf("%q", got)
	}
	w.post("bronze") // nothing that it can do waits behind them
	w.wantDone("bronze", "a")
	w.relocator("b", "gold")
	w.wantDone("gold", "b")
	w.unreachable("gold,tape")
	w.relocator("c", "gold", "tape")
	w.wantDone("tape,gold", "c")
	w.unreachable()
	if got := a.Unreachable(); len(got) != 0 {
		t.Errorf("%q", got)
	}
	// Its log has a line when it begins and one when it ends, however often the entry is tried.
	if began := w.logs.FilterLevelExact(zap.ErrorLevel).Len(); began != 2 {
		t.Errorf("%d lines say that nobody reaches tiers", began)
	}
	if ended := w.logs.FilterMessage("a relocator reaches these tiers again").Len(); ended != 2 {
		t.Errorf("%d lines say that a relocator reaches them again", ended)
	}
}

func TestAnEntryStaysWhereItIsWhileRedisFails(t *testing.T) {
	w := newWorld(t)
	w.gate.Close()
	w.living = []state.Worker{{ID: "b", Tiers: []string{"gold"}}}
	w.relocator("a", "bronze") // reads past the gate, and reassigns through it
	w.post("gold")
	testserver.Eventually(t, "the relocator sees that Redis fails", patience, func() error {
		if w.failed.Load() == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	if p, err := w.rdb.XPending(t.Context(), w.stream(), state.GroupRelocator).Result(); err != nil || p.Consumers["a"] != 1 {
		t.Fatalf("%+v %v", p, err)
	}
	w.relocator("b", "gold") // before the gate opens: what it finds pending when it starts counts as an attempt
	w.gate.Open()
	w.wantDone("gold", "b")
}

// pending adds an entry and makes it pending with a consumer.
func (w *world) pending(consumer string) *stream.Delivery {
	w.Helper()
	w.post("gold")
	read, err := w.rdb.XReadGroup(w.Context(), &redis.XReadGroupArgs{Group: state.GroupRelocator, Consumer: consumer,
		Streams: []string{w.stream(), ">"}, Block: -1}).Result()
	if err != nil {
		w.Fatal(err)
	}
	return &stream.Delivery{Stream: w.stream(), ID: read[0].Messages[0].ID, Context: w.Context()}
}

func TestOnlyAnEntryOfItsOwnIsReassigned(t *testing.T) {
	w := newWorld(t)
	w.living = []state.Worker{{ID: "b", Tiers: []string{"gold"}}}
	r := w.reach(state.Worker{ID: "a", Tiers: []string{"bronze"}})
	for name, c := range map[string]struct {
		of   string // the consumer that has the entry
		err  error
		took bool
		ends string // with whom the entry is pending then
	}{
		"its own":                  {"a", r.Check("gold"), true, "b"},
		"another has it meanwhile": {"c", r.Check("gold"), true, "c"},
		"the error is another one": {"a", errors.New("read-only"), false, "a"},
	} {
		d := w.pending(c.of)
		if took := r.Reassign(d, state.GroupRelocator, c.err); took != c.took {
			t.Errorf("%s: reassigned: %t", name, took)
		}
		p, err := w.rdb.XPendingExt(t.Context(), &redis.XPendingExtArgs{Stream: w.stream(), Group: state.GroupRelocator,
			Start: d.ID, End: d.ID, Count: 1}).Result()
		if err != nil || len(p) != 1 || p[0].Consumer != c.ends || p[0].RetryCount != 1 {
			t.Errorf("%s: %+v %v", name, p, err)
		}
	}
}
