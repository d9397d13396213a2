package worker_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
)

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
		err := w.store.Stray(t.Context(), event.Committed{EventID: uuid.Must(uuid.NewV7()).String(), ID: item.ID(id), From: "silver", To: "bronze",
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
		if row, err := w.cat.Content(t.Context(), item.ID(id)); err != nil || row.Generation == 0 {
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
