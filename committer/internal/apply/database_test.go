package apply_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tierflow/tierflow/committer/internal/apply"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m) }

// database is a migrated database of the test's own, with a file f<cid>.mp4 on bronze for each cid.
type database struct {
	*catalog.Catalog
	t   testing.TB
	dsn string
}

func newDatabase(t testing.TB, items int) database {
	t.Helper()
	d := database{t: t, dsn: testserver.MySQL(t)}
	d.Catalog = open(t, d.dsn)
	if _, err := d.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	for id := 1; id <= items; id++ {
		d.exec("INSERT INTO contents (cid, content_level, filename) VALUES (?, 'bronze', ?)", id, filename(item.ID(id)))
	}
	return d
}

func open(t testing.TB, dsn string) *catalog.Catalog {
	t.Helper()
	c, err := catalog.Open(dsn, catalog.Options{LockWait: apply.LockWait})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (d database) exec(query string, args ...any) {
	d.t.Helper()
	if _, err := d.DB().ExecContext(context.Background(), query, args...); err != nil {
		d.t.Fatalf("%s: %v", query, err)
	}
}

func (d database) row(id item.ID) catalog.Row {
	d.t.Helper()
	r, err := d.Row(context.Background(), id)
	if err != nil {
		d.t.Fatal(err)
	}
	return r
}

// expectRow checks level and generation of a row.
func (d database) expectRow(id item.ID, level string, generation int64) {
	d.t.Helper()
	if r := d.row(id); r.Level != level || r.Generation != generation {
		d.t.Errorf("item %s is on %s with generation %d, want %s, %d", id, r.Level, r.Generation, level, generation)
	}
}

// expectHistory checks the number of history rows of an item, 0 for all.
func (d database) expectHistory(id item.ID, want int) {
	d.t.Helper()
	var n int
	err := d.DB().QueryRow("SELECT COUNT(*) FROM update_history WHERE cid = ? OR ? = 0", id, id).Scan(&n)
	if err != nil || n != want {
		d.t.Errorf("item %s has %d rows of history, want %d (%v)", id, n, want, err)
	}
}

// eventuallyRuns waits until the server is at work on a statement, or lets it wait.
func (d database) eventuallyRuns(ctx context.Context, pattern string) {
	d.t.Helper()
	testserver.Eventually(d.t, pattern, 20*time.Second, func() error {
		var n int
		err := d.DB().QueryRowContext(ctx, "SELECT COUNT(*) FROM information_schema.processlist"+
			" WHERE db = DATABASE() AND id <> CONNECTION_ID() AND info LIKE ?", pattern).Scan(&n)
		if err == nil && n == 0 {
			err = errors.New("it does not run")
		}
		return err
	})
}

// soon is for what could wait for ever.
func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func filename(id item.ID) string { return "f" + id.String() + ".mp4" }

func eventID(n int) string { return fmt.Sprintf("0198a5b0-0000-7000-8000-%012x", n) }

var start = time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC)

// relocated is event n: item id went from bronze to gold, seen with generation 0.
func relocated(n int, id item.ID) event.Relocated {
	return event.Relocated{
		EventID: eventID(n), ID: id, From: "bronze", To: "gold", Filename: filename(id), Count: 2500, Bytes: 4096,
		Digest: "sha256:" + strings.Repeat("ab", 32), Method: "copy", WorkerID: "w1",
		StartedAt: start, FinishedAt: start.Add(1500 * time.Microsecond),
	}
}

func expectOutcome(t testing.TB, r apply.Result, want event.Outcome, rowLevel string) {
	t.Helper()
	if r.Err != nil || r.Outcome != want || r.RowLevel != rowLevel {
		t.Errorf("got %s with the row on %q (%v), want %s, %q", r.Outcome, r.RowLevel, r.Err, want, rowLevel)
	}
}

func expectKind(t testing.TB, r apply.Result, want fault.Kind) {
	t.Helper()
	if fault.KindOf(r.Err) != want || r.Outcome != "" {
		t.Errorf("got %s with error %v, want one of kind %s", r.Outcome, r.Err, want)
	}
}
