package localserver_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/go-sql-driver/mysql"
	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/testenv/localserver"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// parentDir makes this test binary a parent that starts servers in the folder, prints their process ids and
// waits to be killed.
const parentDir = "LOCALSERVER_TEST_PARENT_DIR"

func TestMain(m *testing.M) {
	dir := os.Getenv(parentDir)
	if dir == "" {
		testserver.Main(m)
	}
	ctx := context.Background()
	r, err := localserver.StartRedis(ctx, localserver.Options{Dir: filepath.Join(dir, "redis")})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	my, err := localserver.StartMySQL(ctx, localserver.Options{Dir: filepath.Join(dir, "mysql"), Binary: mysqld()})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(r.PID(), my.PID())
	select {}
}

func mysqld() string { return os.Getenv("TIERFLOW_TEST_MYSQLD") }

func TestRedisKeepsItsDataOverAKillAndAStop(t *testing.T) {
	ctx := t.Context()
	dir := filepath.Join(t.TempDir(), "made", "here")
	r, err := localserver.StartRedis(ctx, localserver.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	options, err := redis.ParseURL(r.URL())
	if err != nil {
		t.Fatal(err)
	}
	c := redis.NewClient(options)
	defer c.Close()
	if err := c.Set(ctx, "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	for name, end := range map[string]func() error{"kill": r.Kill, "stop": r.Stop} {
		if err := end(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if r.PID() != 0 {
			t.Fatalf("after %s the process id is %d", name, r.PID())
		}
		if err := c.Get(ctx, "k").Err(); err == nil {
			t.Fatalf("after %s it still answers", name)
		}
		if err := r.Start(ctx); err != nil {
			t.Fatal(err)
		}
		if v := c.Get(ctx, "k").Val(); v != "v" {
			t.Fatalf("after %s the value is %q", name, v)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("Close left the folder that StartRedis made: %v", err)
	}
}

func TestAPausedServerDoesNotAnswerUntilItIsResumed(t *testing.T) {
	r, err := localserver.StartRedis(t.Context(), localserver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c := redis.NewClient(&redis.Options{Addr: r.Addr(), ReadTimeout: 100 * time.Millisecond, MaxRetries: -1})
	defer c.Close()
	if err := r.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := c.Ping(t.Context()).Err(); err == nil {
		t.Fatal("a paused server answered")
	}
	if err := r.Resume(); err != nil {
		t.Fatal(err)
	}
	testserver.Eventually(t, "an answer after Resume", 10*time.Second, func() error { return c.Ping(t.Context()).Err() })
	if err := r.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := r.Stop(); err != nil {
		t.Fatalf("stop a paused server: %v", err)
	}
}

func TestMySQLKeepsWhatItCommittedOverAKillAndGoesOnInTheSameFolder(t *testing.T) {
	ctx := t.Context()
	// The path is too long for a socket.
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	m, err := localserver.StartMySQL(ctx, localserver.Options{Dir: dir, Binary: mysqld()})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	db := open(t, m, "")
	for _, statement := range []string{"CREATE DATABASE d", "CREATE TABLE d.t (n INT)", "INSERT INTO d.t VALUES (7)"} {
		if _, err := db.ExecContext(ctx, statement); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := m.Start(ctx); err != nil {
		t.Fatal(err)
	}
	want := func(db *sql.DB) {
		t.Helper()
		var n int
		if err := db.QueryRowContext(ctx, "SELECT n FROM t").Scan(&n); err != nil || n != 7 {
			t.Fatalf("n = %d, %v", n, err)
		}
	}
	want(open(t, m, "d"))
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}

	again, err := localserver.StartMySQL(ctx, localserver.Options{Dir: dir, Binary: mysqld(), Durable: true})
	if err != nil {
		t.Fatalf("start on the data of an earlier server: %v", err)
	}
	defer again.Close()
	want(open(t, again, "d"))
}

func open(t *testing.T, m *localserver.MySQL, database string) *sql.DB {
	t.Helper()
	db, err := sql.Open("mysql", m.DSN(database))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func TestServersDieWithAParentThatIsKilled(t *testing.T) {
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), parentDir+"="+t.TempDir())
	parent.Stderr = os.Stderr
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	var pids [2]int
	if _, err := fmt.Fscan(out, &pids[0], &pids[1]); err != nil {
		t.Fatalf("the parent said nothing: %v", err)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	parent.Wait()
	for _, pid := range pids {
		testserver.Eventually(t, "the end of a server whose parent was killed", 10*time.Second, func() error {
			// A zombie has ended as well; only its parent has not yet waited for it.
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if err != nil || strings.Contains(string(stat), ") Z ") {
				return nil
			}
			return fmt.Errorf("process %d lives: %s", pid, stat)
		})
	}
}

func TestAFailingStartShowsTheLogAndLeavesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "redis")
	_, err := localserver.StartRedis(t.Context(), localserver.Options{Dir: dir, AppendFsync: "sometimes"})
	if err == nil || !strings.Contains(err.Error(), "appendfsync") {
		t.Fatalf("the error does not show what Redis said: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("it left its folder: %v", err)
	}
}

func TestAPortThatIsTakenIsAnErrorEvenIfARedisAnswersThere(t *testing.T) {
	first, err := localserver.StartRedis(t.Context(), localserver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	var port int
	fmt.Sscanf(first.Addr(), "127.0.0.1:%d", &port)
	second, err := localserver.StartRedis(t.Context(), localserver.Options{Port: port})
	if err == nil {
		second.Close()
		t.Fatal("a second server started on the port of the first")
	}
}

func TestManyMySQLServersStartAtOnce(t *testing.T) {
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			m, err := localserver.StartMySQL(t.Context(), localserver.Options{Binary: mysqld()})
			if err != nil {
				t.Error(err)
				return
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}
