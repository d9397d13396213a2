package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m) }

// A second run refuses a database that has a table.
func TestAGivenDatabaseIsEmptyAgainAfterARun(t *testing.T) {
	ctx, dsn := t.Context(), testserver.MySQL(t)
	for range 2 {
		given, err := claimDatabase(ctx, dsn)
		if err != nil {
			t.Fatal(err)
		}
		c, err := catalog.Open(given.address, catalog.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Migrate(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := c.DB().ExecContext(ctx, "INSERT INTO contents (cid, content_level, filename) VALUES (1, 'bronze', 'a')"); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if err := given.release(ctx); err != nil {
			t.Fatal(err)
		}
		if left, err := tables(ctx, dsn); err != nil || len(left) > 0 {
			t.Fatalf("left: %v, %v", left, err)
		}
	}
}

func TestAGivenRedisHasNoKeyOfTheRunAfterIt(t *testing.T) {
	ctx, url := t.Context(), testserver.Redis(t)
	rdb, err := state.Connect(url, 3)
	if err != nil {
		t.Fatal(err)
	}
	defer rdb.Close()
	q := quickstart{arguments: arguments{RedisURL: url}}
	given, _, err := q.startRedis(ctx)
	if err != nil {
		t.Fatal(err)
	}
	other := testserver.Prefix(t) + "other"
	for _, key := range []string{q.prefix + "views", q.prefix + "content:7", other} {
		if err := rdb.Set(ctx, key, "x", 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	if err := given.release(ctx); err != nil {
		t.Fatal(err)
	}
	if left, err := rdb.Keys(ctx, q.prefix+"*").Result(); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if left, err := rdb.Keys(ctx, other).Result(); err != nil || !slices.Equal(left, []string{other}) {
		t.Errorf("a key of somebody else is gone: %v, %v", left, err)
	}
}

func TestTheCommandLinesReachTheServersAndShowNoChosenPassword(t *testing.T) {
	for address, want := range map[string]string{
		"redis://127.0.0.1:20001/0":              "redis-cli -p 20001",
		"redis://redis.example.org:6379/2":       "redis-cli -u redis://redis.example.org:6379/2",
		"rediss://me:hidden@redis.example.org/0": "redis-cli -u rediss://me@redis.example.org/0 --askpass",
	} {
		if got := redisCommand(address); got != want {
			t.Errorf("%s: %q, want %q", address, got, want)
		}
	}
	for dsn, want := range map[string]string{
		"root@tcp(127.0.0.1:20001)/tierflow":              " -h 127.0.0.1 -P 20001 -u root tierflow",
		"tierflow:tierflow@tcp(127.0.0.1:20001)/tierflow": " -h 127.0.0.1 -P 20001 -u tierflow -ptierflow tierflow",
		"me:hidden@tcp(db.example.org:3306)/t":            " -h db.example.org -P 3306 -u me -p t",
		"me@unix(/run/mysqld.sock)/t":                     " -S /run/mysqld.sock -u me t",
	} {
		if _, got, _ := strings.Cut(mysqlCommand(dsn), " "); " "+got != want {
			t.Errorf("%s: %q, want %q", dsn, got, want)
		}
	}
}

func TestAServerThatIsTooOldIsRecognized(t *testing.T) {
	for version, want := range map[string]bool{"7.0.15": true, "8.0": true, "6.2.9": false, "10.11.4": true, "": false, "seven": false} {
		if got := isVersion(version, 7, 0); got != want {
			t.Errorf("%s is at least 7.0: %v", version, got)
		}
	}
	if isVersion("10.6.12", 10, 11) {
		t.Error("10.6 is taken for later than 10.11")
	}
}
