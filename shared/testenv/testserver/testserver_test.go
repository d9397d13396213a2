package testserver_test

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/testenv/localserver"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m) }

func client(t *testing.T, url string) *redis.Client {
	t.Helper()
	o, err := redis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	o.MaxRetries = -1
	c := redis.NewClient(o)
	t.Cleanup(func() { c.Close() })
	return c
}

func TestAPrefixIsTheTestsOwnAndItsKeysGoAway(t *testing.T) {
	c := client(t, testserver.Redis(t))
	var mine string
	t.Run("use", func(t *testing.T) {
		mine = testserver.Prefix(t)
		if other := testserver.Prefix(t); other == mine {
			t.Fatalf("two prefixes are the same: %s", other)
		}
		for _, key := range []string{"a", "{p01}:b"} {
			if err := c.Set(t.Context(), mine+key, 1, 0).Err(); err != nil {
				t.Fatal(err)
			}
		}
	})
	if left := c.Keys(t.Context(), mine+"*").Val(); len(left) > 0 {
		t.Fatalf("left: %v", left)
	}
}

func TestADatabaseIsFreshAndGoesAway(t *testing.T) {
	var dsn string
	t.Run("use", func(t *testing.T) {
		dsn = testserver.MySQL(t)
		db, err := sql.Open("mysql", dsn)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if _, err := db.Exec("CREATE TABLE t (n INT)"); err != nil {
			t.Fatal(err)
		}
		if other := testserver.MySQL(t); other == dsn {
			t.Fatal("two databases are the same")
		}
	})
	db, err := sql.Open("mysql", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Ping(); err == nil {
		t.Fatal("the database is still there")
	}
}

func TestAClosedGateCutsAndRefusesAndAnOpenOneLetsThrough(t *testing.T) {
	gate, url := testserver.RedisGate(t, testserver.Redis(t))
	key := testserver.Prefix(t) + "k"
	c := client(t, url)
	direct := client(t, testserver.Redis(t))
	if err := c.Set(t.Context(), key, "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	blocked := make(chan error)
	go func() { blocked <- c.BLPop(t.Context(), 0, key+":none").Err() }()
	testserver.Eventually(t, "the blocked client", 10*time.Second, func() error {
		if list := direct.ClientList(t.Context()).Val(); !strings.Contains(list, "cmd=blpop") {
			return errors.New(list)
		}
		return nil
	})
	gate.Close()
	if err := <-blocked; err == nil {
		t.Fatal("a blocked read was not cut")
	}
	if err := c.Get(t.Context(), key).Err(); err == nil {
		t.Fatal("a closed gate let a request through")
	}
	if err := direct.Get(t.Context(), key).Err(); err != nil {
		t.Fatalf("the server itself is away: %v", err)
	}
	gate.Open()
	if v, err := c.Get(t.Context(), key).Result(); v != "v" {
		t.Fatalf("after Open: %q, %v", v, err)
	}
}

func TestAGateOpensAgainWhileProcessesAreBeingStarted(t *testing.T) {
	gate, _ := testserver.RedisGate(t, testserver.Redis(t))
	testserver.StartProcesses(t)
	for range 300 {
		gate.Close()
		gate.Open()
	}
}

func TestTheServerHasDoneARequestWhoseReplyIsCut(t *testing.T) {
	gate, url := testserver.RedisGate(t, testserver.Redis(t))
	key := testserver.Prefix(t) + "n"
	c := client(t, url)
	done := gate.CutReply("incr")
	if err := c.Set(t.Context(), key, 1, 0).Err(); err != nil {
		t.Fatalf("another request was cut: %v", err)
	}
	if err := c.Incr(t.Context(), key).Err(); err == nil {
		t.Fatal("the reply arrived")
	}
	<-done
	if n := c.Incr(t.Context(), key).Val(); n != 3 {
		t.Fatalf("n = %d, want 3: the cut request was done once and the next one passed", n)
	}
}

func TestMySQLHasDoneAStatementWhoseReplyIsCut(t *testing.T) {
	gate, dsn := testserver.MySQLGate(t, testserver.MySQL(t))
	db, err := sql.Open("mysql", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("CREATE TABLE t (n INT)"); err != nil {
		t.Fatal(err)
	}
	done := gate.CutReply("INSERT")
	if _, err := db.Exec("INSERT INTO t VALUES (1)"); err == nil {
		t.Fatal("the reply arrived")
	}
	<-done
	var n int
	if err := db.QueryRow("SELECT COUNT(*) FROM t").Scan(&n); err != nil || n != 1 {
		t.Fatalf("n = %d, %v", n, err)
	}
}

func TestALostRequestWasNotDoneAndALostReplyWas(t *testing.T) {
	gate, url := testserver.RedisGate(t, testserver.Redis(t))
	key := testserver.Prefix(t) + "n"
	c := client(t, url)
	for fate, want := range map[testserver.Fate]int64{testserver.Pass: 2, testserver.LoseRequest: 1, testserver.LoseReply: 2} {
		c.Del(t.Context(), key)
		gate.Judge(func(request []byte) testserver.Fate {
			if bytes.Contains(request, []byte("incrby")) {
				return fate
			}
			return testserver.Pass
		})
		if err := c.IncrBy(t.Context(), key, 1).Err(); (err == nil) != (fate == testserver.Pass) {
			t.Errorf("fate %d: %v", fate, err)
		}
		gate.Judge(nil)
		if n := c.IncrBy(t.Context(), key, 1).Val(); n != want {
			t.Errorf("fate %d: n = %d, want %d", fate, n, want)
		}
	}
}

func TestARedirectedGateLeadsToTheOtherServer(t *testing.T) {
	other, err := localserver.StartRedis(t.Context(), localserver.Options{Dir: t.TempDir()})
	if err != nil {
		t.Skipf("a second Redis is needed: %v", err)
	}
	t.Cleanup(func() { other.Close() })
	gate, url := testserver.RedisGate(t, testserver.Redis(t))
	c := client(t, url)
	key := testserver.Prefix(t) + "k"
	if err := c.Set(t.Context(), key, "first", 0).Err(); err != nil {
		t.Fatal(err)
	}
	gate.Redirect(other.Addr())
	testserver.Eventually(t, "the other server's answer", 10*time.Second, func() error {
		if err := c.Get(t.Context(), key).Err(); !errors.Is(err, redis.Nil) {
			return fmt.Errorf("%v", err)
		}
		return nil
	})
}
