// Package relocatortest is the set-up that tests of the relocator's packages share: a Redis, a MySQL and three tiers. A
// test can play the api and the committer with it. It is for tests only.
//
// A package that uses it has
//
//	func TestMain(m *testing.M) { relocatortest.Main(m) }
package relocatortest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"golang.org/x/time/rate"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/gate"
	"github.com/tierflow/tierflow/relocator/internal/handler"
	"github.com/tierflow/tierflow/relocator/internal/metrics"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/relocator/internal/reach"
	"github.com/tierflow/tierflow/relocator/internal/release"
	"github.com/tierflow/tierflow/relocator/internal/relocate"
	"github.com/tierflow/tierflow/relocator/internal/sweep"
	"github.com/tierflow/tierflow/relocator/internal/testdisk"
	"github.com/tierflow/tierflow/relocator/internal/tier"
	"github.com/tierflow/tierflow/relocator/internal/tierhealth"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/outage"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// Main runs the tests of a package, in a mount namespace of their own.
func Main(m *testing.M) { testdisk.Main(func() { testserver.Main(m) }) }

const (
	// MinIdle is that of every worker, and the lease of its locks, where a test sets no other.
	MinIdle = 600 * time.Millisecond
	// slots is how many moves all workers together make at once, and how many handlers each has.
	slots = 4

	patience = 20 * time.Second
)

// World is a Redis, a MySQL and three tiers of a test's own. The fields after Roots may be changed before workers start.
type World struct {
	T       *testing.T
	Redis   redis.UniversalClient
	Catalog *catalog.Catalog
	Store   *state.Store
	Roots   map[string]string // folders of the tiers, by level

	FS       fsys.FS
	Grace    time.Duration
	Attempts int64 // TIERFLOW_MAX_ATTEMPTS
	Limiter  *rate.Limiter

	Tiers   *tierhealth.Tiers // of all workers; nil before the first
	metrics *metrics.Metrics
	log     *zap.Logger
	lease   time.Duration // MinIdle, unless SetLease was called

	inFlight        fsys.InFlight
	moves, releases *gate.Gate
}

// New makes a World. Gold lies on another file system than bronze and silver, so that both ways of moving are taken.
func New(t *testing.T) *World {
	t.Helper()
	memory, err := os.MkdirTemp("/dev/shm", "tierflow-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(memory) })
	return NewOn(t, memory)
}

// Servers connects to a Redis and a MySQL, with the schema in it.
func Servers(t *testing.T) (redis.UniversalClient, *catalog.Catalog) {
	t.Helper()
	rdb, err := state.Connect(testserver.Redis(t), 3)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rdb.Close() })
	cat, err := catalog.Open(testserver.MySQL(t), catalog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cat.Close() })
	if _, err := cat.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return rdb, cat
}

// NewOn makes a World that has gold in a folder of the test's own.
func NewOn(t *testing.T, gold string) *World {
	t.Helper()
	rdb, cat := Servers(t)
	w := &World{T: t, Redis: rdb, Catalog: cat, Attempts: 3, moves: gate.New(slots), releases: gate.New(slots),
		metrics: metrics.New(prometheus.NewRegistry()), log: zap.NewNop()}
	if testing.Verbose() {
		w.log = zaptest.NewLogger(t)
	}
	w.SetLease(MinIdle)
	disk := t.TempDir()
	w.Roots = map[string]string{"bronze": disk + "/bronze", "silver": disk + "/silver", "gold": gold + "/gold"}
	for name, path := range w.Roots {
		id, err := tier.Init(w.FS, policy.Level{Name: name, Path: path}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		w.Exec("UPDATE level SET path = ?, tier_id = ? WHERE content_level = ?", path, id, name)
	}
	return w
}

// SetLease changes the lease of the locks, and the MinIdle of the workers that are started from now on.
func (w *World) SetLease(lease time.Duration) {
	w.T.Helper()
	w.lease = lease
	w.Store = state.NewStore(state.Options{Redis: w.Redis, Keys: state.NewKeys(testserver.Prefix(w.T)), TTL: time.Hour, Lease: lease})
}

// Exec runs a statement in MySQL.
func (w *World) Exec(q string, args ...any) {
	w.T.Helper()
	if _, err := w.Catalog.DB().ExecContext(context.Background(), q, args...); err != nil {
		w.T.Fatal(err)
	}
}

// Level is a level as it is now.
func (w *World) Level(name string) policy.Level {
	w.T.Helper()
	levels, err := w.Catalog.Policy(context.Background())
	if err != nil {
		w.T.Fatal(err)
	}
	l, _ := levels.Level(name)
	return l
}

// Row is the row of an item.
func (w *World) Row(id int) catalog.Row {
	w.T.Helper()
	row, err := w.Catalog.Row(context.Background(), item.ID(id))
	if err != nil {
		w.T.Fatal(err)
	}
	return row
}

// Item makes an item on bronze, with bytes of its own.
func (w *World) Item(id int, name string) []byte {
	w.T.Helper()
	body := []byte(strings.Repeat(fmt.Sprintf("item %d;", id), 1000))
	w.File("bronze", name, body)
	w.Exec("INSERT INTO contents (cid, content_level, filename) VALUES (?, 'bronze', ?)", id, name)
	return body
}

// File writes a file to a tier.
func (w *World) File(level, name string, body []byte) {
	w.T.Helper()
	p := filepath.Join(w.Roots[level], name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		w.T.Fatal(err)
	}
	if err := os.WriteFile(p, body, 0o644); err != nil {
		w.T.Fatal(err)
	}
}

// Post plays the api. It returns the id of the entry of `views`.
func (w *World) Post(id, count int) string {
	w.T.Helper()
	ctx := context.Background()
	row, err := w.Catalog.Row(ctx, item.ID(id))
	if err != nil {
		row = catalog.Row{ID: item.ID(id), Level: "bronze", Filename: "unknown"}
	}
	levels, err := w.Catalog.Policy(ctx)
	if err != nil {
		w.T.Fatal(err)
	}
	ids, err := w.Store.Append(ctx, []event.View{{EventID: uuid.Must(uuid.NewV7()).String(), ID: item.ID(id),
		Count: item.Count(count), Target: levels.Decide(row.Item(item.Count(count)), time.Now()).Target, DBLevel: row.Level, Filename: row.Filename,
		PostedAt: time.Now()}})
	if err != nil {
		w.T.Fatal(err)
	}
	return ids[0]
}

// RelocateHandler makes the handler of `views` of one worker, with the file system as it is now.
func (w *World) RelocateHandler(worker string) *relocate.Handler {
	m := w.mover()
	return relocate.New(relocate.Options{Parts: w.parts(worker, m), Gate: w.moves})
}

// parts are what the handlers of a worker work with.
func (w *World) parts(worker string, m *mover.Mover) handler.Parts {
	return handler.Parts{
		Store: w.Store, Catalog: w.Catalog, Mover: m, WorkerID: worker, MaxAttempts: w.Attempts, Lease: w.lease,
		ServerFailed: func() {}, Writes: outage.New("writes", w.log), Reach: w.reach(worker), Tiers: w.tiers(m),
		Metrics: w.metrics, Log: w.log.Named(worker),
	}
}

// Sweeper makes a sweeper.
func (w *World) Sweeper() *sweep.Sweeper {
	m := w.mover()
	return sweep.New(sweep.Options{Store: w.Store, Catalog: w.Catalog, Mover: m, Rests: w.tiers(m).CheckRemove, Lease: w.lease, Log: w.log})
}

func (w *World) mover() *mover.Mover {
	fs := w.FS
	fs.InFlight = &w.inFlight
	return mover.New(mover.Options{FS: fs, Limiter: w.Limiter})
}

func (w *World) tiers(m *mover.Mover) *tierhealth.Tiers {
	if w.Tiers == nil {
		w.Tiers = tierhealth.New(w.T.Context(), tierhealth.Options{Levels: w.Catalog.Policy, Look: m.Look, Probe: m.Probe, Slow: w.inFlight.Slow,
			Hangs: func(level string, hangs bool) {
				w.moves.SetHanging(level, hangs)
				w.releases.SetHanging(level, hangs)
			}, Metrics: w.metrics, Log: w.log})
	}
	return w.Tiers
}

// reach reaches all tiers.
func (w *World) reach(worker string) *reach.Reach {
	return reach.New(reach.Options{Store: w.Store, Self: state.Worker{ID: worker}, Lease: w.lease, ServerFailed: func() {},
		Metrics: w.metrics, Log: w.log})
}

// Relocator starts a worker on `views`. It stops at the end of the test at the latest.
func (w *World) Relocator(worker string) (stop func()) {
	return w.consume(worker, stream.Options{Stream: w.Store.Keys().Views(), Group: state.GroupRelocator, Handle: w.RelocateHandler(worker).Handle,
		Slots: relocate.Reads, Batch: 100, Alone: slots})
}

// Releaser starts a worker on `committed`. It stops at the end of the test at the latest.
func (w *World) Releaser(worker string) (stop func()) {
	m := w.mover()
	h := release.New(release.Options{Parts: w.parts(worker, m), Grace: w.Grace, Gate: w.releases})
	return w.consume(worker, stream.Options{Stream: w.Store.Keys().Committed(), Group: state.GroupReleaser, Handle: h.Handle, Slots: slots})
}

// Run starts a relocator, a releaser and a committer.
func (w *World) Run() {
	w.Relocator("r1")
	w.Releaser("r1")
	w.Committer()
}

func (w *World) consume(worker string, o stream.Options) (stop func()) {
	w.T.Helper()
	rdb, err := state.Connect(testserver.Redis(w.T), 3)
	if err != nil {
		w.T.Fatal(err)
	}
	o.Redis, o.Backoff, o.Consumer = rdb, w.Store.Keys().Backoff(o.Group), worker
	o.Walker = w.Store.Keys().Walker(o.Group)
	o.MinIdle, o.Drain, o.Log = w.lease, 5*time.Second, w.log.Named(worker)
	c := stream.New(o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { c.Run(ctx); close(done) }()
	var once sync.Once
	stop = func() { once.Do(func() { cancel(); <-done; rdb.Close() }) }
	w.T.Cleanup(stop)
	return stop
}

// Eventually waits until f returns nil.
func (w *World) Eventually(what string, f func() error) {
	w.T.Helper()
	testserver.Eventually(w.T, what, patience, f)
}

// Settled waits until no entry is unread or pending, and no lock is held.
func (w *World) Settled() {
	w.T.Helper()
	w.Eventually("the pipeline has settled", func() error {
		flying, err := w.Store.InFlight(context.Background())
		if err == nil && len(flying) > 0 {
			err = fmt.Errorf("in flight: %v", flying)
		}
		return err
	})
}

// Lies checks that an item has its bytes, and lies on one tier alone: the one that its row names.
func (w *World) Lies(id int, level string, body []byte) {
	w.T.Helper()
	row := w.Row(id)
	if row.Level != level {
		w.T.Errorf("item %d: the row names %s, not %s", id, row.Level, level)
	}
	for name, root := range w.Roots {
		got, err := os.ReadFile(filepath.Join(root, row.Filename))
		switch {
		case name == level && err != nil:
			w.T.Errorf("item %d: %v", id, err)
		case name == level && sha256.Sum256(got) != sha256.Sum256(body):
			w.T.Errorf("item %d: %d bytes that differ from its %d", id, len(got), len(body))
		case name != level && err == nil:
			w.T.Errorf("item %d: a copy is on %s as well", id, name)
		}
		for _, sub := range []string{"tmp", "released"} {
			left, err := os.ReadDir(filepath.Join(root, ".tierflow", sub))
			if err != nil {
				w.T.Error(err)
			}
			for _, e := range left {
				w.T.Errorf("left in %s of %s: %s", sub, name, e.Name())
			}
		}
	}
}

// DeadLetters waits for n entries of `dead`.
func (w *World) DeadLetters(n int) []redis.XMessage {
	w.T.Helper()
	var msgs []redis.XMessage
	w.Eventually(fmt.Sprintf("%d dead letters", n), func() (err error) {
		msgs, err = w.Redis.XRange(context.Background(), w.Store.Keys().Dead(), "-", "+").Result()
		if err == nil && len(msgs) != n {
			err = fmt.Errorf("%d there", len(msgs))
		}
		return err
	})
	return msgs
}
