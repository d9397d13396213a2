package catalog_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m) }

func open(t *testing.T, dsn string) *catalog.Catalog {
	t.Helper()
	c, err := catalog.Open(dsn, catalog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func migrated(t *testing.T) *catalog.Catalog {
	t.Helper()
	c := open(t, testserver.MySQL(t))
	if _, err := c.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

func exec(t *testing.T, c *catalog.Catalog, statement string, args ...any) {
	t.Helper()
	if _, err := c.DB().ExecContext(t.Context(), statement, args...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// insert writes a row as an operator would by hand.
func insert(t *testing.T, c *catalog.Catalog, id int, level, name string) {
	t.Helper()
	exec(t, c, "INSERT INTO contents (cid, content_level, filename) VALUES (?, ?, ?)", id, level, name)
}

func TestADSNWithoutADatabaseIsRefused(t *testing.T) {
	for _, dsn := range []string{"root@tcp(127.0.0.1:3306)/", "/"} {
		if _, err := catalog.Open(dsn, catalog.Options{}); err == nil || !strings.Contains(err.Error(), "names no database") {
			t.Errorf("%s: %v", dsn, err)
		}
	}
	if _, err := catalog.Open("mysql://root:secret@host/db", catalog.Options{}); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("a URL in place of a DSN: %v", err)
	}
}

func TestAStatementOfATransactionSeesWhatWasCommittedWhenItBegan(t *testing.T) {
	c := migrated(t)
	insert(t, c, 7, "bronze", "f.mp4")
	tx, err := c.DB().BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	for _, want := range []string{"bronze", "gold"} {
		exec(t, c, "UPDATE contents SET content_level = ? WHERE cid = 7", want)
		var level string
		if err := tx.QueryRowContext(t.Context(), "SELECT content_level FROM contents WHERE cid = 7").Scan(&level); err != nil || level != want {
			t.Errorf("%q, want %q (%v)", level, want, err)
		}
	}
}

func TestTheServerEndsATransactionThatItsProcessHasLeft(t *testing.T) {
	c := migrated(t)
	insert(t, c, 7, "bronze", "f.mp4")
	left, err := c.DB().BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = left.Rollback() }()
	var seconds int
	if err := left.QueryRowContext(t.Context(), "SELECT @@SESSION.wait_timeout").Scan(&seconds); err != nil || seconds != 30 {
		t.Fatalf("a session ends after %d s, %v", seconds, err)
	}
	// The same happens after a shorter time.
	for _, statement := range []string{"SET SESSION wait_timeout = 1", "UPDATE contents SET generation = 5 WHERE cid = 7"} {
		if _, err := left.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	testserver.Eventually(t, "the row is free", 30*time.Second, func() error {
		_, err := c.DB().ExecContext(t.Context(), "UPDATE contents SET generation = generation + 1 WHERE cid = 7")
		return err
	})
	if r, err := c.Row(t.Context(), 7); err != nil || r.Generation != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	if _, err := left.ExecContext(t.Context(), "DELETE FROM contents WHERE cid = 7"); err == nil {
		t.Fatal("the session still works for a process that comes back")
	}
}

func TestEightMigratorsAtOnceApplyEachMigrationOnce(t *testing.T) {
	dsn := testserver.MySQL(t)
	var mu sync.Mutex
	var applied []string
	var wg sync.WaitGroup
	for range 8 {
		c := open(t, dsn)
		wg.Go(func() {
			names, err := c.Migrate(t.Context())
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			applied = append(applied, names...)
		})
	}
	wg.Wait()
	want := []string{"00001_level.sql", "00002_contents.sql", "00003_update_history.sql", "00004_appraisal.sql",
		"00005_count_entry.sql", "00006_policy.sql", "00007_review.sql"}
	if !slices.Equal(applied, want) {
		t.Fatalf("applied %v, want %v", applied, want)
	}
	if err := open(t, dsn).CheckSchema(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestASecondMigrationChangesNothing(t *testing.T) {
	c := migrated(t)
	exec(t, c, "UPDATE `level` SET path = '/mnt/gold' WHERE content_level = 'gold'")
	applied, err := c.Migrate(t.Context())
	if err != nil || len(applied) > 0 {
		t.Fatalf("applied %v, %v", applied, err)
	}
	p, err := c.Policy(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if gold, _ := p.Level("gold"); gold.Path != "/mnt/gold" {
		t.Fatalf("the operator's path was replaced: %+v", gold)
	}
}

func TestAMigrationThatWasInterruptedAfterItsTableRunsAgain(t *testing.T) {
	c := migrated(t)
	insert(t, c, 7, "silver", "g.mp4")
	exec(t, c, "DELETE FROM tierflow_schema")
	applied, err := c.Migrate(t.Context())
	if err != nil || len(applied) != 7 {
		t.Fatalf("applied %v, %v", applied, err)
	}
	if r, err := c.Row(t.Context(), 7); err != nil || r.Level != "silver" {
		t.Fatalf("%+v, %v", r, err)
	}
}

func TestMigrationsOfTwoDatabasesDoNotWaitForEachOther(t *testing.T) {
	one, other := open(t, testserver.MySQL(t)), open(t, testserver.MySQL(t))
	// Another process migrates the first database and has not finished.
	holder, err := one.DB().Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	if _, err := holder.ExecContext(t.Context(), "DO GET_LOCK(?, 0)", catalog.LockName(one)); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := one.Migrate(ctx); !fault.Is(err, fault.Unavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a migration went past a held lock: %v", err)
	}
}

func TestMigrationNeedsNoRightsBeyondItsDatabase(t *testing.T) {
	dsn := testserver.MySQL(t)
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil {
		t.Fatal(err)
	}
	admin := open(t, dsn)
	exec(t, admin, "CREATE USER "+cfg.DBName+" IDENTIFIED BY 'a-password'")
	t.Cleanup(func() {
		if _, err := admin.DB().Exec("DROP USER " + cfg.DBName); err != nil {
			t.Error(err)
		}
	})
	exec(t, admin, "GRANT ALL ON "+cfg.DBName+".* TO "+cfg.DBName)
	cfg.User, cfg.Passwd = cfg.DBName, "a-password"
	c := open(t, cfg.FormatDSN())
	if _, err := c.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.CheckSchema(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestTheSchemaCheckSaysWhatIsMissingAndWhatToDo(t *testing.T) {
	c := open(t, testserver.MySQL(t))
	check := func(words string) {
		t.Helper()
		err := c.CheckSchema(t.Context())
		if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), words) ||
			!strings.Contains(err.Error(), "committer migrate") {
			t.Fatalf("want %q and the hint in: %v", words, err)
		}
	}
	check("level")
	if _, err := c.Policy(t.Context()); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "committer migrate") {
		t.Fatalf("a read without the table: %v", err)
	}
	if _, err := c.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	exec(t, c, "DELETE FROM tierflow_schema WHERE version_id = 3")
	check("not applied: 00003_update_history.sql")
	exec(t, c, "ALTER TABLE contents DROP COLUMN digest")
	check("digest")
}

func TestEveryTableNamesItsEngineAndCollation(t *testing.T) {
	c := migrated(t)
	rows, err := c.DB().QueryContext(t.Context(),
		"SELECT table_name, engine, table_collation FROM information_schema.tables WHERE table_schema = DATABASE()")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	n := 0
	for rows.Next() {
		var table, engine, collation string
		if err := rows.Scan(&table, &engine, &collation); err != nil {
			t.Fatal(err)
		}
		if engine != "InnoDB" || collation != "utf8mb4_bin" {
			t.Errorf("%s: %s, %s", table, engine, collation)
		}
		n++
	}
	if err := rows.Err(); err != nil || n != 6 {
		t.Fatalf("%d tables, %v", n, err)
	}
}

func TestTheFirstPolicyIsTheOriginals(t *testing.T) {
	p, err := migrated(t).Policy(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []policy.Level{
		{Name: "bronze", Min: 0, Max: 999, Path: "/srv/tierflow/bronze"},
		{Name: "silver", Min: 1000, Max: 1999, Path: "/srv/tierflow/silver"},
		{Name: "gold", Min: 2000, Max: policy.Open, Path: "/srv/tierflow/gold"},
	}
	if !slices.Equal(p.Levels(), want) {
		t.Fatalf("got %+v", p.Levels())
	}
}

func TestAnInvalidLevelTableNamesEveryProblem(t *testing.T) {
	c := migrated(t)
	exec(t, c, "UPDATE `level` SET max_counts = 899 WHERE content_level = 'bronze'")
	exec(t, c, "UPDATE `level` SET max_counts = 5000 WHERE content_level = 'gold'")
	_, err := c.Policy(t.Context())
	if !fault.Is(err, fault.Unprocessable) {
		t.Fatalf("kind %s: %v", fault.KindOf(err), err)
	}
	for _, words := range []string{"counts 900 to 999 belong to no level", "must have no upper end"} {
		if !strings.Contains(err.Error(), words) {
			t.Errorf("%q is not in: %v", words, err)
		}
	}
	if levels, err := c.Levels(t.Context()); err != nil || len(levels) != 3 {
		t.Errorf("the levels themselves: %v, %v", levels, err)
	}
}

func TestARowInsertedByHandHasDefaultsInUTCWhateverTheTimeZones(t *testing.T) {
	dsn := testserver.MySQL(t)
	c := open(t, dsn)
	if _, err := c.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	// An operator's session, in a distant time zone.
	operator, err := sql.Open("mysql", with(dsn, "time_zone=%27%2B09%3A30%27"))
	if err != nil {
		t.Fatal(err)
	}
	defer operator.Close()
	before := time.Now().Add(-time.Minute)
	if _, err := operator.ExecContext(t.Context(),
		"INSERT INTO contents (cid, content_level, filename) VALUES (7, 'bronze', 'g.mp4')"); err != nil {
		t.Fatal(err)
	}
	r, err := c.Row(t.Context(), 7)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []time.Time{r.Generated, r.Updated} {
		if at.Before(before) || at.After(time.Now().Add(time.Minute)) || at.Location() != time.UTC {
			t.Errorf("a default time is %s, now is %s", at, time.Now().UTC())
		}
	}
	r.Generated, r.Updated = time.Time{}, time.Time{}
	if want := (catalog.Row{ID: 7, Level: "bronze", Filename: "g.mp4"}); r != want {
		t.Errorf("got %+v, want %+v", r, want)
	}

	// The same through a DSN with another time zone: our time zone wins.
	far := open(t, with(dsn, "time_zone=%27-07%3A00%27&loc=Asia%2FTokyo&parseTime=false&sql_mode=%27%27"))
	at := time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.UTC)
	exec(t, far, "UPDATE contents SET update_time = ?, generate_time = NOW(6) WHERE cid = 7", at)
	var written string
	if err := operator.QueryRowContext(t.Context(), "SELECT CAST(update_time AS CHAR) FROM contents").Scan(&written); err != nil {
		t.Fatal(err)
	}
	if written != "2026-01-02 03:04:05.678901" {
		t.Errorf("written as %s", written)
	}
	got, err := far.Row(t.Context(), 7)
	if err != nil || !got.Updated.Equal(at) || got.Generated.Before(before) || got.Generated.After(time.Now().Add(time.Minute)) {
		t.Errorf("read as %+v, %v", got, err)
	}
}

// with adds parameters to a DSN.
func with(dsn, parameters string) string {
	if strings.Contains(dsn, "?") {
		return dsn + "&" + parameters
	}
	return dsn + "?" + parameters
}

func TestSessionsAreStrictAndReportFoundRows(t *testing.T) {
	c := migrated(t)
	insert(t, c, 7, "bronze", "g.mp4")
	for range 2 {
		res, err := c.DB().ExecContext(t.Context(), "UPDATE contents SET pinned_level = 'gold' WHERE cid = 7")
		if err != nil {
			t.Fatal(err)
		}
		if n, _ := res.RowsAffected(); n != 1 {
			t.Fatalf("%d rows", n)
		}
	}
	if r, err := c.Row(t.Context(), 7); err != nil || r.Pinned != "gold" {
		t.Fatalf("%+v, %v", r, err)
	}
	_, err := c.DB().ExecContext(t.Context(), "UPDATE contents SET digest = REPEAT('x', 81)")
	if catalog.Kind(err) != fault.Unprocessable {
		t.Fatalf("a value that is too long: %v", err)
	}
}

func TestNamesAreComparedByteByByte(t *testing.T) {
	c := migrated(t)
	// The names differ in case, accents and normal forms. A file system holds them as five names.
	names := []string{"a/é.mp4", "a/e\u0301.mp4", "a/e.mp4", "a/E.mp4", "📼/ａ.mp4"}
	for i, name := range names {
		insert(t, c, i+1, "bronze", name)
	}
	for i, name := range names {
		r, err := c.ByFilename(t.Context(), name)
		if err != nil || r.ID != item.ID(i+1) || r.Filename != name {
			t.Errorf("%q: %+v, %v", name, r, err)
		}
	}
	for _, name := range []string{"a/e.mp4 ", "a/e.MP4", ""} {
		if r, err := c.ByFilename(t.Context(), name); !fault.Is(err, fault.Unknown) {
			t.Errorf("%q: %+v, %v", name, r, err)
		}
	}
	long := strings.Repeat("é", 700)
	insert(t, c, 100, "bronze", long)
	if r, err := c.ByFilename(t.Context(), long); err != nil || r.ID != 100 {
		t.Errorf("700 characters: %v", err)
	}
}

func TestItemsAreFoundByTheirIds(t *testing.T) {
	c := migrated(t)
	if _, err := c.Row(t.Context(), 8); !fault.Is(err, fault.Unknown) || err.Error() != "look up item 8: there is none" {
		t.Fatalf("an unknown item: %v", err)
	}
	ids := fill(t, c, 2500)
	found, err := c.Rows(t.Context(), append(ids, 999999))
	if err != nil || len(found) != 2500 {
		t.Fatalf("%d found, %v", len(found), err)
	}
	if r := found[ids[1234]]; r.ID != ids[1234] || r.Filename != fmt.Sprintf("f%d", ids[1234]) {
		t.Fatalf("%+v", r)
	}
	if found, err := c.Rows(t.Context(), nil); err != nil || len(found) != 0 {
		t.Fatalf("%v, %v", found, err)
	}
}

// fill inserts n items with odd ids, alternating between bronze and silver, and returns their ids.
func fill(t *testing.T, c *catalog.Catalog, n int) []item.ID {
	t.Helper()
	var ids []item.ID
	var values []string
	for i := range n {
		id := 2*i + 1
		ids = append(ids, item.ID(id))
		values = append(values, fmt.Sprintf("(%d, '%s', 'f%d')", id, []string{"bronze", "silver"}[i%2], id))
	}
	exec(t, c, "INSERT INTO contents (cid, content_level, filename) VALUES "+strings.Join(values, ", "))
	return ids
}

func TestListingsArePagedByID(t *testing.T) {
	c := migrated(t)
	ids := fill(t, c, 25)
	for _, level := range []string{"", "silver"} {
		var want, got []item.ID
		for i, id := range ids {
			if level == "" || i%2 == 1 {
				want = append(want, id)
			}
		}
		for after := item.ID(0); ; {
			rows, err := c.List(t.Context(), level, after, 4)
			if err != nil {
				t.Fatal(err)
			}
			if len(rows) == 0 {
				break
			}
			for _, r := range rows {
				got = append(got, r.ID)
				after = r.ID
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("level %q: got %v, want %v", level, got, want)
		}
	}
}

func TestEachSeesEveryRowOnceAndStopsAtTheCallersError(t *testing.T) {
	c := migrated(t)
	want := fill(t, c, 2000)
	var got []item.ID
	if err := c.Each(t.Context(), func(r catalog.Row) error {
		got = append(got, r.ID)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("%d rows seen, want %d in order", len(got), len(want))
	}
	enough := errors.New("enough")
	n := 0
	if err := c.Each(t.Context(), func(catalog.Row) error { n++; return enough }); err != enough || n != 1 {
		t.Fatalf("%d calls, %v", n, err)
	}
}

func TestTheHistoryComesNewestFirstInPages(t *testing.T) {
	c := migrated(t)
	at := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	for i := range 5 {
		for _, cid := range []int{7, 8} {
			exec(t, c, `INSERT INTO update_history (event_id, cid, old_level, new_level, prev_update_time, update_time,
				view_count, bytes, duration_us, worker_id) VALUES (?, ?, 'bronze', 'silver', ?, ?, ?, 42, 1500000, 'w1')`,
				fmt.Sprintf("0198c0de-0000-7000-8000-%012d", 10*i+cid), cid, at, at.Add(time.Hour), 1000+i)
		}
	}
	first, err := c.History(t.Context(), 7, 0, 3)
	if err != nil || len(first) != 3 {
		t.Fatalf("%v, %v", first, err)
	}
	want := catalog.History{ID: first[0].ID, EventID: "0198c0de-0000-7000-8000-000000000047", CID: 7, OldLevel: "bronze",
		NewLevel: "silver", PrevUpdateTime: at, UpdateTime: at.Add(time.Hour), ViewCount: 1004, Bytes: 42,
		Duration: 1500 * time.Millisecond, WorkerID: "w1"}
	if first[0] != want {
		t.Errorf("got %+v, want %+v", first[0], want)
	}
	rest, err := c.History(t.Context(), 7, first[2].ID, 3)
	if err != nil || len(rest) != 2 || rest[0].ViewCount != 1001 || rest[1].ViewCount != 1000 {
		t.Fatalf("%+v, %v", rest, err)
	}
}
