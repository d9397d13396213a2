package worker_test

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
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/relocator/internal/testdisk"
	"github.com/tierflow/tierflow/relocator/internal/tier"
	"github.com/tierflow/tierflow/relocator/internal/worker"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestMain(m *testing.M) { testdisk.Main(func() { testserver.Main(m) }) }

const (
	minIdle = 600 * time.Millisecond
	patient = 20 * time.Second
)

// world is a Redis, a MySQL and three tiers, with what a test needs to play api and committer.
type world struct {
	t     *testing.T
	rdb   redis.UniversalClient
	cat   *catalog.Catalog
	store *state.Store
	roots map[string]string
	fs    fsys.FS
	grace time.Duration

	attempts int64 // MAX_ATTEMPTS
	limiter  *rate.Limiter
	tiers    *worker.Tiers // of all its workers
	log      *zap.Logger
}

func newWorld(t *testing.T) *world {
	t.Helper()
	// Gold lies on another file system, so that both ways of moving are taken.
	memory, err := os.MkdirTemp("/dev/shm", "tierflow-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(memory) })
	return newWorldOn(t, memory)
}

// newWorldOn has gold in a folder of the test's own.
func newWorldOn(t *testing.T, gold string) *world {
	t.Helper()
	ctx := t.Context()
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
	if _, err := cat.Migrate(ctx); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, rdb: rdb, cat: cat, roots: map[string]string{}, attempts: 3, log: zap.NewNop()}
	if testing.Verbose() {
		w.log = zaptest.NewLogger(t)
	}
	w.store = state.NewStore(state.Options{Redis: rdb, Keys: state.NewKeys(testserver.Prefix(t)), TTL: time.Hour, Lease: minIdle})
	disk := t.TempDir()
	w.roots = map[string]string{"bronze": disk + "/bronze", "silver": disk + "/silver", "gold": gold + "/gold"}
	for name, path := range w.roots {
		id, err := tier.Init(w.fs, policy.Level{Name: name, Path: path}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		w.exec("UPDATE level SET path = ?, tier_id = ? WHERE content_level = ?", path, id, name)
	}
	return w
}

func (w *world) exec(q string, args ...any) {
	w.t.Helper()
	if _, err := w.cat.DB().ExecContext(context.Background(), q, args...); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) row(id int) catalog.Row {
	w.t.Helper()
	row, err := w.cat.Content(context.Background(), item.ID(id))
	if err != nil {
		w.t.Fatal(err)
	}
	return row
}

// content makes a content on bronze with bytes of its own.
func (w *world) content(id int, name string) []byte {
	w.t.Helper()
	body := []byte(strings.Repeat(fmt.Sprintf("content %d;", id), 1000))
	w.file("bronze", name, body)
	w.exec("INSERT INTO contents (cid, content_level, filename) VALUES (?, 'bronze', ?)", id, name)
	return body
}

func (w *world) file(level, name string, body []byte) {
	w.t.Helper()
	p := filepath.Join(w.roots[level], name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(p, body, 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// post plays the api; it returns the entry's id.
func (w *world) post(id, count int) string {
	w.t.Helper()
	ctx := context.Background()
	row, err := w.cat.Content(ctx, item.ID(id))
	if err != nil {
		row = catalog.Row{ID: item.ID(id), Level: "bronze", Filename: "unknown"}
	}
	levels, err := w.cat.Policy(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	ids, err := w.store.Append(ctx, []event.View{{EventID: uuid.Must(uuid.NewV7()).String(), ID: item.ID(id),
		Count: item.Count(count), Target: levels.Decide(row.Item(item.Count(count)), time.Now()).Target, DBLevel: row.Level, Filename: row.Filename,
		PostedAt: time.Now()}})
	if err != nil {
		w.t.Fatal(err)
	}
	return ids[0]
}

func (w *world) options(name string) worker.Options {
	metrics := worker.NewMetrics(prometheus.NewRegistry())
	if w.tiers == nil {
		w.tiers = worker.NewTiers(metrics, w.log)
	}
	return worker.Options{
		Store: w.store, Catalog: w.cat, Mover: mover.New(mover.Options{FS: w.fs, Limiter: w.limiter}), WorkerID: name, MaxAttempts: w.attempts,
		Lease: minIdle, Grace: w.grace, Trouble: func() {}, Tiers: w.tiers, Metrics: metrics,
		Log: w.log.Named(name),
	}
}

// relocator starts the consumer of views, and stops it at the end of the test.
func (w *world) relocator(name string) (stop func()) {
	return w.consume(name, w.store.Keys().Views(), state.GroupRelocator, worker.NewRelocator(w.options(name)).Handle)
}

// releaser starts the consumer of committed.
func (w *world) releaser(name string) (stop func()) {
	return w.consume(name, w.store.Keys().Committed(), state.GroupReleaser, worker.NewReleaser(w.options(name)).Handle)
}

func (w *world) consume(name, key, group string, handle stream.Handler) (stop func()) {
	w.t.Helper()
	rdb, err := state.Connect(testserver.Redis(w.t), 3)
	if err != nil {
		w.t.Fatal(err)
	}
	c := stream.New(stream.Options{Redis: rdb, Stream: key, Backoff: w.store.Keys().Backoff(group), Group: group, Consumer: name, MinIdle: minIdle, Slots: 4,
		Drain: 5 * time.Second, Handle: handle, Log: w.log.Named(name)})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { c.Run(ctx); close(done) }()
	var once sync.Once
	stop = func() { once.Do(func() { cancel(); <-done; rdb.Close() }) }
	w.t.Cleanup(stop)
	return stop
}

// committer plays the committer, one entry at a time, until the test ends. It is written from docs/design.md, not from
// the committer's code.
func (w *world) committer() {
	w.t.Helper()
	w.consume("c1", w.store.Keys().Relocated(), state.GroupCommitter, func(ds []*stream.Delivery) {
		for _, d := range ds {
			w.commit(d)
		}
	})
}

func (w *world) commit(d *stream.Delivery) {
	ctx := context.Background()
	r, err := event.ParseRelocated(d.Values)
	if err != nil {
		w.t.Error(err)
		return
	}
	outcome, at := event.OutcomeSuperseded, time.Now().UTC().Truncate(time.Microsecond)
	var committed int
	if err := w.cat.DB().QueryRowContext(ctx, "SELECT COUNT(*) FROM update_history WHERE event_id = ?", r.EventID).Scan(&committed); err != nil {
		w.t.Error(err)
		return
	}
	if committed == 0 {
		tx, err := w.cat.DB().BeginTx(ctx, nil)
		if err != nil {
			w.t.Error(err)
			return
		}
		defer func() { _ = tx.Rollback() }()
		res, err := tx.ExecContext(ctx, "UPDATE contents SET content_level = ?, update_time = ?, generation = generation + 1"+
			" WHERE cid = ? AND generation = ?", r.To, at, int64(r.ID), r.Generation)
		if err != nil {
			w.t.Error(err)
			return
		}
		if n, _ := res.RowsAffected(); n == 1 {
			outcome = event.OutcomeCommitted
			if _, err := tx.ExecContext(ctx, `INSERT INTO update_history (event_id, cid, old_level, new_level, prev_update_time,
				update_time, view_count, bytes, duration_us, worker_id) VALUES (?, ?, ?, ?, NOW(6), NOW(6), ?, ?, 0, 't')`,
				r.EventID, int64(r.ID), r.From, r.To, int64(r.Count), r.Bytes); err != nil {
				w.t.Error(err)
				return
			}
		}
		if err := tx.Commit(); err != nil {
			w.t.Error(err)
			return
		}
	} else {
		outcome = event.OutcomeCommitted
	}
	row, err := w.cat.Content(ctx, r.ID)
	if err != nil {
		w.t.Error(err)
		return
	}
	errs := w.store.Finish(ctx, []state.Finished{{EntryID: d.ID, RowLevel: row.Level, Event: event.Committed{
		EventID: r.EventID, ID: r.ID, From: r.From, To: r.To, Filename: r.Filename, Generation: r.Generation, Outcome: outcome,
		CommittedAt: at}}})
	if errs[0] != nil {
		w.t.Error(errs[0])
		return
	}
	d.Settled()
}

func (w *world) eventually(what string, f func() error) {
	w.t.Helper()
	testserver.Eventually(w.t, what, patient, f)
}

// settled waits until nothing is unread or pending, and no lock is held.
func (w *world) settled() {
	w.t.Helper()
	w.eventually("the pipeline has settled", func() error {
		flying, err := w.store.InFlight(context.Background())
		if err != nil {
			return err
		}
		if len(flying) > 0 {
			return fmt.Errorf("in flight: %v", flying)
		}
		return nil
	})
}

// lies checks that a content is on one tier alone, the one that its row names, with its bytes.
func (w *world) lies(id int, level string, body []byte) {
	w.t.Helper()
	row, err := w.cat.Content(context.Background(), item.ID(id))
	if err != nil {
		w.t.Fatal(err)
	}
	if row.Level != level {
		w.t.Errorf("content %d: the row names %s, not %s", id, row.Level, level)
	}
	for name, root := range w.roots {
		got, err := os.ReadFile(filepath.Join(root, row.Filename))
		switch {
		case name == level && err != nil:
			w.t.Errorf("content %d: %v", id, err)
		case name == level && sha256.Sum256(got) != sha256.Sum256(body):
			w.t.Errorf("content %d: %d bytes that differ from its %d", id, len(got), len(body))
		case name != level && err == nil:
			w.t.Errorf("content %d: a copy is on %s as well", id, name)
		}
		for _, sub := range []string{"tmp", "released"} {
			left, err := os.ReadDir(filepath.Join(root, ".tierflow", sub))
			if err != nil {
				w.t.Error(err)
			}
			for _, e := range left {
				w.t.Errorf("left in %s of %s: %s", sub, name, e.Name())
			}
		}
	}
}

func (w *world) dead(n int) []redis.XMessage {
	w.t.Helper()
	var msgs []redis.XMessage
	w.eventually(fmt.Sprintf("%d entries in dead", n), func() (err error) {
		msgs, err = w.rdb.XRange(context.Background(), w.store.Keys().Dead(), "-", "+").Result()
		if err == nil && len(msgs) != n {
			err = fmt.Errorf("%d there", len(msgs))
		}
		return err
	})
	return msgs
}
