package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"golang.org/x/sync/errgroup"
)

// settings are the parameters that the services add to every DSN.
const settings = "?interpolateParams=true&parseTime=true&clientFoundRows=true&collation=utf8mb4_bin" +
	"&time_zone=%27%2B00%3A00%27&sql_mode=%27STRICT_TRANS_TABLES%2CNO_ZERO_DATE%2CNO_ZERO_IN_DATE%2CERROR_FOR_DIVISION_BY_ZERO%27" +
	"&transaction_isolation=%27READ-COMMITTED%27"

func newMySQL(t *testing.T, wait time.Duration) (dsn string) {
	t.Helper()
	dsn, stop, err := startMySQL("127.0.0.1:0", wait)
	must(t, err)
	t.Cleanup(stop)
	return dsn
}

func open(t *testing.T, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open("mysql", dsn)
	must(t, err)
	t.Cleanup(func() { db.Close() })
	return db
}

func conn(t *testing.T, db *sql.DB) *sql.Conn {
	t.Helper()
	c, err := db.Conn(t.Context())
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// exec runs the statement and returns the number of affected rows.
func exec(t *testing.T, db execer, query string, args ...any) int64 {
	t.Helper()
	result, err := db.ExecContext(t.Context(), query, args...)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	rows, _ := result.RowsAffected()
	return rows
}

type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// value returns the only column of the only row, as text.
func value(t *testing.T, db querier, query string, args ...any) string {
	t.Helper()
	var v sql.NullString
	if err := db.QueryRowContext(t.Context(), query, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return v.String
}

// code returns the error's MySQL number, and 0 for other errors.
func code(err error) uint16 {
	var e *mysql.MySQLError
	if errors.As(err, &e) {
		return e.Number
	}
	return 0
}

// inTransaction raises a counter in a transaction, which begins with the statement before and the row, if there is one.
func inTransaction(ctx context.Context, c *sql.Conn, before, row string) error {
	tx, err := c.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if before != "" {
		if _, err := tx.ExecContext(ctx, before+row); err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, "UPDATE counters SET n = n + 1 WHERE id = "+row); err != nil {
		return err
	}
	return tx.Commit()
}

func TestNoIncrementIsLost(t *testing.T) {
	const connections, increments = 8, 100
	ownRow := func(n int) int { return n }
	sameRow := func(int) int { return 0 }
	variants := []struct {
		name      string
		row       func(connection int) int
		increment func(ctx context.Context, c *sql.Conn, row string) error
	}{
		{"every connection its own row, without transactions", ownRow, func(ctx context.Context, c *sql.Conn, row string) error {
			_, err := c.ExecContext(ctx, "UPDATE counters SET n = n + 1 WHERE id = "+row)
			return err
		}},
		{"all the same row, without transactions", sameRow, func(ctx context.Context, c *sql.Conn, row string) error {
			_, err := c.ExecContext(ctx, "UPDATE counters SET n = n + 1 WHERE id = "+row)
			return err
		}},
		{"prepared statements", ownRow, func(ctx context.Context, c *sql.Conn, row string) error {
			_, err := c.ExecContext(ctx, "UPDATE counters SET n = n + ? WHERE id = ?", 1, row)
			return err
		}},
		{"statements prepared and kept from before others' commits", ownRow, func(ctx context.Context, c *sql.Conn, row string) error {
			prepared, err := c.PrepareContext(ctx, "SELECT n FROM counters WHERE id = ?")
			if err != nil {
				return err
			}
			defer prepared.Close()
			_, err = c.ExecContext(ctx, "UPDATE counters SET n = n + 1 WHERE id = "+row)
			return err
		}},
		{"transactions", ownRow, func(ctx context.Context, c *sql.Conn, row string) error {
			return inTransaction(ctx, c, "", row)
		}},
		{"transactions that lock the row first", sameRow, func(ctx context.Context, c *sql.Conn, row string) error {
			return inTransaction(ctx, c, "SELECT n FROM counters FOR UPDATE -- ", row)
		}},
		{"a plain SELECT and a reading transaction between", ownRow, func(ctx context.Context, c *sql.Conn, row string) error {
			for _, query := range []string{
				"SELECT n FROM counters", "BEGIN", "SELECT n FROM counters", "COMMIT",
				"UPDATE counters SET n = n + 1 WHERE id = " + row,
			} {
				if _, err := c.ExecContext(ctx, query); err != nil {
					return err
				}
			}
			return nil
		}},
		{"a statement that fails between", ownRow, func(ctx context.Context, c *sql.Conn, row string) error {
			if _, err := c.ExecContext(ctx, "INSERT INTO counters VALUES (0, 0)"); code(err) != 1062 {
				return fmt.Errorf("want a duplicate key, got %v", err)
			}
			_, err := c.ExecContext(ctx, "UPDATE counters SET n = n + 1 WHERE id = "+row)
			return err
		}},
		{"a transaction that is rolled back between", sameRow, func(ctx context.Context, c *sql.Conn, row string) error {
			for _, query := range []string{"BEGIN", "UPDATE counters SET n = n + 1000", "ROLLBACK"} {
				if _, err := c.ExecContext(ctx, query); err != nil {
					return err
				}
			}
			return inTransaction(ctx, c, "", row)
		}},
	}
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			db := open(t, newMySQL(t, 20*time.Second))
			exec(t, db, "CREATE TABLE counters (id INT PRIMARY KEY, n INT NOT NULL)")
			for i := range connections {
				exec(t, db, fmt.Sprintf("INSERT INTO counters VALUES (%d, 0)", i))
			}
			group, ctx := errgroup.WithContext(t.Context())
			for i := range connections {
				c := conn(t, db)
				group.Go(func() error {
					for range increments {
						if err := v.increment(ctx, c, fmt.Sprint(v.row(i))); err != nil {
							return err
						}
					}
					return nil
				})
			}
			must(t, group.Wait())
			equal(t, "the sum", value(t, db, "SELECT SUM(n) FROM counters"), fmt.Sprint(connections*increments))
		})
	}
}

func TestAnOpenTransactionHoldsUpOthersForABoundedTime(t *testing.T) {
	db := open(t, newMySQL(t, 50*time.Millisecond))
	exec(t, db, "CREATE TABLE counters (id INT PRIMARY KEY, n INT NOT NULL)")
	open, other := conn(t, db), conn(t, db)
	exec(t, open, "BEGIN")
	exec(t, open, "INSERT INTO counters VALUES (1, 0)")

	_, err := other.ExecContext(t.Context(), "INSERT INTO counters VALUES (2, 0)")
	equal(t, "the other's error", code(err), 1205)
	_, err = other.PrepareContext(t.Context(), "SELECT n FROM counters")
	equal(t, "the other's error on PREPARE", code(err), 1205)
	equal(t, "what needs no table", value(t, other, "SELECT 1"), "1")

	_, err = open.ExecContext(t.Context(), "INSERT INTO counters VALUES (1, 0)")
	equal(t, "an error inside the transaction", code(err), 1062)
	exec(t, open, "INSERT INTO counters VALUES (3, 0)")
	exec(t, open, "COMMIT")
	equal(t, "rows", value(t, other, "SELECT COUNT(*) FROM counters"), "2")
}

func TestATableMadeInsideATransactionEndsIt(t *testing.T) {
	db := open(t, newMySQL(t, 20*time.Second))
	first, second := conn(t, db), conn(t, db)
	exec(t, first, "BEGIN")
	exec(t, first, "CREATE TABLE counters (id INT PRIMARY KEY)")
	exec(t, first, "INSERT INTO counters VALUES (1)")
	exec(t, second, "INSERT INTO counters VALUES (2)")
	exec(t, first, "ROLLBACK")
	equal(t, "rows", value(t, first, "SELECT COUNT(*) FROM counters"), "2")
}

func TestABrokenConnectionGivesUpItsTransaction(t *testing.T) {
	dsn := newMySQL(t, 20*time.Second)
	db, leaving := open(t, dsn), open(t, dsn)
	exec(t, db, "CREATE TABLE counters (id INT PRIMARY KEY, n INT NOT NULL)")
	c := conn(t, leaving)
	exec(t, c, "BEGIN")
	exec(t, c, "INSERT INTO counters VALUES (1, 0)")
	must(t, c.Close())
	must(t, leaving.Close())
	equal(t, "rows", value(t, db, "SELECT COUNT(*) FROM counters"), "0")
}

func TestANamedLockIsHeldWhileOthersWork(t *testing.T) {
	db := open(t, newMySQL(t, 20*time.Second))
	owner, worker, waiter := conn(t, db), conn(t, db), conn(t, db)
	equal(t, "the lock", value(t, owner, "SELECT GET_LOCK(?, ?)", "goose", 5), "1")
	equal(t, "the lock, for another", value(t, waiter, "SELECT GET_LOCK('goose', 0)"), "0")

	waited := make(chan string)
	go func() {
		var got string
		if err := waiter.QueryRowContext(context.Background(), "SELECT GET_LOCK('goose', 10)").Scan(&got); err != nil {
			got = err.Error()
		}
		waited <- got
	}()
	exec(t, worker, "CREATE TABLE a (id INT PRIMARY KEY)")
	exec(t, worker, "BEGIN")
	exec(t, worker, "INSERT INTO a VALUES (1)")
	equal(t, "the release", value(t, owner, "SELECT RELEASE_LOCK(?)", "goose"), "1")
	equal(t, "the waiter's lock", <-waited, "1")
	exec(t, worker, "COMMIT")

	must(t, waiter.Raw(func(c any) error { return c.(interface{ Close() error }).Close() }))
	until(t, time.Second, "the lock of a closed connection is free", func() bool {
		return value(t, owner, "SELECT IS_FREE_LOCK('goose')") == "1"
	})
}

// schema makes the three tables of design.md, as a migration would.
var schema = []string{
	`CREATE TABLE level (
		content_level VARCHAR(64)   NOT NULL,
		min_counts    BIGINT        NOT NULL,
		max_counts    BIGINT        NULL,
		path          VARCHAR(1024) NOT NULL,
		tier_id       CHAR(36)      NOT NULL DEFAULT '',
		PRIMARY KEY (content_level)
	) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin`,
	`CREATE TABLE contents (
		cid           BIGINT       NOT NULL,
		content_level VARCHAR(64)  NOT NULL,
		filename      VARCHAR(700) NOT NULL,
		generate_time DATETIME(6)  NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
		update_time   DATETIME(6)  NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
		generation    BIGINT       NOT NULL DEFAULT 0,
		view_count    BIGINT       NOT NULL DEFAULT 0,
		size_bytes    BIGINT       NOT NULL DEFAULT 0,
		digest        VARCHAR(80)  NOT NULL DEFAULT '',
		pinned_level  VARCHAR(64)  NULL,
		PRIMARY KEY (cid),
		UNIQUE KEY contents_filename (filename),
		KEY contents_level (content_level, cid),
		CONSTRAINT contents_to_level FOREIGN KEY (content_level) REFERENCES level (content_level),
		CONSTRAINT contents_to_pin FOREIGN KEY (pinned_level) REFERENCES level (content_level)
	) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin`,
	`CREATE TABLE update_history (
		id               BIGINT      NOT NULL AUTO_INCREMENT,
		event_id         CHAR(36)    NOT NULL,
		cid              BIGINT      NOT NULL,
		old_level        VARCHAR(64) NOT NULL,
		new_level        VARCHAR(64) NOT NULL,
		prev_update_time DATETIME(6) NOT NULL,
		update_time      DATETIME(6) NOT NULL,
		view_count       BIGINT      NOT NULL,
		bytes            BIGINT      NOT NULL,
		duration_us      BIGINT      NOT NULL,
		worker_id        VARCHAR(255) NOT NULL,
		PRIMARY KEY (id),
		UNIQUE KEY update_history_event (event_id),
		KEY update_history_cid (cid, id)
	) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin`,
	`INSERT INTO level (content_level, min_counts, max_counts, path) VALUES
		('bronze', 0, 999, '/srv/tierflow/bronze'), ('silver', 1000, 1999, '/srv/tierflow/silver'),
		('gold', 2000, NULL, '/srv/tierflow/gold')`,
}

// migrate does what goose does with a session lock: it takes the lock on one connection and runs the migrations on
// another. Each migration is in one transaction with its row in the table of versions.
func migrate(t *testing.T, db *sql.DB) {
	t.Helper()
	locked := conn(t, db)
	equal(t, "the migration lock", value(t, locked, "SELECT GET_LOCK(?, ?)", "goose", 5), "1")
	worker := conn(t, db)
	equal(t, "tables of versions", value(t, worker, `SELECT COUNT(*) FROM information_schema.tables
		WHERE (table_schema = ? OR table_schema = DATABASE()) AND table_name = ?`, "tierflow", "goose_db_version"), "0")
	exec(t, worker, `CREATE TABLE goose_db_version (id SERIAL NOT NULL, version_id BIGINT NOT NULL, is_applied BOOLEAN NOT NULL,
		tstamp TIMESTAMP NULL DEFAULT now(), PRIMARY KEY (id))`)
	for version, statement := range schema {
		tx, err := worker.BeginTx(t.Context(), nil)
		must(t, err)
		exec(t, tx, statement)
		exec(t, tx, "INSERT INTO goose_db_version (version_id, is_applied) VALUES (?, ?)", version, true)
		must(t, tx.Commit())
	}
	equal(t, "the newest version", value(t, locked, "SELECT MAX(version_id) FROM goose_db_version"), fmt.Sprint(len(schema)-1))
	equal(t, "the release", value(t, locked, "SELECT RELEASE_LOCK(?)", "goose"), "1")
}

// commitBatch runs the statements of the committer: two of three moves have the right generation.
func commitBatch(t *testing.T, db *sql.DB) {
	now := time.Now().UTC().Truncate(time.Microsecond)
	tx, err := db.BeginTx(t.Context(), &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	must(t, err)
	defer tx.Rollback()
	rows, err := tx.QueryContext(t.Context(), `SELECT cid, generation, update_time FROM contents
		WHERE cid IN (?, ?, ?) ORDER BY cid FOR UPDATE`, 7, 8, 9)
	must(t, err)
	var found []string
	for rows.Next() {
		var cid, generation int64
		var updated time.Time
		must(t, rows.Scan(&cid, &generation, &updated))
		found = append(found, fmt.Sprint(cid, ":", generation))
	}
	must(t, rows.Err())
	equal(t, "rows found", strings.Join(found, " "), "7:0 8:0 9:0")
	equal(t, "rows changed", exec(t, tx, `UPDATE contents SET
		content_level = CASE cid WHEN ? THEN ? WHEN ? THEN ? WHEN ? THEN ? END,
		view_count = CASE cid WHEN ? THEN ? WHEN ? THEN ? WHEN ? THEN ? END,
		update_time = ?, generation = generation + 1
		WHERE cid IN (?, ?, ?) AND (cid, generation) IN ((?, ?), (?, ?), (?, ?))`,
		7, "silver", 8, "gold", 9, "gold", 7, 1964, 8, 5000, 9, 2000, now, 7, 8, 9, 7, 0, 8, 0, 9, 41), 2)
	equal(t, "history", exec(t, tx, `INSERT INTO update_history (event_id, cid, old_level, new_level,
		prev_update_time, update_time, view_count, bytes, duration_us, worker_id) VALUES
		(?, 7, 'bronze', 'silver', ?, ?, 1964, 1, 2, 'w'), (?, 8, 'bronze', 'gold', ?, ?, 5000, 1, 2, 'w')`,
		"e-7", now, now, "e-8", now, now), 2)
	_, err = tx.ExecContext(t.Context(), `INSERT INTO update_history (event_id, cid, old_level, new_level,
		prev_update_time, update_time, view_count, bytes, duration_us, worker_id) VALUES
		('e-7', 7, 'bronze', 'silver', ?, ?, 1964, 1, 2, 'w')`, now, now)
	equal(t, "an event a second time", code(err), 1062)
	must(t, tx.Commit())

	equal(t, "levels", value(t, db, "SELECT GROUP_CONCAT(CONCAT(content_level, generation) ORDER BY cid) FROM contents"),
		"silver1,gold1,silver0,gold0")
	equal(t, "the history's events", value(t, db, "SELECT GROUP_CONCAT(event_id ORDER BY id) FROM update_history"), "e-7,e-8")
	var updated time.Time
	must(t, db.QueryRowContext(t.Context(), "SELECT update_time FROM update_history WHERE event_id IN (?, ?) LIMIT 1", "e-7", "x").Scan(&updated))
	equal(t, "the time, to the microsecond", updated, now)
}

func TestTheSchemaAndTheServicesStatementsWork(t *testing.T) {
	db := open(t, newMySQL(t, 20*time.Second)+settings)
	migrate(t, db)

	t.Run("rows inserted by hand get the defaults, in UTC", func(t *testing.T) {
		equal(t, "rows", exec(t, db, `INSERT INTO contents (cid, content_level, filename) VALUES
			(7, 'bronze', 'g.mp4'), (8, 'bronze', 'G.mp4'), (9, 'silver', 'ä/9.mp4'), (10, 'gold', '10')`), 4)
		var made time.Time
		must(t, db.QueryRowContext(t.Context(), "SELECT generate_time FROM contents WHERE cid = ?", 7).Scan(&made))
		if off := time.Since(made).Abs(); off > time.Minute {
			t.Errorf("generate_time is off by %v", off)
		}
		equal(t, "a name's row", value(t, db, "SELECT cid FROM contents WHERE filename = ?", "G.mp4"), "8")
		equal(t, "names that begin so", value(t, db, "SELECT COUNT(*) FROM contents WHERE filename LIKE ?", "g%"), "1")
		equal(t, "the page after 7", value(t, db, `SELECT GROUP_CONCAT(cid ORDER BY cid) FROM
			(SELECT cid FROM contents WHERE content_level = 'bronze' AND cid > ? ORDER BY cid LIMIT 10) page`, 7), "8")
	})

	t.Run("statements that break a key are refused with the error number of MySQL", func(t *testing.T) {
		for statement, want := range map[string]uint16{
			"INSERT INTO contents (cid, content_level, filename) VALUES (7, 'bronze', 'x')":                           1062,
			"INSERT INTO contents (cid, content_level, filename) VALUES (11, 'bronze', 'g.mp4')":                      1062,
			"INSERT INTO contents (cid, content_level, filename) VALUES (12, 'bronze', 'y'), (13, 'bronze', 'g.mp4')": 1062,
			"INSERT INTO contents (cid, content_level, filename) VALUES (11, 'tin', 'x')":                             1452,
			"UPDATE contents SET pinned_level = 'tin' WHERE cid = 7":                                                  1452,
			"DELETE FROM level WHERE content_level = 'bronze'":                                                        1451,
			"INSERT INTO contents (cid, content_level, filename) VALUES (11, NULL, 'x')":                              1048,
			"SELECT cid FROM nothing": 1146,
		} {
			_, err := db.ExecContext(t.Context(), statement)
			equal(t, statement, code(err), want)
		}
		equal(t, "rows", value(t, db, "SELECT COUNT(*) FROM contents"), "4")
	})

	t.Run("a batch commits, each row behind its fence", func(t *testing.T) { commitBatch(t, db) })

	t.Run("a range of names finds the names below a folder and no others", func(t *testing.T) {
		exec(t, db, "INSERT INTO contents (cid, content_level, filename) VALUES (20, 'bronze', 'show10'), (21, 'bronze', 'show1/\tx'), (22, 'bronze', 'show10\tx')")
		equal(t, "below show1", value(t, db, "SELECT GROUP_CONCAT(cid) FROM contents WHERE filename >= ? AND filename < ? AND filename <> ?",
			"show1/\x00", "show10\x00", "show10"), "21")
	})

	t.Run("a count is written into locked rows", func(t *testing.T) {
		tx, err := db.BeginTx(t.Context(), &sql.TxOptions{Isolation: sql.LevelReadCommitted})
		must(t, err)
		defer tx.Rollback()
		equal(t, "rows", value(t, tx, "SELECT cid FROM contents WHERE cid IN (?) ORDER BY cid FOR UPDATE SKIP LOCKED", 20), "20")
		equal(t, "rows changed", exec(t, tx, "UPDATE contents SET view_count = CASE cid WHEN ? THEN ? WHEN ? THEN ? END WHERE cid IN (?, ?)",
			20, 5, 21, 6, 20, 21), 2)
		must(t, tx.Commit())
		equal(t, "counts", value(t, db, "SELECT GROUP_CONCAT(view_count ORDER BY cid) FROM contents WHERE cid IN (20, 21)"), "5,6")
	})

	t.Run("a release changes a row only if it is on another level", func(t *testing.T) {
		release := "UPDATE contents SET generation = generation + 1 WHERE cid = ? AND content_level <> ?"
		equal(t, "lives there", exec(t, db, release, 7, "silver"), 0)
		equal(t, "lives elsewhere", exec(t, db, release, 7, "bronze"), 1)
		equal(t, "INSERT IGNORE of what is there", exec(t, db,
			"INSERT IGNORE INTO contents (cid, content_level, filename) VALUES (7, 'gold', 'z')"), 0)
		equal(t, "the level of a count", value(t, db, `SELECT content_level FROM level
			WHERE min_counts <= ? AND (max_counts IS NULL OR max_counts >= ?)`, 2500, 2500), "gold")
		equal(t, "ODKU", exec(t, db, `INSERT INTO level (content_level, min_counts, max_counts, path) VALUES ('gold', 2000, NULL, '/gold')
			ON DUPLICATE KEY UPDATE path = VALUES(path)`), 2)
		equal(t, "deleted", exec(t, db, "DELETE FROM contents WHERE cid = ?", 10), 1)
	})
}

func TestNoFileOfTheProcessCanBeRead(t *testing.T) {
	db := open(t, newMySQL(t, time.Second))
	equal(t, "a file", value(t, db, "SELECT LOAD_FILE('/etc/passwd')"), "")
	if _, err := db.ExecContext(t.Context(), "SELECT 1 INTO OUTFILE '"+t.TempDir()+"/x'"); err == nil {
		t.Error("a file was written")
	}
}
