// Package testserver gives tests real servers: the ones that TIERFLOW_TEST_REDIS_URL and
// TIERFLOW_TEST_MYSQL_DSN name, else private ones, one of each kind for a test process
// (TIERFLOW_TEST_MYSQLD picks the MySQL binary). It is for tests only.
//
// A package that uses it has
//
//	func TestMain(m *testing.M) { testserver.Main(m) }
package testserver

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"fmt"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/testenv/localserver"
)

// cleanupTimeout is long enough for a slow machine. It is short enough to fail in the test that left a transaction open.
const cleanupTimeout = 30 * time.Second

var (
	mainRuns atomic.Bool

	closersMu sync.Mutex
	closers   []func() error // of the private servers

	privateRedis = sync.OnceValues(func() (string, error) {
		// With "no", only a crash of the machine loses data.
		s, err := localserver.StartRedis(context.Background(), localserver.Options{AppendFsync: "no"})
		if err != nil {
			return "", err
		}
		closeAtExit(s.Close)
		return s.URL(), nil
	})
	privateCluster = sync.OnceValues(func() (*localserver.RedisCluster, error) {
		c, err := localserver.StartRedisCluster(context.Background(), 3, localserver.Options{AppendFsync: "no"})
		if err != nil {
			return nil, err
		}
		closeAtExit(c.Close)
		return c, nil
	})
	privateMySQL = sync.OnceValues(func() (string, error) {
		o := localserver.Options{Binary: os.Getenv("TIERFLOW_TEST_MYSQLD")}
		s, err := localserver.StartMySQL(context.Background(), o)
		if err != nil {
			return "", err
		}
		closeAtExit(s.Close)
		return s.DSN(""), nil
	})
)

func closeAtExit(c func() error) {
	closersMu.Lock()
	defer closersMu.Unlock()
	closers = append(closers, c)
}

// Main runs the tests of a package (m is its *testing.M, or what wraps it), stops the private servers, removes their
// folders and exits.
func Main(m interface{ Run() int }) {
	mainRuns.Store(true)
	code := m.Run()
	closersMu.Lock()
	for _, c := range closers {
		if err := c(); err != nil {
			fmt.Fprintln(os.Stderr, "testserver:", err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// private calls one of the starters above.
func private(t testing.TB, start func() (string, error)) string {
	t.Helper()
	if !mainRuns.Load() {
		t.Fatal("the package needs: func TestMain(m *testing.M) { testserver.Main(m) }")
	}
	address, err := start()
	if err != nil {
		t.Fatalf("a server for this test: %v", err)
	}
	return address
}

// Redis returns the URL of the test process' Redis. Tests share it: see Prefix.
func Redis(t testing.TB) string {
	t.Helper()
	if given := os.Getenv("TIERFLOW_TEST_REDIS_URL"); given != "" {
		return given
	}
	return private(t, privateRedis)
}

// RedisCluster returns the test process' private Redis Cluster: three masters with a replica each. Tests share it, with
// prefixes of their own: see ClusterPrefix. A test that breaks a cluster starts another one.
func RedisCluster(t testing.TB) *localserver.RedisCluster {
	t.Helper()
	if !mainRuns.Load() {
		t.Fatal("the package needs: func TestMain(m *testing.M) { testserver.Main(m) }")
	}
	c, err := privateCluster()
	if err != nil {
		t.Fatalf("a cluster for this test: %v", err)
	}
	return c
}

// ClusterPrefix returns a key prefix for this test in RedisCluster. Its keys stay until the cluster is removed.
func ClusterPrefix() string { return "t" + random() + ":" }

// Prefix returns a key prefix for this test in Redis, such as "t3f9a12:". Its keys are deleted at the end of the test.
func Prefix(t testing.TB) string {
	t.Helper()
	options, err := redis.ParseURL(Redis(t))
	if err != nil {
		t.Fatalf("TIERFLOW_TEST_REDIS_URL: %v", err)
	}
	prefix := "t" + random() + ":"
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
		defer cancel()
		c := redis.NewClient(options)
		defer c.Close()
		keys := c.Scan(ctx, 0, prefix+"*", 1000).Iterator()
		for keys.Next(ctx) {
			if err := c.Unlink(ctx, keys.Val()).Err(); err != nil {
				t.Errorf("delete %s: %v", keys.Val(), err)
			}
		}
		if err := keys.Err(); err != nil {
			t.Errorf("delete the keys of %s: %v", prefix, err)
		}
	})
	return prefix
}

// RedisUser makes a user of Redis with only these rights, written as for ACL SETUSER. It returns the URL with the user's
// name and password. allow adds rights. The user is deleted at the end of the test.
func RedisUser(t testing.TB, rights ...string) (userURL string, allow func(rights ...string)) {
	t.Helper()
	u, err := url.Parse(Redis(t))
	if err != nil {
		t.Fatal(err)
	}
	options, err := redis.ParseURL(Redis(t))
	if err != nil {
		t.Fatal(err)
	}
	name, password := "u"+random(), random()
	acl := func(ctx context.Context, words ...any) {
		t.Helper()
		c := redis.NewClient(options)
		defer c.Close()
		if err := c.Do(ctx, append([]any{"ACL"}, words...)...).Err(); err != nil {
			t.Errorf("ACL %v: %v", words, err)
		}
	}
	allow = func(rights ...string) {
		t.Helper()
		words := []any{"SETUSER", name}
		for _, r := range rights {
			words = append(words, r)
		}
		acl(t.Context(), words...)
	}
	allow(append([]string{"on", ">" + password}, rights...)...)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
		defer cancel()
		acl(ctx, "DELUSER", name)
	})
	u.User = url.UserPassword(name, password)
	return u.String(), allow
}

// MySQL returns the DSN of a new, empty database, which is dropped at the end of the test. Its only parameters are those of
// TIERFLOW_TEST_MYSQL_DSN. The account of that DSN must be allowed to make databases and users.
func MySQL(t testing.TB) string {
	t.Helper()
	dsn := os.Getenv("TIERFLOW_TEST_MYSQL_DSN")
	if dsn == "" {
		dsn = private(t, privateMySQL)
	}
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil {
		t.Fatalf("TIERFLOW_TEST_MYSQL_DSN: %v", err)
	}
	cfg.DBName = ""
	server := cfg.FormatDSN()
	cfg.DBName = "tierflow_test_" + random()
	exec := func(statement string) error {
		ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
		defer cancel()
		db, err := sql.Open("mysql", server)
		if err != nil {
			return err
		}
		defer db.Close()
		_, err = db.ExecContext(ctx, statement)
		return err
	}
	if err := exec("CREATE DATABASE " + cfg.DBName); err != nil {
		t.Fatalf("make a database for this test: %v", err)
	}
	t.Cleanup(func() {
		if err := exec("DROP DATABASE " + cfg.DBName); err != nil {
			t.Errorf("drop this test's database (does it leave a transaction open?): %v", err)
		}
	})
	return cfg.FormatDSN()
}

// Eventually calls check until it returns nil. After the deadline it fails the test with what, which names the expected
// event, and with check's last error.
func Eventually(t testing.TB, what string, deadline time.Duration, check func() error) {
	t.Helper()
	end := time.Now().Add(deadline)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: not within %s: %v", what, deadline, err)
		}
		time.Sleep(pause)
	}
}

func random() string {
	var b [5]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
