package commit_test

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/testenv/localserver"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// serverState is a state in which a server refuses every commit.
type serverState struct {
	name       string
	mysqlOnly  bool
	enter      []string // SQL of root in the world's database
	reconnect  bool     // the state concerns new sessions
	leave      []string
	says, hint string
	// begin, where it is set, begins the state; SQL alone cannot.
	begin func(t *testing.T, server *localserver.MySQL, root *sql.DB, temporary string) (end func())
}

var serverStates = []serverState{
	{name: "read_only", enter: []string{"SET GLOBAL read_only = ON"}, leave: []string{"SET GLOBAL read_only = OFF"},
		says: "Error 1290", hint: "primary"},
	{name: "super_read_only", mysqlOnly: true, enter: []string{"SET GLOBAL super_read_only = ON"},
		leave: []string{"SET GLOBAL super_read_only = OFF", "SET GLOBAL read_only = OFF"}, says: "Error 1290", hint: "primary"},
	{name: "read-only transactions", reconnect: true, enter: []string{"SET GLOBAL %[1]s = ON"},
		leave: []string{"SET GLOBAL %[1]s = OFF"}, says: "Error 1792", hint: "primary"},
	{name: "binlog_format=STATEMENT", reconnect: true, enter: []string{"SET GLOBAL binlog_format = STATEMENT"},
		leave: []string{"SET GLOBAL binlog_format = ROW"}, says: "Error 1665", hint: "binlog_format=ROW"},
	{name: "a replication hook", enter: []string{refuse(3100)}, leave: []string{"DROP TRIGGER refuse"}, says: "Error 3100", hint: "error log"},
	{name: "a full table", enter: []string{refuse(1114)}, leave: []string{"DROP TRIGGER refuse"}, says: "Error 1114", hint: "make room"},
	{name: "a syntax that it does not know", enter: []string{refuse(1064)}, leave: []string{"DROP TRIGGER refuse"}, says: "Error 1064"},
	{name: "an error that nobody knows", enter: []string{refuse(9999)}, leave: []string{"DROP TRIGGER refuse"}, says: "Error 9999"},
	{name: "a locked account", reconnect: true, enter: []string{"ALTER USER 'tierflow'@'127.0.0.1' ACCOUNT LOCK"},
		leave: []string{"ALTER USER 'tierflow'@'127.0.0.1' ACCOUNT UNLOCK"}, says: "ccount"},
	{name: "offline_mode", mysqlOnly: true, enter: []string{"SET GLOBAL offline_mode = ON"}, leave: []string{"SET GLOBAL offline_mode = OFF"},
		says: "Error 3032"},
	{name: "no connection for the account", reconnect: true,
		enter: []string{"ALTER USER 'tierflow'@'127.0.0.1' WITH MAX_QUERIES_PER_HOUR 1"},
		leave: []string{"ALTER USER 'tierflow'@'127.0.0.1' WITH MAX_QUERIES_PER_HOUR 0", "FLUSH USER_RESOURCES"}, says: "Error 1226"},
	{name: "no connection left", begin: takeConnections, says: "Error 1040 (08004): Too many connections"},
	{name: "no temporary space", begin: fillTemporary, says: "Error 3 (HY000): Error writing file", hint: "make room", leave: []string{"DROP TRIGGER more"}, enter: []string{
		"CREATE TABLE more (text MEDIUMTEXT)", // a transaction needs the space when it does not fit into the server's memory
		"CREATE TRIGGER more AFTER UPDATE ON contents FOR EACH ROW INSERT INTO more VALUES (REPEAT('x', 100000))"}},
}

// refuse makes a trigger that fails every change of contents with this number.
func refuse(number int) string {
	return fmt.Sprintf("CREATE TRIGGER refuse BEFORE UPDATE ON contents FOR EACH ROW"+
		" SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = %d, MESSAGE_TEXT = 'not now'", number)
}

func TestWhileTheServerRefusesWritesEveryEntryWaits(t *testing.T) {
	temporary := smallTemporaryFolder(t)
	server, err := localserver.StartMySQL(t.Context(), localserver.Options{
		Binary:    os.Getenv("TIERFLOW_TEST_MYSQLD"),
		Arguments: []string{"--log-bin=binlog", "--server-id=1", "--binlog-format=ROW", "--binlog-cache-size=4096", "--tmpdir=" + temporary},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	root, err := sql.Open("mysql", server.DSN("mysql"))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var version string
	if err := root.QueryRow("SELECT VERSION()").Scan(&version); err != nil {
		t.Fatal(err)
	}
	mariadb := strings.Contains(version, "MariaDB")
	if _, err := root.Exec("CREATE USER 'tierflow'@'127.0.0.1'"); err != nil {
		t.Fatal(err)
	}
	for i, s := range serverStates {
		if s.mysqlOnly && mariadb {
			continue
		}
		t.Run(s.name, func(t *testing.T) { testServerState(t, server, root, s, fmt.Sprintf("state%d", i), temporary, mariadb) })
	}
}

func testServerState(t *testing.T, server *localserver.MySQL, root *sql.DB, s serverState, name, temporary string, mariadb bool) {
	const n = 40
	for _, statement := range []string{"CREATE DATABASE " + name, "GRANT ALL ON " + name + ".* TO 'tierflow'@'127.0.0.1'"} {
		if _, err := root.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	w := newWorldOn(t, server.DSN(name), n)
	w.attempts = 1 // a wait is no attempt
	core, logs := observer.New(zapcore.InfoLevel)
	w.log = zap.New(core)
	asRoot := func(statements []string) {
		t.Helper()
		variable := "transaction_read_only"
		if mariadb && !hasVariable(t, root, variable) {
			variable = "tx_read_only"
		}
		for _, statement := range statements {
			if strings.Contains(statement, "%[1]s") {
				statement = fmt.Sprintf(statement, variable)
			}
			w.exec(statement)
		}
	}
	w.emit(relocated(1, 1).Fields())
	stop := w.start("w1", w.redisURL, strings.Replace(w.dsn, "root@", "tierflow@", 1))
	w.settled()
	asRoot(s.enter)
	end := func() {}
	if s.begin != nil {
		end = s.begin(t, server, root, temporary)
	}
	if s.reconnect {
		killSessions(t, root)
	}
	for id := item.ID(2); id <= n; id++ {
		w.emit(relocated(int(id), id).Fields())
	}
	testserver.Eventually(t, "the last commit's error is known", 20*time.Second, func() error {
		err := w.last.CheckCommit(t.Context())
		if err == nil || !strings.Contains(err.Error(), s.says) || !strings.Contains(err.Error(), s.hint) {
			return fmt.Errorf("the check says: %v", err)
		}
		return nil
	})
	time.Sleep(1500 * time.Millisecond) // some more tries
	end()
	asRoot(s.leave)
	w.settled()
	for id := item.ID(1); id <= n; id++ {
		w.expectRow(id, "gold", 1, 1)
	}
	if fs, _ := w.dead(); len(fs) != 0 {
		t.Errorf("%d dead letters, the first: %+v", len(fs), fs[0])
	}
	if err := w.last.CheckCommit(t.Context()); err != nil {
		t.Errorf("all is committed, and the check says: %v", err)
	}
	stop()
	if begun := logs.FilterMessage("commits wait and are tried again").Len(); begun != 1 {
		t.Errorf("it was logged %d times that commits wait", begun)
	}
	if ended := logs.FilterMessage("commits wait no more").Len(); ended != 1 {
		t.Errorf("it was logged %d times that commits wait no more", ended)
	}
}

func hasVariable(t *testing.T, db *sql.DB, name string) bool {
	t.Helper()
	rows, err := db.Query("SHOW GLOBAL VARIABLES LIKE '" + name + "'")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	return rows.Next()
}

// killSessions ends the sessions of the committer.
func killSessions(t *testing.T, root *sql.DB) {
	t.Helper()
	rows, err := root.Query("SELECT id FROM information_schema.processlist WHERE user = 'tierflow'")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var ids []int64
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	for _, id := range ids {
		_, _ = root.Exec(fmt.Sprintf("KILL %d", id)) // it may have ended
	}
}

func TestAnErrorThatNobodyKnowsAndConcernsOneRowHoldsUpThatRowOnly(t *testing.T) {
	w := newWorld(t, 30)
	w.attempts = 1
	w.exec("CREATE TRIGGER refuse BEFORE UPDATE ON contents FOR EACH ROW IF NEW.cid = 7 THEN" +
		" SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 9999, MESSAGE_TEXT = 'not this one'; END IF")
	for id := item.ID(1); id <= 30; id++ {
		w.emit(relocated(int(id), id).Fields())
	}
	w.run()
	testserver.Eventually(t, "the others are committed", 20*time.Second, func() error {
		if cs := w.committed(); len(cs) != 29 {
			return fmt.Errorf("%d are", len(cs))
		}
		if w.last.Waiting(t.Context()) == nil && w.last.CheckCommit(t.Context()) == nil {
			return errors.New("nobody says that one waits")
		}
		return nil
	})
	w.exec("DROP TRIGGER refuse")
	w.settled()
	w.expectRow(7, "gold", 1, 1)
	if fs, _ := w.dead(); len(fs) != 0 {
		t.Errorf("dead: %+v", fs)
	}
}

func TestAnOpenTransactionOnALevelHoldsUpThatLevelOnly(t *testing.T) {
	const (
		row   = "UPDATE `level` SET path = '/elsewhere' WHERE content_level = 'gold'"
		items = "SELECT * FROM contents WHERE content_level = 'gold' FOR UPDATE"
	)
	for _, c := range []struct {
		name, statement string
		minIdle         time.Duration
	}{
		{"the level's row", row, 30 * time.Second},
		{"all of its items", items, 30 * time.Second},
		{"the level's row, and others take entries over soon", row, 500 * time.Millisecond},
		{"all of its items, and others take entries over soon", items, 500 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, 300)
			w.attempts, w.minIdle = 1, c.minIdle // an entry that is taken over several times becomes a dead letter
			// The gap before the first item of silver belongs to gold.
			w.exec("UPDATE contents SET content_level = 'silver' WHERE cid = 1")
			w.exec("UPDATE contents SET content_level = 'gold' WHERE cid = 3")
			// Another pool: the isolation level is the server's default, as an operator's is.
			db, err := sql.Open("mysql", w.dsn)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			tx, err := db.Begin()
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback()
			if _, err := tx.Exec(c.statement); err != nil {
				t.Fatal(err)
			}
			for id := item.ID(4); id <= 300; id++ {
				e := relocated(int(id), id)
				if id%3 != 0 {
					e.To = "silver"
				}
				w.emit(e.Fields())
			}
			w.run()
			first := w.last
			w.start("w2", w.redisURL, w.dsn)
			testserver.Eventually(t, "those of the other level are committed", 30*time.Second, func() error {
				if cs := w.committed(); len(cs) != 198 {
					return fmt.Errorf("%d are", len(cs))
				}
				if err := errors.Join(first.Waiting(t.Context()), w.last.Waiting(t.Context())); err == nil || !strings.Contains(err.Error(), "gold") {
					return fmt.Errorf("why the rest waits: %v", err)
				}
				return nil
			})
			if err := tx.Rollback(); err != nil {
				t.Fatal(err)
			}
			w.settled()
			w.expectRow(6, "gold", 1, 1)
			if fs, _ := w.dead(); len(fs) != 0 {
				t.Errorf("dead: %+v", fs)
			}
		})
	}
}
