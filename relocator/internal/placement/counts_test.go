package placement_test

import (
	"testing"
	"time"

	"github.com/tierflow/tierflow/relocator/internal/placement"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m) }

// A worker writes the count of an old event after another worker has settled the newest one.
func TestAPausedWorkerLeavesTheNewestCountInTheRow(t *testing.T) {
	rdb, err := state.Connect(testserver.Redis(t), 3)
	if err != nil {
		t.Fatal(err)
	}
	defer rdb.Close()
	cat, err := catalog.Open(testserver.MySQL(t), catalog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer cat.Close()
	if _, err := cat.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := cat.DB().ExecContext(t.Context(), "INSERT INTO contents (cid, content_level, filename) VALUES (1, 'bronze', 'a')"); err != nil {
		t.Fatal(err)
	}
	store := state.NewStore(state.Options{Redis: rdb, Keys: state.NewKeys(testserver.Prefix(t)), TTL: time.Hour, Lease: time.Minute})
	if err := store.Agree(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err = store.Append(t.Context(), []event.View{{EventID: "01934567-89ab-7cde-8f01-23456789abcd", ID: 1, Count: 9, Target: "bronze", DBLevel: "bronze",
		Filename: "a", PostedAt: time.Now()}})
	if err != nil {
		t.Fatal(err)
	}
	r := placement.New(cat, store)
	set := func(count item.Count, token state.Token) error {
		row, err := cat.Row(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		return r.SetCount(t.Context(), row, count, token)
	}
	want := func(count item.Count) {
		t.Helper()
		row, err := cat.Row(t.Context(), 1)
		if err != nil || row.ViewCount != count {
			t.Fatalf("count %d, not %d, %v", row.ViewCount, count, err)
		}
	}

	mine := state.NewToken("01934567-89ab-7cde-8f01-23456789abce", "me", "random")
	if who, err := store.Lock(t.Context(), 1, mine); err != nil || who != "" {
		t.Fatal(who, err)
	}
	if err := set(5, mine); err != nil {
		t.Fatal(err)
	}
	want(5) // the newest event's count comes when the lock is free

	if err := set(6, state.NewToken("01934567-89ab-7cde-8f01-23456789abce", "me", "earlier")); err != nil {
		t.Fatal(err)
	}
	want(9)

	// A row that has changed since its look-up stays as it is.
	row, err := cat.Row(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	row.ViewCount = 7
	if err := r.SetCount(t.Context(), row, 8, mine); !fault.Is(err, fault.Busy) {
		t.Errorf("error %v", err)
	}
	want(9)
}
