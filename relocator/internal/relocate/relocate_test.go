package relocate_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/time/rate"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/relocatortest"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
)

func TestMain(m *testing.M) { relocatortest.Main(m) }

func TestACountMovesItsItemAndTheOldCopyIsReleased(t *testing.T) {
	w := relocatortest.New(t)
	a, b := w.Item(1, "a.mp4"), w.Item(2, "sub/folder/b.mp4")
	w.Relocator("r1")
	w.Releaser("r1")
	w.Committer()
	w.Post(1, 1500) // the same file system
	w.Post(2, 5000) // another one
	w.Settled()
	w.Lies(1, "silver", a)
	w.Lies(2, "gold", b)
	w.Post(1, 2)
	w.Post(2, 3)
	w.Settled()
	w.Lies(1, "bronze", a)
	w.Lies(2, "bronze", b)
	if st, _, err := w.Store.Get(t.Context(), 2); err != nil || st.Status != state.Done || st.DBLevel != "bronze" || st.WorkerID != "" {
		t.Errorf("state after the way back: %+v, %v", st, err)
	}
}

func TestACopyHasTheDigestOfItsBytesAndALinkHasNone(t *testing.T) {
	w := relocatortest.New(t)
	w.Item(1, "a")
	body := w.Item(2, "b")
	w.Relocator("r1")
	w.Post(1, 1500)
	w.Post(2, 5000)
	w.Eventually("both are emitted", func() error {
		msgs, err := w.Redis.XRange(context.Background(), w.Store.Keys().Relocated(), "-", "+").Result()
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
				t.Errorf("item %v: %v", m.Values["cid"], got)
			}
		}
		return nil
	})
}

func TestAnEventThatNeedsNoMoveIsSettledWithoutOne(t *testing.T) {
	w := relocatortest.New(t)
	body := w.Item(1, "a")
	w.Relocator("r1")
	w.Post(1, 12)
	w.Settled()
	w.Lies(1, "bronze", body)
	if n := w.Redis.XLen(t.Context(), w.Store.Keys().Relocated()).Val(); n != 0 {
		t.Errorf("%d relocations", n)
	}
}

func TestTheCountOfAnEventThatNeedsNoMoveIsWrittenToTheRow(t *testing.T) {
	w := relocatortest.New(t)
	w.Item(1, "a")
	w.Item(2, "b")
	w.Exec("UPDATE contents SET pinned_level = 'bronze', view_count = 7 WHERE cid = 2")
	before := map[int]catalog.Row{1: w.Row(1), 2: w.Row(2)}
	w.Relocator("r1")
	entries := map[int]string{1: w.Post(1, 12), 2: w.Post(2, 5000)}
	w.Settled()
	for id, count := range map[int]item.Count{1: 12, 2: 5000} {
		want := before[id]
		want.ViewCount, want.CountEntry, want.Generation = count, entries[id], 1 // the first count raises the generation
		if got := w.Row(id); got != want {
			t.Errorf("%+v, not %+v", got, want)
		}
	}
	entries[1] = w.Post(1, 0)
	w.Settled()
	if r := w.Row(1); r.ViewCount != 0 || r.CountEntry != entries[1] || r.Generation != 1 {
		t.Errorf("after 0 was posted: %+v", r)
	}
	entries[1] = w.Post(1, 0) // the same count again fences moves that were emitted before it
	w.Settled()
	if r := w.Row(1); r.ViewCount != 0 || r.CountEntry != entries[1] || r.Generation != 1 {
		t.Errorf("after 0 was posted again: %+v", r)
	}
}

// An operator's transaction has locked one row.
func TestALockedRowHoldsUpNoOtherCount(t *testing.T) {
	w := relocatortest.New(t)
	const n = 20
	for id := 1; id <= n; id++ {
		w.Item(id, fmt.Sprintf("f%d", id))
	}
	tx, err := w.Catalog.DB().BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.Exec("UPDATE contents SET view_count = 1 WHERE cid = 7"); err != nil {
		t.Fatal(err)
	}
	for id := 1; id <= n; id++ {
		w.Post(id, 100+id)
	}
	w.Relocator("r1")
	w.Eventually("only the locked one is left", func() error {
		p, err := w.Redis.XPending(t.Context(), w.Store.Keys().Views(), state.GroupRelocator).Result()
		if err == nil && (p.Count != 1 || w.Row(n).ViewCount != 100+n) {
			err = fmt.Errorf("%d entries are pending", p.Count)
		}
		return err
	})
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	w.Settled()
	for id := 1; id <= n; id++ {
		if got := w.Row(id).ViewCount; got != item.Count(100+id) {
			t.Errorf("item %d: count %d", id, got)
		}
	}
}

// The lock vanishes while a move goes on, as it may in a failover.
func TestALostLockCountsNoAttempt(t *testing.T) {
	w := relocatortest.New(t)
	w.Attempts = 1
	body := w.Item(1, "a")
	var once sync.Once
	w.FS.Hook = func(step fsys.Step, _ string) error {
		if step == fsys.WriteTemp {
			once.Do(func() {
				if n := w.Redis.Del(context.Background(), w.Store.Keys().Lock(1)).Val(); n != 1 {
					t.Errorf("%d locks", n)
				}
				time.Sleep(relocatortest.MinIdle / 2) // some renewals
			})
		}
		return nil
	}
	w.Relocator("r1")
	w.Releaser("r1")
	w.Committer()
	w.Post(1, 5000)
	w.Settled()
	w.Lies(1, "gold", body)
	w.DeadLetters(0)
}

func TestAnEarlierEventNeverUndoesALaterOne(t *testing.T) {
	w := relocatortest.New(t)
	body := w.Item(1, "a")
	w.Post(1, 5000)
	w.Post(1, 1500)
	w.Post(1, 3)
	w.Post(1, 1700) // all of them before anybody reads
	w.Relocator("r1")
	w.Relocator("r2")
	w.Releaser("r1")
	w.Committer()
	w.Settled()
	w.Lies(1, "silver", body)
	if n := w.Redis.XLen(t.Context(), w.Store.Keys().Relocated()).Val(); n != 1 {
		t.Errorf("%d relocations for four counts that were posted together, want 1", n)
	}
}

func TestAnItemStaysOnItsPinWhateverItsCount(t *testing.T) {
	w := relocatortest.New(t)
	body := w.Item(1, "a")
	w.Exec("UPDATE contents SET pinned_level = 'silver' WHERE cid = 1")
	w.Relocator("r1")
	w.Releaser("r1")
	w.Committer()
	w.Post(1, 999999)
	w.Settled()
	w.Lies(1, "silver", body)
}

func TestAMoveThatCanNeverSucceedBecomesADeadLetterWithItsReason(t *testing.T) {
	w := relocatortest.New(t)
	w.Item(1, "missing")
	if err := os.Remove(w.Roots["bronze"] + "/missing"); err != nil {
		t.Fatal(err)
	}
	w.Item(2, "taken")
	w.File("silver", "taken", []byte("something else"))
	w.Exec("INSERT INTO contents (cid, content_level, filename) VALUES (3, 'bronze', '../outside')")
	w.Exec("INSERT INTO contents (cid, content_level, filename) VALUES (5, 'bronze', 'link')")
	if err := os.Symlink("/etc/passwd", w.Roots["bronze"]+"/link"); err != nil {
		t.Fatal(err)
	}
	w.Relocator("r1")
	for id := 1; id <= 5; id++ {
		w.Post(id, 1500) // 4 has no row
	}
	if err := w.Redis.XAdd(t.Context(), &redis.XAddArgs{Stream: w.Store.Keys().Views(), Values: []string{"cid", "six"}}).Err(); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, m := range w.DeadLetters(6) {
		got[m.Values["cid"].(string)] = m.Values["reason"].(string)
	}
	want := map[string]string{"1": "missing-file", "2": "conflict", "3": "invalid-name", "4": "unknown-content", "5": "unsupported",
		"six": "malformed"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("reasons\n got %v\nwant %v", got, want)
	}
	w.Settled()
	if body, err := os.ReadFile(w.Roots["silver"] + "/taken"); err != nil || string(body) != "something else" {
		t.Errorf("what had the name: %q, %v", body, err)
	}
}

func TestTheWaitingEventsOfAForgottenItemAreSettledQuietly(t *testing.T) {
	w := relocatortest.New(t)
	w.Item(1, "forgotten")
	w.Item(2, "deleted by hand")
	for _, count := range []int{1500, 1600} {
		w.Post(1, count)
	}
	w.Post(2, 1500)
	// As DELETE /v1/contents/1 does it.
	w.Exec("DELETE FROM contents WHERE cid IN (1, 2)")
	if err := w.Redis.Del(t.Context(), w.Store.Keys().State(1)).Err(); err != nil {
		t.Fatal(err)
	}
	w.Relocator("r1")
	w.Settled()
	if dead := w.DeadLetters(1); dead[0].Values["cid"] != "2" || dead[0].Values["reason"] != "unknown-content" {
		t.Errorf("the dead letter: %v", dead[0].Values)
	}
}

func TestAnEventFromBeforeItsItemWasForgottenChangesNothingOfTheNextOne(t *testing.T) {
	w := relocatortest.New(t)
	w.Item(1, "first")
	w.Post(1, 1500)
	w.Exec("DELETE FROM contents WHERE cid = 1")
	if err := w.Redis.Del(t.Context(), w.Store.Keys().State(1)).Err(); err != nil {
		t.Fatal(err)
	}
	body := w.Item(1, "second")
	w.Post(1, 2500)
	w.Run()
	w.Settled()
	w.Lies(1, "gold", body)
	w.DeadLetters(0)
}

func TestTwoRelocatorsNeverMoveAnItemTwice(t *testing.T) {
	w := relocatortest.New(t)
	bodies := map[int][]byte{}
	for id := 1; id <= 40; id++ {
		bodies[id] = w.Item(id, fmt.Sprintf("d%d/f%d", id%7, id))
	}
	for id := 1; id <= 40; id++ {
		w.Post(id, 1000+id%2*3000)
	}
	w.Relocator("r1")
	w.Relocator("r2")
	w.Relocator("r3")
	w.Releaser("r1")
	w.Releaser("r2")
	w.Committer()
	w.Settled()
	for id, body := range bodies {
		w.Lies(id, []string{"silver", "gold"}[id%2], body)
	}
	if n := w.Redis.XLen(t.Context(), w.Store.Keys().Relocated()).Val(); n != 40 {
		t.Errorf("%d relocations for 40 items", n)
	}
}

func TestAnEntryThatCrashesItsWorkersBecomesADeadLetterAndItsItemStays(t *testing.T) {
	w := relocatortest.New(t)
	body := w.Item(1, "a")
	entry := w.Post(1, 1500)
	views := w.Store.Keys().Views()
	if err := w.Redis.XGroupCreateMkStream(t.Context(), views, state.GroupRelocator, "0").Err(); err != nil {
		t.Fatal(err)
	}
	if err := w.Redis.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: state.GroupRelocator, Consumer: "dead", Count: 1,
		Streams: []string{views, ">"}}).Err(); err != nil {
		t.Fatal(err)
	}
	if err := w.Redis.Do(t.Context(), "XCLAIM", views, state.GroupRelocator, "dead", 0, entry, "IDLE", 3600000, "RETRYCOUNT", 12,
		"JUSTID").Err(); err != nil {
		t.Fatal(err)
	}
	w.Relocator("r1")
	if m := w.DeadLetters(1)[0]; m.Values["reason"] != "exhausted" || m.Values["attempts"] != "13" {
		t.Errorf("dead: %v", m.Values)
	}
	w.Settled()
	w.Lies(1, "bronze", body)
}

func TestTheProgressOfALargeMoveIsPublished(t *testing.T) {
	w := relocatortest.New(t)
	w.Item(1, "a")
	body := []byte(strings.Repeat("0123456789abcdef", 4<<16)) // 4 MiB
	w.File("bronze", "a", body)
	w.Limiter = rate.NewLimiter(1<<20, 1<<20)
	w.Run()
	w.Post(1, 5000)
	w.Eventually("its progress is published", func() error {
		p, ok, err := w.Store.GetProgress(context.Background(), 1)
		if err == nil && (!ok || p.BytesDone <= 0 || p.BytesDone >= p.BytesTotal || p.BytesTotal != int64(len(body)) || p.To != "gold") {
			err = fmt.Errorf("%v %+v", ok, p)
		}
		return err
	})
	w.Limiter.SetLimit(rate.Inf)
	w.Settled()
	w.Lies(1, "gold", body)
}
