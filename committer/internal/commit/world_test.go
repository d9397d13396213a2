package commit_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/tierflow/tierflow/committer/internal/apply"
	"github.com/tierflow/tierflow/committer/internal/commit"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m) }

// world is a Redis and a MySQL of the test's own. The test's own connections lead through no gate.
type world struct {
	t        testing.TB
	rdb      redis.UniversalClient
	store    *state.Store
	db       *catalog.Catalog
	redisURL string
	dsn      string
	metrics  *prometheus.Registry
	attempts int64
	minIdle  time.Duration
	log      *zap.Logger       // of the committers; may be nil
	last     *commit.Committer // that was started
	looked   atomic.Int64      // how often a worker found a server away
	apply    func(next func(context.Context, []event.Relocated) []apply.Result) func(context.Context, []event.Relocated) []apply.Result
	hook     redis.Hook // of the committers' clients; may be nil
}

func newWorld(t testing.TB, items int) *world {
	t.Helper()
	return newWorldOn(t, testserver.MySQL(t), items)
}

// newWorldOn makes a world in an empty database of the test's own.
func newWorldOn(t testing.TB, dsn string, items int) *world {
	t.Helper()
	w := &world{t: t, redisURL: testserver.Redis(t), dsn: dsn, attempts: 8, minIdle: 3 * time.Second, metrics: prometheus.NewRegistry()}
	w.rdb = connect(t, w.redisURL)
	w.store = state.NewStore(state.Options{Redis: w.rdb, Keys: state.NewKeys(testserver.Prefix(t)), TTL: time.Hour, Lease: 30 * time.Second})
	w.db = open(t, w.dsn)
	if _, err := w.db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	for id := 1; id <= items; id++ {
		w.exec("INSERT INTO contents (cid, content_level, filename) VALUES (?, 'bronze', ?)", id, filename(item.ID(id)))
	}
	return w
}

func connect(t testing.TB, url string) redis.UniversalClient {
	t.Helper()
	c, err := state.Connect(url, -1) // go-redis repeats nothing by itself, so that a test sees what the committer repeats
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func open(t testing.TB, dsn string) *catalog.Catalog {
	t.Helper()
	c, err := catalog.Open(dsn, catalog.Options{LockWait: apply.LockWait})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (w *world) exec(query string, args ...any) {
	w.t.Helper()
	if _, err := w.db.DB().ExecContext(context.Background(), query, args...); err != nil {
		w.t.Fatalf("%s: %v", query, err)
	}
}

// start runs a committer until the end of the test, or until stop is called. redisURL and dsn may lead through gates.
func (w *world) start(name, redisURL, dsn string) (stop func()) {
	w.t.Helper()
	rdb := connect(w.t, redisURL)
	if w.hook != nil {
		rdb.AddHook(w.hook)
	}
	do := apply.New(open(w.t, dsn).DB()).Apply
	if w.apply != nil {
		do = w.apply(do)
	}
	reg := prometheus.NewRegistry()
	if name == "w1" {
		reg = w.metrics
	}
	log := w.log
	if log == nil {
		log = zaptest.NewLogger(w.t, zaptest.Level(zap.WarnLevel))
	}
	c := commit.New(commit.Options{
		Redis: rdb,
		Store: state.NewStore(state.Options{Redis: rdb, Keys: w.store.Keys(), TTL: time.Hour, Lease: 30 * time.Second}),
		Apply: do, WorkerID: name, MinIdle: w.minIdle, Drain: 5 * time.Second, MaxAttempts: w.attempts,
		Hold: func() bool { return false }, ServerFailed: func() { w.looked.Add(1) },
		Metrics: commit.NewMetrics(reg), Log: log,
	})
	w.last = c
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); c.Run(ctx) }()
	stop = func() { cancel(); <-done }
	w.t.Cleanup(stop)
	return stop
}

func (w *world) run() (stop func()) { return w.start("w1", w.redisURL, w.dsn) }

func filename(id item.ID) string { return "f" + id.String() + ".mp4" }

func eventID(n int) string { return fmt.Sprintf("0198a5b0-0000-7000-8000-%012x", n) }

// relocated is event n: item id went from bronze to gold, seen with generation 0.
func relocated(n int, id item.ID) event.Relocated {
	now := time.Now()
	return event.Relocated{
		EventID: eventID(n), ID: id, From: "bronze", To: "gold", Filename: filename(id), Count: 2500, Bytes: 4096,
		Digest: "sha256:" + strings.Repeat("ab", 32), Method: "copy", WorkerID: "r1", StartedAt: now, FinishedAt: now,
	}
}

// post appends view event n and has it settled, as a relocator would that has emitted its move.
func (w *world) post(n int, id item.ID, target string) {
	w.t.Helper()
	counts := map[string]item.Count{"bronze": 1, "silver": 1500, "gold": 2500}
	_, err := w.store.Append(context.Background(), []event.View{{
		EventID: eventID(n), ID: id, Count: counts[target], Target: target, DBLevel: "bronze", Filename: filename(id), PostedAt: time.Now(),
	}})
	if err != nil {
		w.t.Fatal(err)
	}
}

// emit appends the entry of a move that nobody has locked.
func (w *world) emit(fields []string) (id string) {
	w.t.Helper()
	id, err := w.rdb.XAdd(context.Background(), &redis.XAddArgs{Stream: w.store.Keys().Relocated(), Values: fields}).Result()
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

// settled waits until every entry of relocated has been read and acked.
func (w *world) settled() {
	w.t.Helper()
	testserver.Eventually(w.t, "all is settled", 30*time.Second, func() error {
		groups, err := w.rdb.XInfoGroups(context.Background(), w.store.Keys().Relocated()).Result()
		if err != nil {
			return err
		}
		for _, g := range groups {
			if g.Name == state.GroupCommitter && g.Pending == 0 && g.Lag == 0 {
				return nil
			}
		}
		return fmt.Errorf("%+v", groups)
	})
}

func (w *world) entries(key string) []redis.XMessage {
	w.t.Helper()
	ms, err := w.rdb.XRange(context.Background(), key, "-", "+").Result()
	if err != nil {
		w.t.Fatal(err)
	}
	return ms
}

// committed are the entries of committed.
func (w *world) committed() []event.Committed {
	w.t.Helper()
	var cs []event.Committed
	for _, m := range w.entries(w.store.Keys().Committed()) {
		c, err := event.ParseCommitted(texts(m))
		if err != nil {
			w.t.Fatal(err)
		}
		cs = append(cs, c)
	}
	return cs
}

func texts(m redis.XMessage) map[string]string {
	v := map[string]string{}
	for k, x := range m.Values {
		v[k] = x.(string)
	}
	return v
}

// dead are the failures in dead, and what failed.
func (w *world) dead() (fs []event.Failure, entries []map[string]string) {
	w.t.Helper()
	for _, m := range w.entries(w.store.Keys().Dead()) {
		f, e, err := event.ParseDead(texts(m))
		if err != nil {
			w.t.Fatal(err)
		}
		fs, entries = append(fs, f), append(entries, e)
	}
	return fs, entries
}

func (w *world) state(id item.ID) state.State {
	w.t.Helper()
	s, ok, err := w.store.Get(context.Background(), id)
	if !ok || err != nil {
		w.t.Fatalf("no state of %s: %v", id, err)
	}
	return s
}

func (w *world) expectRow(id item.ID, level string, generation int64, history int) {
	w.t.Helper()
	r, err := w.db.Row(context.Background(), id)
	if err != nil {
		w.t.Fatal(err)
	}
	hs, err := w.db.History(context.Background(), id, 0, 100)
	if err != nil {
		w.t.Fatal(err)
	}
	if r.Level != level || r.Generation != generation || len(hs) != history {
		w.t.Errorf("item %s: %s, generation %d, %d rows of history; want %s, %d, %d", id, r.Level, r.Generation, len(hs), level, generation, history)
	}
}

// counted reads a counter of the first commit.
func (w *world) counted(name string) (sum float64) {
	w.t.Helper()
	fams, err := w.metrics.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range fams {
		for _, m := range f.GetMetric() {
			full := f.GetName()
			for _, l := range m.GetLabel() {
				full += " " + l.GetValue()
			}
			if full == name {
				sum += m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return sum
}

// expectAppended checks the newest of n view entries, and that the state is its.
func (w *world) expectAppended(eventID, target, dbLevel string, n int) {
	w.t.Helper()
	views := w.entries(w.store.Keys().Views())
	if len(views) != n {
		w.t.Fatalf("%d view entries, want %d", len(views), n)
	}
	last := views[n-1]
	v, err := event.ParseView(texts(last))
	if err != nil {
		w.t.Fatal(err)
	}
	if v.EventID != eventID || v.Target != target || v.DBLevel != dbLevel || v.Filename != "f1.mp4" {
		w.t.Errorf("appended: %+v", v)
	}
	if s := w.state(1); s.EventID != eventID || s.EntryID != last.ID || s.Status != state.Update || s.DBLevel != dbLevel {
		w.t.Errorf("state: %s", s.JSON())
	}
}

// comeBack makes entries pending that were delivered n times, each time to a committer that died.
func (w *world) comeBack(n int) {
	w.t.Helper()
	key := w.store.Keys().Relocated()
	if err := w.rdb.XGroupCreateMkStream(w.t.Context(), key, state.GroupCommitter, "0").Err(); err != nil {
		w.t.Fatal(err)
	}
	read, err := w.rdb.XReadGroup(w.t.Context(), &redis.XReadGroupArgs{Group: state.GroupCommitter, Consumer: "died",
		Streams: []string{key, ">"}, Count: 100}).Result()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, m := range read[0].Messages {
		if err := w.rdb.Do(w.t.Context(), "XCLAIM", key, state.GroupCommitter, "died", 0, m.ID, "IDLE", 3600000, "RETRYCOUNT", n,
			"JUSTID").Err(); err != nil {
			w.t.Fatal(err)
		}
	}
}
