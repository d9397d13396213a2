package catalog_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestWhatTheServerRefusesHasItsKind(t *testing.T) {
	c := migrated(t)
	insert(t, c, 1, "bronze", "a")
	exec(t, c, `INSERT INTO update_history (event_id, cid, old_level, new_level, prev_update_time, update_time)
		VALUES ('e', 1, 'bronze', 'silver', NOW(), NOW())`)
	for statement, want := range map[string]fault.Kind{
		"INSERT INTO contents (cid, content_level, filename) VALUES (1, 'bronze', 'b')": fault.Conflict,
		"INSERT INTO contents (cid, content_level, filename) VALUES (2, 'bronze', 'a')": fault.Conflict,
		"DELETE FROM `level` WHERE content_level = 'bronze'":                            fault.Conflict,
		`INSERT INTO update_history (event_id, cid, old_level, new_level, prev_update_time, update_time)
			VALUES ('e', 2, 'bronze', 'silver', NOW(), NOW())`: fault.Conflict,
		"INSERT INTO contents (cid, content_level, filename) VALUES (2, 'iron', 'b')":                            fault.Unprocessable,
		"INSERT INTO contents (cid, content_level, filename) VALUES (2, 'Bronze', 'b')":                          fault.Unprocessable,
		"UPDATE contents SET pinned_level = 'iron'":                                                              fault.Unprocessable,
		"INSERT INTO contents (cid, content_level, filename) VALUES (0, 'bronze', 'b')":                          fault.Unprocessable,
		"INSERT INTO contents (cid, content_level, filename) VALUES (2, 'bronze', 'b ')":                         fault.Unprocessable,
		"INSERT INTO contents (cid, content_level, filename) VALUES (2, 'bronze', '')":                           fault.Unprocessable,
		"INSERT INTO contents (cid, content_level, filename) VALUES (2, 'bronze', NULL)":                         fault.Unprocessable,
		"INSERT INTO contents (cid, content_level, filename) VALUES (2, 'bronze', REPEAT('x', 701))":             fault.Unprocessable,
		"INSERT INTO contents (cid, content_level) VALUES (2, 'bronze')":                                         fault.Unavailable,
		"INSERT INTO contents (cid, content_level, filename) VALUES (9223372036854775808, 'bronze', 'b')":        fault.Unprocessable,
		"INSERT INTO contents (cid, content_level, filename, update_time) VALUES (2, 'bronze', 'b', 'tomorrow')": fault.Unprocessable,
		"UPDATE contents SET view_count = -1":                                                                    fault.Unprocessable,
		"UPDATE `level` SET max_counts = 1 WHERE content_level = 'silver'":                                       fault.Unprocessable,
		"SELECT nothing FROM contents":                                                                           fault.Unavailable,
		"SELECT 1 FROM nowhere":                                                                                  fault.Unavailable,
		"SELEKT 1":                                                                                               fault.Unavailable,
	} {
		_, err := c.DB().ExecContext(t.Context(), statement)
		if got := catalog.Kind(err); got != want {
			t.Errorf("%s: %s, want %s: %v", statement, got, want, err)
		}
		if catalog.Retryable(err) {
			t.Errorf("%s: retryable: %v", statement, err)
		}
	}
}

func TestAServerThatIsAwayIsUnavailableUntilItIsBack(t *testing.T) {
	gate, dsn := testserver.MySQLGate(t, testserver.MySQL(t))
	c := open(t, dsn)
	if _, err := c.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	check := func(what string, err error) {
		t.Helper()
		if catalog.Kind(err) != fault.Unavailable || !catalog.Retryable(err) {
			t.Errorf("%s: %s: %v", what, catalog.Kind(err), err)
		}
	}
	gate.Close()
	check("ping", c.Ping(t.Context()))
	_, err := c.Row(t.Context(), 1)
	check("read", err)
	_, err = c.Migrate(t.Context())
	check("migrate", err)
	check("check the schema", c.CheckSchema(t.Context()))
	gate.Open()
	if err := c.Ping(t.Context()); err != nil {
		t.Fatalf("after Open: %v", err)
	}

	tx, err := c.DB().BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.ExecContext(t.Context(), "INSERT INTO contents (cid, content_level, filename) VALUES (7, 'bronze', 'g')"); err != nil {
		t.Fatal(err)
	}
	cut := gate.CutReply("COMMIT")
	check("a commit whose reply is lost", tx.Commit())
	<-cut
	if _, err := c.Row(t.Context(), 7); err != nil {
		t.Errorf("it was committed: %v", err)
	}
}

func TestADeadlockIsUnavailableAndRetryable(t *testing.T) {
	c := migrated(t)
	insert(t, c, 1, "bronze", "a")
	insert(t, c, 2, "bronze", "b")
	const update = "UPDATE contents SET generation = generation + 1 WHERE cid = ?"
	begin := func(id int) *sql.Tx {
		tx, err := c.DB().BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.ExecContext(t.Context(), update, id); err != nil {
			t.Fatal(err)
		}
		return tx
	}
	one, other := begin(1), begin(2)
	errs := make(chan error)
	cross := func(tx *sql.Tx, id int) {
		_, err := tx.ExecContext(t.Context(), update, id)
		tx.Rollback()
		errs <- err
	}
	go cross(one, 2)
	go cross(other, 1)
	err := errors.Join(<-errs, <-errs)
	if err == nil {
		t.Fatal("there was no deadlock")
	}
	if catalog.Kind(err) != fault.Unavailable || !catalog.Retryable(err) {
		t.Errorf("%s: %v", catalog.Kind(err), err)
	}
	if wrapped := fmt.Errorf("commit: %w", catalog.Wrap("commit", "", err)); !catalog.Retryable(wrapped) {
		t.Errorf("wrapped it is not retryable: %v", wrapped)
	}
}

func TestACallerWhoGivesUpGetsUnavailableWithHisOwnReason(t *testing.T) {
	c := migrated(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := c.DB().ExecContext(ctx, "SELECT SLEEP(10)")
	if catalog.Kind(err) != fault.Unavailable || catalog.Retryable(err) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%s: %v", catalog.Kind(err), err)
	}
}

func TestASetupProblemIsUnavailableAndHintsAtItsCure(t *testing.T) {
	cfg, err := mysql.ParseDSN(testserver.MySQL(t))
	if err != nil {
		t.Fatal(err)
	}
	for hint, change := range map[string]func(*mysql.Config){
		"create the database":          func(cfg *mysql.Config) { cfg.DBName = "tierflow_test_nowhere" },
		"check user, password, rights": func(cfg *mysql.Config) { cfg.User, cfg.Passwd = "nobody_we_know", "wrong" },
	} {
		wrong := cfg.Clone()
		change(wrong)
		err := open(t, wrong.FormatDSN()).Ping(t.Context())
		if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), strings.Split(hint, ",")[0]) {
			t.Errorf("want the hint %q: %v", hint, err)
		}
	}
}

func TestFaultsKeepTheirKind(t *testing.T) {
	f := fault.New(fault.TierRefused, "open", "gold", errors.New("no identity"))
	if got := catalog.Wrap("commit", "7", fmt.Errorf("more: %w", f)); !fault.Is(got, fault.TierRefused) {
		t.Errorf("%v", got)
	}
	if catalog.Wrap("commit", "7", nil) != nil || catalog.Kind(nil) != "" || catalog.Retryable(nil) {
		t.Error("nil is not nil")
	}
	if k := catalog.Kind(errors.New("what")); k != fault.Internal {
		t.Error(k)
	}
}

func TestAServerThatRefusesWritesIsUnavailableInItsOwnWords(t *testing.T) {
	c := migrated(t)
	conn, err := c.DB().Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.ExecContext(t.Context(), "SET SESSION TRANSACTION READ ONLY"); err != nil {
		t.Fatal(err)
	}
	_, err = conn.ExecContext(t.Context(), "UPDATE contents SET view_count = 1")
	if err = catalog.Wrap("write", "", err); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "Error 1792") ||
		!errors.Is(err, driver.ErrBadConn) {
		t.Errorf("%s: %v", fault.KindOf(err), err)
	}
	if err := c.Ping(t.Context()); err != nil {
		t.Errorf("another connection: %v", err)
	}
}

func TestAnUnknownNumberIsTheServersAndMayConcernOneRow(t *testing.T) {
	for number, divisible := range map[uint16]bool{9999: true, 1105: true, 1064: true, 1153: true, 3100: false, 1290: false, 1213: false} {
		err := catalog.Wrap("commit", "", &mysql.MySQLError{Number: number, Message: "not now"})
		if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), fmt.Sprintf("Error %d: not now", number)) ||
			catalog.Divisible(err) != divisible {
			t.Errorf("%d: %s, divisible: %v: %v", number, fault.KindOf(err), catalog.Divisible(err), err)
		}
	}
}
