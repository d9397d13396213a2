package verify_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/relocator/internal/tier"
	"github.com/tierflow/tierflow/relocator/internal/verify"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/content"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m) }

type world struct {
	t     *testing.T
	rdb   redis.UniversalClient
	cat   *catalog.Catalog
	store *state.Store
	root  string
	swept int
}

func newWorld(t *testing.T) *world {
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
	w := &world{t: t, rdb: rdb, cat: cat, root: t.TempDir(),
		store: state.NewStore(state.Options{Redis: rdb, Keys: state.NewKeys(testserver.Prefix(t)), TTL: time.Hour, Lease: time.Minute})}
	for _, name := range []string{"bronze", "silver", "gold"} {
		path := w.path(name, "")
		id, err := tier.Init(fsys.FS{}, content.Level{Name: name, Path: path}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		w.exec("UPDATE level SET path = ?, tier_id = ? WHERE content_level = ?", path, id, name)
	}
	return w
}

func (w *world) path(level, name string) string { return filepath.Join(w.root, level, name) }

func (w *world) exec(q string, args ...any) {
	w.t.Helper()
	if _, err := w.cat.DB().ExecContext(context.Background(), q, args...); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) file(level, name, body string) {
	w.t.Helper()
	if err := os.MkdirAll(filepath.Dir(w.path(level, name)), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(w.path(level, name), []byte(body), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) row(id int, level, name string) {
	w.t.Helper()
	w.exec("INSERT INTO contents (cid, content_level, filename) VALUES (?, ?, ?)", id, level, name)
}

// run returns the findings as "kind cid level path" and what was done about them.
func (w *world) run(repair, digest bool) (findings, mended []string, err error) {
	w.t.Helper()
	m := mover.New(mover.Options{})
	_, err = verify.Run(context.Background(), verify.Options{
		Catalog: w.cat, Store: w.store, Mover: m, Digest: digest, Repair: repair,
		Sweep: func(context.Context) error { w.swept++; return nil },
		NewView: func(s state.State) event.View {
			return event.View{EventID: uuid.Must(uuid.NewV7()).String(), ID: s.ID, Count: s.Count, Target: s.Target, DBLevel: s.DBLevel,
				Filename: s.Filename, PostedAt: time.Now()}
		},
		Report: func(f verify.Finding, m string) {
			findings = append(findings, fmt.Sprintf("%s %d %s %s", f.Kind, f.ID, f.Level, f.Path))
			mended = append(mended, m)
		},
	})
	slices.Sort(findings)
	return findings, mended, err
}

func (w *world) want(digest bool, want ...string) {
	w.t.Helper()
	got, _, err := w.run(false, digest)
	if err != nil {
		w.t.Fatal(err)
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		w.t.Errorf("findings\n got %q\nwant %q", got, want)
	}
}

func TestTiersThatAgreeWithMySQLHaveNoFindings(t *testing.T) {
	w := newWorld(t)
	w.want(true)
	w.row(1, "bronze", "a")
	w.file("bronze", "a", "1")
	w.row(2, "gold", "deep/down/b")
	w.file("gold", "deep/down/b", "2")
	w.row(3, "silver", "directory")
	w.file("silver", "directory/x", "3")
	w.file("silver", "directory/sub/y", "3")
	w.want(true)
}

func TestEveryKindOfDisagreementIsNamed(t *testing.T) {
	w := newWorld(t)
	w.row(1, "bronze", "gone")
	w.row(2, "bronze", "twice")
	w.file("bronze", "twice", "2")
	w.file("gold", "twice", "2")
	w.file("silver", "nobody/knows", "?")
	w.file("bronze", ".tierflow/tmp/2.0192f0c0-0000-7000-8000-000000000000.abc", "")
	w.file("gold", ".tierflow/released/2.abc/copy", "")
	w.row(3, "silver", "short")
	w.exec("UPDATE contents SET size_bytes = 10 WHERE cid = 3")
	w.file("silver", "short", "12345")
	w.row(4, "gold", "rotten")
	w.exec("UPDATE contents SET digest = 'sha256:5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9' WHERE cid = 4") // "0"
	w.file("gold", "rotten", "1")
	w.row(5, "bronze", "../../etc/passwd")
	rest := []string{
		"missing 1 bronze gone",
		"duplicate 2 gold twice",
		"orphaned 0 silver nobody/knows",
		"left-over 2 bronze .tierflow/tmp/2.0192f0c0-0000-7000-8000-000000000000.abc",
		"left-over 2 gold .tierflow/released/2.abc",
		"differing 3 silver short",
		"missing 5 bronze ../../etc/passwd",
	}
	w.want(false, rest...)
	w.want(true, append(rest, "differing 4 gold rotten")...)
}

func TestWhatIsInFlightIsNoFinding(t *testing.T) {
	w := newWorld(t)
	w.row(1, "bronze", "a")
	w.file("bronze", "a", "1")
	w.file("gold", "a", "1")
	if _, err := w.store.Lock(t.Context(), 1, state.NewReleaseToken("w", "abc")); err != nil {
		t.Fatal(err)
	}
	w.want(false)
	if err := w.store.Unlock(t.Context(), 1, state.NewReleaseToken("w", "abc")); err != nil {
		t.Fatal(err)
	}
	w.want(false, "duplicate 1 gold a")
	// An order to clear it that no releaser has read.
	if err := w.store.Stray(t.Context(), event.Committed{ID: 1, To: "gold", Filename: "a", CommittedAt: time.Now()}); err != nil {
		t.Fatal(err)
	}
	w.want(false)
}

func TestRepairMendsWhatIsSafeAndSaysWhatItLeaves(t *testing.T) {
	w := newWorld(t)
	w.row(1, "bronze", "twice")
	w.file("bronze", "twice", "1")
	w.file("gold", "twice", "1")
	w.file("silver", "orphan", "")
	w.row(2, "bronze", "b")
	w.file("bronze", "b", "2")
	w.file("bronze", ".tierflow/tmp/2.0192f0c0-0000-7000-8000-000000000000.abc", "")
	found, mended, err := w.run(true, false)
	if err != nil || len(found) != 3 {
		t.Fatal(found, err)
	}
	if w.swept != 1 || !slices.Contains(mended, "swept") || !slices.Contains(mended, "the releaser was asked to clear it") ||
		!slices.Contains(mended, "left: register it, or delete it") {
		t.Errorf("swept %d times; %q", w.swept, mended)
	}
	entries, err := w.rdb.XRange(t.Context(), w.store.Keys().Committed(), "-", "+").Result()
	if err != nil || len(entries) != 1 || entries[0].Values["outcome"] != "stray" || entries[0].Values["to"] != "gold" {
		t.Errorf("committed: %v, %v", entries, err)
	}
	if _, err := os.Stat(w.path("silver", "orphan")); err != nil {
		t.Error(err)
	}
}

func TestANewestEventThatNobodyIsAtIsAppendedOnceMore(t *testing.T) {
	w := newWorld(t)
	w.row(1, "bronze", "a")
	w.file("bronze", "a", "1")
	view := event.View{EventID: uuid.Must(uuid.NewV7()).String(), ID: 1, Count: 5000, Target: "gold", DBLevel: "bronze", Filename: "a",
		PostedAt: time.Now()}
	if _, err := w.store.Append(t.Context(), []event.View{view}); err != nil {
		t.Fatal(err)
	}
	w.want(false)                                                                // under way
	if err := w.rdb.Del(t.Context(), w.store.Keys().Views()).Err(); err != nil { // lost
		t.Fatal(err)
	}
	w.want(false, "unsettled 1 bronze a")
	if _, _, err := w.run(true, false); err != nil {
		t.Fatal(err)
	}
	entries, err := w.rdb.XRange(t.Context(), w.store.Keys().Views(), "-", "+").Result()
	if err != nil || len(entries) != 1 || entries[0].Values["count"] != "5000" || entries[0].Values["event_id"] == view.EventID {
		t.Errorf("views: %v, %v", entries, err)
	}
}

func TestATierThatIsNotMountedMeansThatItCouldNotLook(t *testing.T) {
	w := newWorld(t)
	w.row(1, "gold", "a")
	if err := os.Rename(w.path("gold", ""), w.path("elsewhere", "")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.run(true, false); !fault.Is(err, fault.TierRefused) {
		t.Errorf("error %v", err)
	}
}
