package worker_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
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
	"github.com/tierflow/tierflow/shared/content"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
	"github.com/tierflow/tierflow/shared/testserver"
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

	limiter *rate.Limiter
	tiers   *worker.Tiers // of all its workers
	log     *zap.Logger
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
	w := &world{t: t, rdb: rdb, cat: cat, roots: map[string]string{}, log: zap.NewNop()}
	if testing.Verbose() {
		w.log = zaptest.NewLogger(t)
	}
	w.store = state.NewStore(state.Options{Redis: rdb, Keys: state.NewKeys(testserver.Prefix(t)), TTL: time.Hour, Lease: minIdle})
	disk := t.TempDir()
	w.roots = map[string]string{"bronze": disk + "/bronze", "silver": disk + "/silver", "gold": gold + "/gold"}
	for name, path := range w.roots {
		id, err := tier.Init(w.fs, content.Level{Name: name, Path: path}, time.Now())
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
	row, err := w.cat.Content(ctx, content.ID(id))
	if err != nil {
		row = catalog.Row{ID: content.ID(id), Level: "bronze", Filename: "unknown"}
	}
	policy, err := w.cat.Policy(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	ids, err := w.store.Append(ctx, []event.View{{EventID: uuid.Must(uuid.NewV7()).String(), ID: content.ID(id),
		Count: content.Count(count), Target: policy.Target(content.Count(count)).Name, DBLevel: row.Level, Filename: row.Filename,
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
		Store: w.store, Catalog: w.cat, Mover: mover.New(mover.Options{FS: w.fs, Limiter: w.limiter}), WorkerID: name, MaxAttempts: 3,
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
	row, err := w.cat.Content(context.Background(), content.ID(id))
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

func TestACountMovesItsContentAndClearsTheOldCopy(t *testing.T) {
	w := newWorld(t)
	a, b := w.content(1, "a.mp4"), w.content(2, "sub/folder/b.mp4")
	w.relocator("r1")
	w.releaser("r1")
	w.committer()
	w.post(1, 1500) // the same file system
	w.post(2, 5000) // another one
	w.settled()
	w.lies(1, "silver", a)
	w.lies(2, "gold", b)
	w.post(1, 2)
	w.post(2, 3)
	w.settled()
	w.lies(1, "bronze", a)
	w.lies(2, "bronze", b)
	if st, _, err := w.store.Get(t.Context(), 2); err != nil || st.Status != state.Done || st.DBLevel != "bronze" || st.WorkerID != "" {
		t.Errorf("state after the way back: %+v, %v", st, err)
	}
}

func TestTheDigestOfACopyIsThatOfItsBytesAndALinkHasNone(t *testing.T) {
	w := newWorld(t)
	w.content(1, "a")
	body := w.content(2, "b")
	w.relocator("r1")
	w.post(1, 1500)
	w.post(2, 5000)
	w.eventually("both are emitted", func() error {
		msgs, err := w.rdb.XRange(context.Background(), w.store.Keys().Relocated(), "-", "+").Result()
		if err != nil {
			return err
		}
		if len(msgs) != 2 {
			return fmt.Errorf("%d are", len(msgs))
		}
		sum := sha256.Sum256(body)
		want := map[string][2]any{"1": {"link", ""}, "2": {"copy", "sha256:" + hex.EncodeToString(sum[:])}}
		for _, m := range msgs {
			if got := [2]any{m.Values["method"], m.Values["digest"]}; got != want[m.Values["cid"].(string)] {
				t.Errorf("content %v: %v", m.Values["cid"], got)
			}
		}
		return nil
	})
}

func TestAnEventWhoseContentLiesRightIsSettledWithoutAMove(t *testing.T) {
	w := newWorld(t)
	body := w.content(1, "a")
	w.relocator("r1")
	w.post(1, 12)
	w.settled()
	w.lies(1, "bronze", body)
	if n := w.rdb.XLen(t.Context(), w.store.Keys().Relocated()).Val(); n != 0 {
		t.Errorf("%d relocations", n)
	}
}

func TestAnEarlierEventNeverUndoesALaterOne(t *testing.T) {
	w := newWorld(t)
	body := w.content(1, "a")
	w.post(1, 5000)
	w.post(1, 1500)
	w.post(1, 3)
	w.post(1, 1700) // all of them before anybody reads
	w.relocator("r1")
	w.relocator("r2")
	w.releaser("r1")
	w.committer()
	w.settled()
	w.lies(1, "silver", body)
	if n := w.rdb.XLen(t.Context(), w.store.Keys().Relocated()).Val(); n != 1 {
		t.Errorf("%d relocations for four counts that were posted together, want 1", n)
	}
}

func TestAContentIsHeldOnItsPinWhateverItsCount(t *testing.T) {
	w := newWorld(t)
	body := w.content(1, "a")
	w.exec("UPDATE contents SET pinned_level = 'silver' WHERE cid = 1")
	w.relocator("r1")
	w.releaser("r1")
	w.committer()
	w.post(1, 999999)
	w.settled()
	w.lies(1, "silver", body)
}

func TestWhatIsHopelessGoesToDeadWithItsReason(t *testing.T) {
	w := newWorld(t)
	w.content(1, "missing")
	if err := os.Remove(w.roots["bronze"] + "/missing"); err != nil {
		t.Fatal(err)
	}
	w.content(2, "taken")
	w.file("silver", "taken", []byte("something else"))
	w.exec("INSERT INTO contents (cid, content_level, filename) VALUES (3, 'bronze', '../outside')")
	w.exec("INSERT INTO contents (cid, content_level, filename) VALUES (5, 'bronze', 'link')")
	if err := os.Symlink("/etc/passwd", w.roots["bronze"]+"/link"); err != nil {
		t.Fatal(err)
	}
	w.relocator("r1")
	for id := 1; id <= 5; id++ {
		w.post(id, 1500) // 4 has no row
	}
	if err := w.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: w.store.Keys().Views(), Values: []string{"cid", "six"}}).Err(); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, m := range w.dead(6) {
		got[m.Values["cid"].(string)] = m.Values["reason"].(string)
	}
	want := map[string]string{"1": "missing-file", "2": "conflict", "3": "invalid-name", "4": "unknown-content", "5": "unsupported",
		"six": "malformed"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("reasons\n got %v\nwant %v", got, want)
	}
	w.settled()
	if body, err := os.ReadFile(w.roots["silver"] + "/taken"); err != nil || string(body) != "something else" {
		t.Errorf("what had the name: %q, %v", body, err)
	}
}

func TestATierThatIsAwayHoldsUpNothingElseAndItsMovesGoOnWhenItIsBack(t *testing.T) {
	w := newWorld(t)
	a, b := w.content(1, "a"), w.content(2, "b")
	away := w.roots["gold"] + ".unmounted"
	if err := os.Rename(w.roots["gold"], away); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(w.roots["gold"], 0o755); err != nil { // the bare mount point
		t.Fatal(err)
	}
	w.relocator("r1")
	w.releaser("r1")
	w.committer()
	w.post(1, 5000)
	w.post(2, 1500)
	w.eventually("content 2 is on silver", func() error {
		if _, err := os.Stat(w.roots["silver"] + "/b"); err != nil {
			return err
		}
		_, err := os.Stat(w.roots["bronze"] + "/b")
		if err == nil {
			return fmt.Errorf("still on bronze as well")
		}
		return nil
	})
	if left, _ := os.ReadDir(w.roots["gold"]); len(left) != 0 {
		t.Errorf("something was written to the bare mount point: %v", left)
	}
	if err := os.Remove(w.roots["gold"]); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(away, w.roots["gold"]); err != nil {
		t.Fatal(err)
	}
	w.settled()
	w.lies(1, "gold", a)
	w.lies(2, "silver", b)
	if n := w.rdb.XLen(t.Context(), w.store.Keys().Dead()).Val(); n != 0 {
		t.Errorf("%d entries in dead", n)
	}
}

func TestTheOldCopyStaysForTheGrace(t *testing.T) {
	w := newWorld(t)
	w.grace = time.Second
	body := w.content(1, "a")
	w.relocator("r1")
	w.releaser("r1")
	w.committer()
	w.post(1, 1500)
	var committed time.Time
	w.eventually("the row is changed", func() error {
		row, err := w.cat.Content(context.Background(), 1)
		if err == nil && row.Level != "silver" {
			err = fmt.Errorf("it names %s", row.Level)
		}
		return err
	})
	committed = time.Now()
	w.eventually("the old copy is gone", func() error {
		if _, err := os.Stat(w.roots["bronze"] + "/a"); err == nil {
			return fmt.Errorf("it is there")
		}
		return nil
	})
	// The row was seen changed a little after its commit, hence the slack.
	if stayed := time.Since(committed); stayed < w.grace-200*time.Millisecond {
		t.Errorf("the old copy stayed for %v only", stayed)
	}
	w.settled()
	w.lies(1, "silver", body)
}

// TestAnOldReleaseGivesTheGraceToReadersThatWereLedThereAMomentAgo has an entry that comes late: since its commit, the
// content was back on the tier that it clears, and has left it again only now.
func TestAnOldReleaseGivesTheGraceToReadersThatWereLedThereAMomentAgo(t *testing.T) {
	for name, old := range map[string]event.Committed{
		"a release that was held up": {From: "bronze", To: "silver", Outcome: event.OutcomeCommitted},
		"a stray":                    {From: "gold", To: "bronze", Outcome: event.OutcomeStray},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.grace = time.Second
			body := w.content(1, "a")
			w.file("silver", "a", body)
			old.ID, old.Filename, old.CommittedAt = 1, "a", time.Now().Add(-time.Hour)
			past := fmt.Sprintf("%d-0", time.Now().Add(-time.Hour).UnixMilli())
			if err := w.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: w.store.Keys().Committed(), ID: past, Values: old.Fields()}).Err(); err != nil {
				t.Fatal(err)
			}
			w.exec("UPDATE contents SET content_level = 'silver', update_time = UTC_TIMESTAMP(6) WHERE cid = 1")
			left := time.Now()
			w.releaser("r1")
			w.settled()
			if stayed := time.Since(left); stayed < w.grace {
				t.Errorf("the old copy stayed for %v only", stayed)
			}
			w.lies(1, "silver", body)
		})
	}
}

// TestARowThatSomebodyHasLockedHoldsUpNoOtherRelease has one row in the hands of an operator's transaction. Its release
// waits; those that share its trips to MySQL do not.
func TestARowThatSomebodyHasLockedHoldsUpNoOtherRelease(t *testing.T) {
	w := newWorld(t)
	const n = 20
	bodies := map[int][]byte{}
	for id := 1; id <= n; id++ {
		name := fmt.Sprintf("f%d", id)
		bodies[id] = w.content(id, name)
		w.file("silver", name, bodies[id])
		w.exec("UPDATE contents SET content_level = 'silver' WHERE cid = ?", id)
	}
	tx, err := w.cat.DB().BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.Exec("UPDATE contents SET view_count = 1 WHERE cid = 7"); err != nil {
		t.Fatal(err)
	}
	for id := 1; id <= n; id++ {
		err := w.store.Stray(t.Context(), event.Committed{EventID: uuid.Must(uuid.NewV7()).String(), ID: content.ID(id), From: "silver", To: "bronze",
			Filename: fmt.Sprintf("f%d", id), CommittedAt: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
	}
	w.releaser("r1")
	w.eventually("only the locked one is left", func() error {
		p, err := w.rdb.XPending(t.Context(), w.store.Keys().Committed(), state.GroupReleaser).Result()
		if err != nil {
			return err
		}
		left, err := os.ReadDir(w.roots["bronze"])
		if err != nil {
			return err
		}
		if p.Count != 1 || len(left) != 2 { // .tierflow and the copy of the locked one
			return fmt.Errorf("%d entries are pending, %d names are on bronze", p.Count, len(left))
		}
		return nil
	})
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	w.settled()
	for id, body := range bodies {
		w.lies(id, "silver", body)
		if row, err := w.cat.Content(t.Context(), content.ID(id)); err != nil || row.Generation == 0 {
			t.Errorf("content %d: generation %d after its release, %v", id, row.Generation, err)
		}
	}
}

func TestTheLastCopyIsNotClearedWhereTheRowsOwnIsMissing(t *testing.T) {
	w := newWorld(t)
	body := w.content(1, "a")
	w.file("silver", "a", body)
	if err := os.Remove(w.roots["bronze"] + "/a"); err != nil { // as after a restored backup: the row names bronze
		t.Fatal(err)
	}
	w.releaser("r1")
	if err := w.store.Stray(t.Context(), event.Committed{ID: 1, To: "silver", Filename: "a", CommittedAt: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if m := w.dead(1)[0]; m.Values["reason"] != "missing-file" || m.Values["stage"] != "release" {
		t.Errorf("dead: %v", m.Values)
	}
	if got, err := os.ReadFile(w.roots["silver"] + "/a"); err != nil || string(got) != string(body) {
		t.Errorf("the last copy: %v", err)
	}
	if left, _ := os.ReadDir(w.roots["silver"] + "/.tierflow/released"); len(left) != 0 {
		t.Errorf("left in released: %v", left)
	}
}

func TestAReleaseNeverTouchesTheCopyThatTheRowNames(t *testing.T) {
	w := newWorld(t)
	body := w.content(1, "a")
	w.releaser("r1")
	for _, c := range []event.Committed{
		{ID: 1, To: "bronze", Filename: "a"},     // it lives there
		{ID: 1, To: "silver", Filename: "a"},     // nothing there
		{ID: 1, To: "bronze", Filename: "other"}, // not its filename
		{ID: 99, To: "bronze", Filename: "a"},    // no such content
	} {
		c.CommittedAt = time.Now()
		if err := w.store.Stray(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	w.settled()
	w.lies(1, "bronze", body)
}

func TestTwoRelocatorsNeverMoveAContentTwice(t *testing.T) {
	w := newWorld(t)
	bodies := map[int][]byte{}
	for id := 1; id <= 40; id++ {
		bodies[id] = w.content(id, fmt.Sprintf("d%d/f%d", id%7, id))
	}
	for id := 1; id <= 40; id++ {
		w.post(id, 1000+id%2*3000)
	}
	w.relocator("r1")
	w.relocator("r2")
	w.relocator("r3")
	w.releaser("r1")
	w.releaser("r2")
	w.committer()
	w.settled()
	for id, body := range bodies {
		w.lies(id, []string{"silver", "gold"}[id%2], body)
	}
	if n := w.rdb.XLen(t.Context(), w.store.Keys().Relocated()).Val(); n != 40 {
		t.Errorf("%d relocations for 40 contents", n)
	}
}

func TestWhatACrashedWorkerHeldIsTakenOverAndItsTemporarySwept(t *testing.T) {
	w := newWorld(t)
	body := w.content(1, "a")
	// A worker that dies after it has published: the lock, the entry and the temporary stay.
	w.post(1, 5000)
	ctx, cancel := context.WithCancel(t.Context())
	entered := make(chan struct{})
	dying := w.fs
	dying.Hook = func(step fsys.Step, _ string) error {
		if step == fsys.FsyncFolder {
			close(entered)
			<-ctx.Done() // never comes back while the others work
		}
		return nil
	}
	o := w.options("dying")
	o.Mover = mover.New(mover.Options{FS: dying})
	h := worker.NewRelocator(o)
	if err := w.rdb.XGroupCreateMkStream(ctx, w.store.Keys().Views(), state.GroupRelocator, "0").Err(); err != nil {
		t.Fatal(err)
	}
	msgs, err := w.rdb.XReadGroup(ctx, &redis.XReadGroupArgs{Group: state.GroupRelocator, Consumer: "dying", Count: 1,
		Streams: []string{w.store.Keys().Views(), ">"}}).Result()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]string{}
	for k, v := range msgs[0].Messages[0].Values {
		values[k] = v.(string)
	}
	handled := make(chan struct{})
	go func() {
		defer close(handled)
		h.Handle([]*stream.Delivery{{ID: msgs[0].Messages[0].ID, Values: values, Attempt: 1, Context: ctx}})
	}()
	<-entered
	defer func() { cancel(); <-handled }()

	w.relocator("r2")
	w.releaser("r2")
	w.committer()
	w.settled()
	sweeper := worker.NewSweeper(w.options("r2"))
	if err := sweeper.Once(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	w.settled()
	w.lies(1, "gold", body)
}

func TestAnEntryThatEndsItsWorkersAgainAndAgainGoesToDeadUntouched(t *testing.T) {
	w := newWorld(t)
	body := w.content(1, "a")
	entry := w.post(1, 1500)
	views := w.store.Keys().Views()
	if err := w.rdb.XGroupCreateMkStream(t.Context(), views, state.GroupRelocator, "0").Err(); err != nil {
		t.Fatal(err)
	}
	if err := w.rdb.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: state.GroupRelocator, Consumer: "dead", Count: 1,
		Streams: []string{views, ">"}}).Err(); err != nil {
		t.Fatal(err)
	}
	if err := w.rdb.Do(t.Context(), "XCLAIM", views, state.GroupRelocator, "dead", 0, entry, "IDLE", 3600000, "RETRYCOUNT", 12,
		"JUSTID").Err(); err != nil {
		t.Fatal(err)
	}
	w.relocator("r1")
	if m := w.dead(1)[0]; m.Values["reason"] != "exhausted" || m.Values["attempts"] != "13" {
		t.Errorf("dead: %v", m.Values)
	}
	w.settled()
	w.lies(1, "bronze", body)
}
