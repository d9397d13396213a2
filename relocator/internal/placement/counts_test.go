package placement_test

import (
	"bytes"
	"context"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"github.com/tierflow/tierflow/relocator/internal/placement"
	"github.com/tierflow/tierflow/relocator/internal/relocatortest"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/outage"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m) }

const (
	mine  = state.Token("relocating 01934567-89ab-7cde-8f01-23456789abce me random")
	other = state.Token("relocating 01934567-89ab-7cde-8f01-23456789abcf me earlier")
)

// world is item 1 on bronze, whose lock is mine.
type world struct {
	*testing.T
	catalog *catalog.Catalog
	store   *state.Store
	rows    *placement.Rows
}

func newWorld(t *testing.T) *world {
	t.Helper()
	rdb, cat := relocatortest.Servers(t)
	store := state.NewStore(state.Options{Redis: rdb, Keys: state.NewKeys(testserver.Prefix(t)), TTL: time.Hour, Lease: time.Minute})
	w := &world{t, cat, store, placement.New(cat, store, outage.New("writes", zaptest.NewLogger(t)))}
	w.exec("INSERT INTO contents (cid, content_level, filename) VALUES (1, 'bronze', 'a')")
	if who, err := store.Lock(t.Context(), 1, mine); err != nil || who != "" {
		t.Fatal(who, err)
	}
	return w
}

func (w *world) exec(statement string, args ...any) {
	w.Helper()
	if _, err := w.catalog.DB().ExecContext(w.Context(), statement, args...); err != nil {
		w.Fatal(err)
	}
}

func (w *world) row() catalog.Row {
	w.Helper()
	row, err := w.catalog.Row(w.Context(), 1)
	if err != nil {
		w.Fatal(err)
	}
	return row
}

func (w *world) set(row catalog.Row, count item.Count, entry string, token state.Token) error {
	return w.rows.SetCount(w.Context(), placement.Count{Row: row, Count: count, Entry: entry}, token)
}

func (w *world) want(count item.Count, entry string, generation int64) {
	w.Helper()
	if r := w.row(); r.ViewCount != count || r.CountEntry != entry || r.Generation != generation {
		w.Errorf("row %+v; want count %d of %s, generation %d", r, count, entry, generation)
	}
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func TestACountIsWrittenWithItsEntryAndOnlyTheFirstRaisesTheGeneration(t *testing.T) {
	w := newWorld(t)
	w.must(w.set(w.row(), 5, "9-0", mine))
	w.want(5, "9-0", 1)
	w.must(w.set(w.row(), 5, "10-0", mine)) // an equal count is newer all the same
	w.want(5, "10-0", 1)
	w.must(w.set(w.row(), 6, "10-0", mine)) // the same entry again changes nothing
	w.want(5, "10-0", 1)
}

func TestAPausedWorkerLeavesTheNewestCountInTheRow(t *testing.T) {
	w := newWorld(t)
	w.must(w.set(w.row(), 5, "9-0", mine))
	looked := w.row()
	w.must(w.set(looked, 7, "11-0", mine))
	if err := w.set(looked, 6, "10-0", mine); !fault.Is(err, fault.Busy) { // to be looked up again, and then superseded
		t.Errorf("error %v", err)
	}
	w.want(7, "11-0", 1)
}

func TestACountIsNotWrittenWhereTheLockIsLost(t *testing.T) {
	w := newWorld(t)
	if err := w.set(w.row(), 5, "9-0", other); !fault.Is(err, fault.Lost) {
		t.Errorf("error %v", err)
	}
	w.want(0, "", 0)
}

func TestACountIsNotWrittenToARowThatIsNotAsItWasLookedUp(t *testing.T) {
	for name, change := range map[string]string{
		"generation": "generation = 4", "level": "content_level = 'gold'", "filename": "filename = 'b'",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			looked := w.row()
			w.exec("UPDATE contents SET " + change)
			if err := w.set(looked, 5, "9-0", mine); !fault.Is(err, fault.Busy) {
				t.Errorf("error %v", err)
			}
			w.want(0, "", w.row().Generation)
		})
	}
}

func TestAnEntryIsForgottenOnlyWhereTheRowIsAsItWasLookedUp(t *testing.T) {
	w := newWorld(t)
	w.must(w.set(w.row(), 5, "9-0", mine))
	old := w.row()
	w.must(w.set(old, 6, "10-0", mine))
	w.must(w.rows.ForgetEntry(t.Context(), old))
	w.want(6, "10-0", 1)
	w.must(w.rows.ForgetEntry(t.Context(), w.row()))
	w.want(6, "", 1)
	w.must(w.set(w.row(), 7, "3-0", mine))
	w.want(7, "3-0", 2)
}

// reviewed writes the next count of the row as it was looked up, with a review time.
func (w *world) reviewed(row catalog.Row, entry string, at time.Time) error {
	return w.rows.SetCount(w.Context(), placement.Count{Row: row, Count: 5, Entry: entry, ReviewAt: at}, mine)
}

func TestAReviewTimeIsWrittenWithTheCountAndClearedByTheNextOne(t *testing.T) {
	w := newWorld(t)
	at := time.Now().Add(time.Hour).UTC().Truncate(time.Microsecond)
	w.must(w.reviewed(w.row(), "9-0", at))
	if r := w.row(); !r.ReviewAt.Equal(at) || r.ViewCount != 5 {
		t.Errorf("row %+v; want a review at %s", r, at)
	}
	w.must(w.reviewed(w.row(), "10-0", time.Time{}))
	if r := w.row(); !r.ReviewAt.IsZero() || r.CountEntry != "10-0" {
		t.Errorf("row %+v; want no review", r)
	}
}

func TestAReviewThatIsDueByTheServersClockAloneIsPutOff(t *testing.T) {
	w := newWorld(t)
	w.must(w.reviewed(w.row(), "9-0", time.Now().Add(-time.Hour))) // the relocator's clock is an hour behind
	var later bool
	if err := w.catalog.DB().QueryRowContext(t.Context(), "SELECT review_at > UTC_TIMESTAMP(6) FROM contents").Scan(&later); err != nil || !later {
		t.Errorf("it is due at once, and again and again: %v", err)
	}
}

// Whoever changes the levels or a pin sets the review. A decision that was made before must not replace it.
func TestACountIsNotWrittenWhereSomebodyHasSetTheReviewSince(t *testing.T) {
	for name, now := range map[string]string{"due": "UTC_TIMESTAMP(6)", "a microsecond earlier": "review_at - INTERVAL 1 MICROSECOND", "none": "NULL"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.must(w.reviewed(w.row(), "9-0", time.Now().Add(time.Hour)))
			looked := w.row()
			w.exec("UPDATE contents SET review_at = " + now)
			if err := w.reviewed(looked, "10-0", time.Time{}); !fault.Is(err, fault.Busy) {
				t.Errorf("error %v", err)
			}
			w.want(5, "9-0", 1)
		})
	}
}

func TestTheLevelsOfABatchAreReadUnderTheLocksOfItsRows(t *testing.T) {
	w := newWorld(t)
	w.must(w.rows.WriteCounts([]item.ID{1}, func(ctx context.Context, look placement.Look) ([]placement.Count, error) {
		w.exec("UPDATE level SET min_residency = 77 WHERE content_level = 'gold'") // after the rows are locked
		p, err := look.Policy(ctx)
		if gold, _ := p.Level("gold"); gold.MinResidency != 77*time.Second || len(look.Rows) != 1 {
			t.Errorf("%v, %+v", gold, look.Rows)
		}
		return nil, err
	}))
}

// The levels and the row are read beside each other. Whoever sets a review has changed the levels before.
func TestTheLevelsAreReadAgainAfterARowThatHasAReview(t *testing.T) {
	var reads atomic.Int64
	gate, dsn := testserver.MySQLGate(t, testserver.MySQL(t))
	gate.Judge(func(request []byte) testserver.Fate {
		if bytes.Contains(request, []byte("FROM `level`")) {
			reads.Add(1)
		}
		return testserver.Pass
	})
	c, err := catalog.Open(dsn, catalog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	rows := placement.New(c, nil, outage.New("writes", zaptest.NewLogger(t)))
	for id, review := range map[item.ID]string{1: "NULL", 2: "UTC_TIMESTAMP(6)"} {
		if _, err := c.DB().ExecContext(t.Context(), "INSERT INTO contents (cid, content_level, filename, review_at) VALUES (?, 'bronze', ?, "+review+")",
			id, id.String()); err != nil {
			t.Fatal(err)
		}
		reads.Store(0)
		if _, _, err := rows.Find(t.Context(), id); err != nil || reads.Load() != int64(id) {
			t.Errorf("review %s: the levels were read %d times, %v", review, reads.Load(), err)
		}
	}
}
