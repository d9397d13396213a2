package worker_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/relocator/internal/worker"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
)

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

func TestACountThatNeedsNoMoveIsInTheRowWhenItsStateHasExpired(t *testing.T) {
	w := newWorld(t)
	w.content(1, "a")
	w.content(2, "b")
	w.exec("UPDATE contents SET pinned_level = 'bronze', view_count = 7 WHERE cid = 2")
	before := map[int]catalog.Row{1: w.row(1), 2: w.row(2)}
	w.relocator("r1")
	w.post(1, 12)
	w.post(2, 5000)
	w.settled()
	for id, count := range map[int]item.Count{1: 12, 2: 5000} {
		want := before[id]
		want.ViewCount = count
		if got := w.row(id); got != want {
			t.Errorf("%+v, not %+v", got, want)
		}
	}
	w.post(1, 0)
	w.settled()
	if n := w.row(1).ViewCount; n != 0 {
		t.Errorf("count %d after 0 was posted", n)
	}
}

// TestARowThatSomebodyHasLockedHoldsUpNoOthersCount has one row in the hands of an operator's transaction.
func TestARowThatSomebodyHasLockedHoldsUpNoOthersCount(t *testing.T) {
	w := newWorld(t)
	const n = 20
	for id := 1; id <= n; id++ {
		w.content(id, fmt.Sprintf("f%d", id))
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
		w.post(id, 100+id)
	}
	w.relocator("r1")
	w.eventually("only the locked one is left", func() error {
		p, err := w.rdb.XPending(t.Context(), w.store.Keys().Views(), state.GroupRelocator).Result()
		if err == nil && (p.Count != 1 || w.row(n).ViewCount != 100+n) {
			err = fmt.Errorf("%d entries are pending", p.Count)
		}
		return err
	})
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	w.settled()
	for id := 1; id <= n; id++ {
		if got := w.row(id).ViewCount; got != item.Count(100+id) {
			t.Errorf("content %d: count %d", id, got)
		}
	}
}

// TestALostLockIsNoFailedAttempt has the lock vanish, as a failover may have it, while a move goes on.
func TestALostLockIsNoFailedAttempt(t *testing.T) {
	w := newWorld(t)
	w.attempts = 1
	body := w.content(1, "a")
	var once sync.Once
	w.fs.Hook = func(step fsys.Step, _ string) error {
		if step == fsys.WriteTemp {
			once.Do(func() {
				if n := w.rdb.Del(context.Background(), w.store.Keys().Lock(1)).Val(); n != 1 {
					t.Errorf("%d locks", n)
				}
				time.Sleep(minIdle / 2) // some renewals
			})
		}
		return nil
	}
	w.relocator("r1")
	w.releaser("r1")
	w.committer()
	w.post(1, 5000)
	w.settled()
	w.lies(1, "gold", body)
	w.dead(0)
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
