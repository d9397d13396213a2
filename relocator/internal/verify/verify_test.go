package verify_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/relocator/internal/relocatortest"
	"github.com/tierflow/tierflow/relocator/internal/testdisk"
	"github.com/tierflow/tierflow/relocator/internal/tier"
	"github.com/tierflow/tierflow/relocator/internal/verify"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestMain(m *testing.M) { testdisk.Main(func() { testserver.Main(m) }) }

type world struct {
	t     *testing.T
	rdb   redis.UniversalClient
	cat   *catalog.Catalog
	store *state.Store
	root  string
	swept int
	fs    fsys.FS

	bySize bool
	hangs  time.Duration

	summary verify.Summary // of the last run
}

func newWorld(t *testing.T) *world { return newWorldIn(t, t.TempDir()) }

// newWorldIn makes a world whose tiers are folders of root.
func newWorldIn(t *testing.T, root string) *world {
	t.Helper()
	rdb, cat := relocatortest.Servers(t)
	w := &world{t: t, rdb: rdb, cat: cat, root: root,
		store: state.NewStore(state.Options{Redis: rdb, Keys: state.NewKeys(testserver.Prefix(t)), TTL: time.Hour, Lease: time.Minute})}
	for _, name := range []string{"bronze", "silver", "gold"} {
		path := w.path(name, "")
		id, err := tier.Init(fsys.FS{}, policy.Level{Name: name, Path: path}, time.Now())
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

// sweep does what the relocator's sweeper does, for entries of any age.
func (w *world) sweep(ctx context.Context, m *mover.Mover, l policy.Level) error {
	w.swept++
	_, err := m.Sweep(ctx, l, 0, func(item.ID, string) bool { return false }, func(context.Context, item.ID, string) error { return nil })
	return err
}

// run returns the findings as "kind cid level path", and what was done about them.
func (w *world) run(repair, digest bool) (findings, actions []string, err error) {
	w.t.Helper()
	w.summary, err = verify.Run(context.Background(), verify.Options{
		Catalog: w.cat, Store: w.store, Lease: time.Minute, FS: w.fs, Digest: digest, Repair: repair, BySize: w.bySize, Hangs: w.hangs,
		Sweep: w.sweep,
		NewView: func(s state.State) event.View {
			return event.View{EventID: uuid.Must(uuid.NewV7()).String(), ID: s.ID, Count: s.Count, Target: s.Target, DBLevel: s.DBLevel,
				Filename: s.Filename, PostedAt: time.Now()}
		},
		Report: func(f verify.Finding, m string) {
			findings = append(findings, fmt.Sprintf("%s %d %s %s", f.Kind, f.ID, f.Level, f.Path))
			actions = append(actions, m)
		},
	})
	return findings, actions, err
}

func (w *world) want(digest bool, want ...string) {
	w.t.Helper()
	got, _, err := w.run(false, digest)
	if err != nil {
		w.t.Fatal(err)
	}
	slices.Sort(got)
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

func TestEveryKindOfDisagreementIsFound(t *testing.T) {
	w := newWorld(t)
	w.row(1, "bronze", "gone")
	w.row(2, "bronze", "twice")
	w.file("bronze", "twice", "2")
	w.file("gold", "twice", "2")
	w.file("silver", "nobody/knows", "?")
	w.file("bronze", ".tierflow/tmp/2.0192f0c0-0000-7000-8000-000000000000.abc", "")
	w.file("gold", ".tierflow/released/2.abc/copy", "")
	w.file("gold", ".tierflow/released/9.def/copy", "")
	if err := os.Remove(w.path("gold", ".tierflow/released/9.def/copy")); err != nil { // the next release reuses the empty folder
		t.Fatal(err)
	}
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

func TestAFileWithAnotherSpellingIsNotTheRowsFile(t *testing.T) {
	w := newWorldIn(t, testdisk.Folding(t, "case"))
	w.row(1, "bronze", "Show/1.mkv")
	w.row(2, "bronze", "show/1.mkv")
	w.row(3, "gold", "x.mkv")
	w.file("bronze", "Show/1.mkv", "1")
	w.file("gold", "x.mkv", "3")
	w.file("silver", "X.mkv", "4")
	w.want(true, "missing 2 bronze show/1.mkv", "orphaned 0 silver X.mkv")
}

func TestAnItemInFlightIsNoFinding(t *testing.T) {
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
	// The stream has an entry that asks to clear the copy, and no releaser has read it.
	if err := w.store.Stray(t.Context(), event.Committed{ID: 1, To: "gold", Filename: "a", CommittedAt: time.Now()}); err != nil {
		t.Fatal(err)
	}
	w.want(false)
}

func TestRepairRepairsWhatIsSafeAndSaysWhatItLeaves(t *testing.T) {
	w := newWorld(t)
	w.row(1, "bronze", "twice")
	w.file("bronze", "twice", "1")
	w.file("gold", "twice", "1")
	w.file("silver", "orphan", "")
	w.row(2, "bronze", "b")
	w.file("bronze", "b", "2")
	w.file("bronze", ".tierflow/tmp/2.0192f0c0-0000-7000-8000-000000000000.abc", "")
	found, actions, err := w.run(true, false)
	if err != nil || len(found) != 3 {
		t.Fatal(found, err)
	}
	if _, err := os.Stat(w.path("bronze", ".tierflow/tmp/2.0192f0c0-0000-7000-8000-000000000000.abc")); !errors.Is(err, os.ErrNotExist) {
		t.Error("the left-over was not removed", err)
	}
	if w.swept != 1 || !slices.Contains(actions, "swept") || !slices.Contains(actions, "the releaser was told to remove it") ||
		!slices.Contains(actions, "left: register it, or delete it") {
		t.Errorf("swept %d times; %q", w.swept, actions)
	}
	entries, err := w.rdb.XRange(t.Context(), w.store.Keys().Committed(), "-", "+").Result()
	if err != nil || len(entries) != 1 || entries[0].Values["outcome"] != "stray" || entries[0].Values["to"] != "gold" {
		t.Errorf("committed: %v, %v", entries, err)
	}
	if _, err := os.Stat(w.path("silver", "orphan")); err != nil {
		t.Error(err)
	}
}

func TestALostNewestEventIsAppendedAgain(t *testing.T) {
	w := newWorld(t)
	w.row(1, "bronze", "a")
	w.file("bronze", "a", "1")
	view := event.View{EventID: uuid.Must(uuid.NewV7()).String(), ID: 1, Count: 5000, Target: "gold", DBLevel: "bronze", Filename: "a",
		PostedAt: time.Now()}
	if _, err := w.store.Append(t.Context(), []event.View{view}); err != nil {
		t.Fatal(err)
	}
	w.want(false)                                                                // in flight
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

func TestWhatRepairDoesAboutEachKind(t *testing.T) {
	w := newWorld(t)
	w.row(1, "bronze", "gone")
	w.row(2, "bronze", "elsewhere")
	w.file("gold", "elsewhere", "the last copy")
	w.row(3, "bronze", "short")
	w.exec("UPDATE contents SET size_bytes = 10 WHERE cid = 3")
	w.file("bronze", "short", "12345")
	w.file("bronze", ".tierflow/tmp/not-ours", "")
	w.file("bronze", ".tierflow/tmp/7.not-ours", "")
	w.row(4, "silver", "pinned")
	w.exec("UPDATE contents SET pinned_level = 'gold', view_count = 77 WHERE cid = 4")
	w.file("silver", "pinned", "")
	w.row(5, "silver", "a/link")
	if err := os.Symlink("/etc", w.path("silver", "a")); err != nil {
		t.Fatal(err)
	}
	found, actions, err := w.run(true, false)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for i, f := range found {
		got[f] = actions[i]
	}
	want := map[string]string{
		"missing 1 bronze gone": "left: put the file there, or correct the row",
		"missing 2 bronze elsewhere": "left: put the file there, or correct the row; gold has a file, but the row has no digest to " +
			"compare it with: see --by-size",
		"duplicate 2 gold elsewhere":                  "left: it may be the last copy; correct the row, or put its file there",
		"differing 3 bronze short":                    "left: only its owner knows which bytes are right",
		"left-over 0 bronze .tierflow/tmp/not-ours":   "left: its name is not one of Tierflow's, or an attempt uses it by now",
		"left-over 7 bronze .tierflow/tmp/7.not-ours": "left: its name is not one of Tierflow's, or an attempt uses it by now",
		"unsettled 4 silver pinned":                   "its newest event was appended again",
		"missing 5 silver a/link":                     "left: put the file there, or correct the row",
		"orphaned 0 silver a":                         "left: register it, or delete it",
	}
	if !maps.Equal(got, want) {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
	if body, err := os.ReadFile(w.path("gold", "elsewhere")); err != nil || string(body) != "the last copy" {
		t.Errorf("%q %v", body, err)
	}
	if n := w.rdb.XLen(t.Context(), w.store.Keys().Committed()).Val(); n != 0 {
		t.Errorf("%d entries ask to clear a copy", n)
	}
	views := w.rdb.XRange(t.Context(), w.store.Keys().Views(), "-", "+").Val()
	if len(views) != 1 || views[0].Values["cid"] != "4" || views[0].Values["target"] != "gold" || views[0].Values["count"] != "77" ||
		views[0].Values["db_level"] != "silver" || views[0].Values["filename"] != "pinned" {
		t.Errorf("views: %v", views)
	}
}

func TestADeadLetterIsNotAppendedAgain(t *testing.T) {
	w := newWorld(t)
	w.row(1, "bronze", "a")
	w.file("bronze", "a", "1")
	view := event.View{EventID: uuid.Must(uuid.NewV7()).String(), ID: 1, Count: 5000, Target: "gold", DBLevel: "bronze", Filename: "a",
		PostedAt: time.Now()}
	ids, err := w.store.Append(t.Context(), []event.View{view})
	if err != nil {
		t.Fatal(err)
	}
	k := w.store.Keys()
	if err := w.rdb.XGroupCreate(t.Context(), k.Views(), state.GroupRelocator, "0").Err(); err != nil {
		t.Fatal(err)
	}
	entries, err := w.rdb.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: state.GroupRelocator, Consumer: "me", Streams: []string{k.Views(), ">"}}).Result()
	if err != nil || len(entries) != 1 {
		t.Fatal(entries, err)
	}
	entry := map[string]string{}
	for f, v := range entries[0].Messages[0].Values {
		entry[f] = v.(string)
	}
	if ok, err := w.store.DeadLetter(t.Context(), state.GroupRelocator, "me", entry, event.Failure{Stage: "relocate", Reason: "conflict",
		SourceStream: k.Views(), SourceID: ids[0], FailedAt: time.Now()}); err != nil || !ok {
		t.Fatal(ok, err)
	}
	found, actions, err := w.run(true, false)
	if err != nil || !slices.Equal(found, []string{"unsettled 1 bronze a"}) || !strings.Contains(actions[0], "dead") {
		t.Fatal(found, actions, err)
	}
	if n := w.rdb.XLen(t.Context(), k.Views()).Val(); n != 1 {
		t.Errorf("%d view events: it was appended again", n)
	}
}

// A whole move may happen between the second check and the look-up of what is in flight. The row shows it.
func TestARowThatChangesDuringTheCheckIsNoFinding(t *testing.T) {
	w := newWorld(t)
	w.row(1, "bronze", "a")
	w.file("gold", "a", "1") // as just before a commit
	looks := 0
	fs := fsys.FS{Hook: func(_ fsys.Step, path string) error {
		if path == w.path("bronze", "a") {
			if looks++; looks == 2 {
				w.exec("UPDATE contents SET content_level = 'gold', generation = generation + 1 WHERE cid = 1")
			}
		}
		return nil
	}}
	w.fs = fs
	w.want(false)
	if looks < 2 || w.summary.InFlight == 0 {
		t.Errorf("it was checked %d times; %+v", looks, w.summary)
	}
	w.want(false)
	if w.summary.InFlight != 0 {
		t.Errorf("%+v", w.summary)
	}
}

// A newer event that needs no move may supersede the newest one. Neither of them changes the row.
func TestAnEventSupersededDuringTheCheckIsNoFinding(t *testing.T) {
	w := newWorld(t)
	w.row(1, "bronze", "a")
	w.file("bronze", "a", "1")
	post := func(count item.Count, target string) {
		view := event.View{EventID: uuid.Must(uuid.NewV7()).String(), ID: 1, Count: count, Target: target, DBLevel: "bronze", Filename: "a", PostedAt: time.Now()}
		if _, err := w.store.Append(context.Background(), []event.View{view}); err != nil {
			t.Error(err)
		}
		if err := w.rdb.Del(context.Background(), w.store.Keys().Views()).Err(); err != nil { // settled
			t.Error(err)
		}
	}
	post(5000, "gold")
	looks := 0
	w.fs = fsys.FS{Hook: func(_ fsys.Step, path string) error {
		if path == w.path("gold", "a") { // this name is checked last
			if looks++; looks == 2 {
				post(5, "bronze")
			}
		}
		return nil
	}}
	if found, _, err := w.run(true, false); err != nil || len(found) > 0 || looks < 2 || w.summary.InFlight != 1 {
		t.Fatalf("%q %v, %d looks, %+v", found, err, looks, w.summary)
	}
	if n := w.rdb.XLen(t.Context(), w.store.Keys().Views()).Val(); n != 0 {
		t.Errorf("%d views were appended", n)
	}
}

func TestADirectoryRegisteredDuringTheCheckIsNoFinding(t *testing.T) {
	w := newWorld(t)
	w.file("bronze", "shows/pkg/1.ts", "1")
	w.file("bronze", "shows/pkg/deep/2.ts", "2")
	w.file("bronze", "shows/other", "3")
	var once sync.Once
	w.fs = fsys.FS{Hook: func(_ fsys.Step, path string) error { // the tiers are looked at together
		if path == w.path("bronze", "shows/pkg/1.ts") { // the names of its folder have been looked up
			once.Do(func() { w.row(1, "bronze", "shows/pkg") })
		}
		return nil
	}}
	w.want(false, "orphaned 0 bronze shows/other")
}

func TestTheEmptyFolderOfAReleaseThatHasEndedIsNoFinding(t *testing.T) {
	w := newWorld(t)
	w.file("bronze", ".tierflow/released/7.token/copy", "1")
	folder, looks := w.path("bronze", ".tierflow/released/7.token"), 0
	w.fs = fsys.FS{Hook: func(_ fsys.Step, path string) error {
		if path == folder {
			if looks++; looks == 5 { // it was opened and read to its end; now it is checked again
				return os.Remove(folder + "/copy")
			}
		}
		return nil
	}}
	w.want(false)
	if looks < 5 {
		t.Errorf("%d looks", looks)
	}
}

func TestVerifyFailsWhenTheLevelsChangeMeanwhile(t *testing.T) {
	w := newWorld(t)
	w.row(1, "bronze", "a")
	w.fs = fsys.FS{Hook: func(_ fsys.Step, path string) error {
		if path == w.path("bronze", "a") {
			w.exec("UPDATE level SET max_counts = 499 WHERE content_level = 'bronze'")
			w.exec("UPDATE level SET min_counts = 500 WHERE content_level = 'silver'")
		}
		return nil
	}}
	if _, _, err := w.run(true, false); err == nil || !strings.Contains(err.Error(), "the levels have been changed") {
		t.Errorf("error %v", err)
	}
}

func TestMoreThanOnePageOfRowsAndNamesIsChecked(t *testing.T) {
	w := newWorld(t)
	const n = 2500
	var values []string
	for i := 1; i <= n; i++ {
		values = append(values, fmt.Sprintf("(%d, 'bronze', 'many/%d')", i, i))
		w.file("bronze", fmt.Sprintf("many/%d", i), "")
		w.file("gold", fmt.Sprintf("strangers/%d", i), "")
	}
	w.exec("INSERT INTO contents (cid, content_level, filename) VALUES " + strings.Join(values, ","))
	found, _, err := w.run(false, false)
	if err != nil || len(found) != n || !strings.HasPrefix(found[0], "orphaned 0 gold strangers/") {
		t.Fatalf("%d findings, %v", len(found), err)
	}
	if !reflect.DeepEqual(w.summary, verify.Summary{Items: n, Files: 2 * n, Findings: n}) {
		t.Errorf("%+v", w.summary)
	}
}
