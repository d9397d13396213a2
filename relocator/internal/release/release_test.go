package release_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/relocator/internal/relocatortest"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
)

func TestMain(m *testing.M) { relocatortest.Main(m) }

func TestTheOldCopyStaysForTheGrace(t *testing.T) {
	w := relocatortest.New(t)
	w.Grace = time.Second
	body := w.Item(1, "a")
	w.Relocator("r1")
	w.Releaser("r1")
	w.Committer()
	w.Post(1, 1500)
	var committed time.Time
	w.Eventually("the row is changed", func() error {
		row, err := w.Catalog.Row(context.Background(), 1)
		if err == nil && row.Level != "silver" {
			err = fmt.Errorf("it names %s", row.Level)
		}
		return err
	})
	committed = time.Now()
	w.Eventually("the old copy is gone", func() error {
		if _, err := os.Stat(w.Roots["bronze"] + "/a"); err == nil {
			return fmt.Errorf("it is there")
		}
		return nil
	})
	// The test sees the commit a little late.
	if stayed := time.Since(committed); stayed < w.Grace-200*time.Millisecond {
		t.Errorf("the old copy stayed for %v only", stayed)
	}
	w.Settled()
	w.Lies(1, "silver", body)
}

// The entry comes late: since its commit, the item was back on the tier that the entry clears, and has left it only now.
func TestALateReleaseWaitsForReadersThatWereJustLedToTheCopy(t *testing.T) {
	for name, old := range map[string]event.Committed{
		"a release that was held up": {From: "bronze", To: "silver", Outcome: event.OutcomeCommitted},
		"a stray":                    {From: "gold", To: "bronze", Outcome: event.OutcomeStray},
	} {
		t.Run(name, func(t *testing.T) {
			w := relocatortest.New(t)
			w.Grace = time.Second
			body := w.Item(1, "a")
			w.File("silver", "a", body)
			old.ID, old.Filename, old.CommittedAt = 1, "a", time.Now().Add(-time.Hour)
			past := fmt.Sprintf("%d-0", time.Now().Add(-time.Hour).UnixMilli())
			if err := w.Redis.XAdd(t.Context(), &redis.XAddArgs{Stream: w.Store.Keys().Committed(), ID: past, Values: old.Fields()}).Err(); err != nil {
				t.Fatal(err)
			}
			w.Exec("UPDATE contents SET content_level = 'silver', update_time = UTC_TIMESTAMP(6) WHERE cid = 1")
			left := time.Now()
			w.Releaser("r1")
			w.Settled()
			if stayed := time.Since(left); stayed < w.Grace {
				t.Errorf("the old copy stayed for %v only", stayed)
			}
			w.Lies(1, "silver", body)
		})
	}
}

// An operator's transaction has locked one row. Its release waits. Those that share its statements do not.
func TestALockedRowHoldsUpNoOtherRelease(t *testing.T) {
	w := relocatortest.New(t)
	const n = 20
	bodies := map[int][]byte{}
	for id := 1; id <= n; id++ {
		name := fmt.Sprintf("f%d", id)
		bodies[id] = w.Item(id, name)
		w.File("silver", name, bodies[id])
		w.Exec("UPDATE contents SET content_level = 'silver' WHERE cid = ?", id)
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
		err := w.Store.Stray(t.Context(), event.Committed{EventID: uuid.Must(uuid.NewV7()).String(), ID: item.ID(id), From: "silver", To: "bronze",
			Filename: fmt.Sprintf("f%d", id), CommittedAt: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
	}
	w.Releaser("r1")
	w.Eventually("only the locked one is left", func() error {
		p, err := w.Redis.XPending(t.Context(), w.Store.Keys().Committed(), state.GroupReleaser).Result()
		if err != nil {
			return err
		}
		left, err := os.ReadDir(w.Roots["bronze"])
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
	w.Settled()
	for id, body := range bodies {
		w.Lies(id, "silver", body)
		if row, err := w.Catalog.Row(t.Context(), item.ID(id)); err != nil || row.Generation == 0 {
			t.Errorf("item %d: generation %d after its release, %v", id, row.Generation, err)
		}
	}
}

func TestAReleaseKeepsTheLastCopy(t *testing.T) {
	w := relocatortest.New(t)
	body := w.Item(1, "a")
	w.File("silver", "a", body)
	if err := os.Remove(w.Roots["bronze"] + "/a"); err != nil { // as after a restored backup: the row names bronze
		t.Fatal(err)
	}
	w.Releaser("r1")
	if err := w.Store.Stray(t.Context(), event.Committed{ID: 1, To: "silver", Filename: "a", CommittedAt: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if m := w.DeadLetters(1)[0]; m.Values["reason"] != "missing-file" || m.Values["stage"] != "release" {
		t.Errorf("dead: %v", m.Values)
	}
	if got, err := os.ReadFile(w.Roots["silver"] + "/a"); err != nil || string(got) != string(body) {
		t.Errorf("the last copy: %v", err)
	}
	if left, _ := os.ReadDir(w.Roots["silver"] + "/.tierflow/released"); len(left) != 0 {
		t.Errorf("left in released: %v", left)
	}
}

func TestAReleaseNeverTouchesTheCopyThatTheRowNames(t *testing.T) {
	w := relocatortest.New(t)
	body := w.Item(1, "a")
	w.Releaser("r1")
	for _, c := range []event.Committed{
		{ID: 1, To: "bronze", Filename: "a"},     // it lives there
		{ID: 1, To: "silver", Filename: "a"},     // nothing there
		{ID: 1, To: "bronze", Filename: "other"}, // not its filename
		{ID: 99, To: "bronze", Filename: "a"},    // no such item
	} {
		c.CommittedAt = time.Now()
		if err := w.Store.Stray(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	w.Settled()
	w.Lies(1, "bronze", body)
}
