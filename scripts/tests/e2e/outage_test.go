package e2e_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"testing"

	_ "github.com/go-sql-driver/mysql" // the driver of ownMySQL
	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/testenv/localserver"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// ownRedis is a Redis that the test may stop, and that keeps what it has accepted. Where only a given Redis is available, a
// gate in front of it is closed instead.
func ownRedis(t *testing.T) (url string, stop func() error, again func() error) {
	t.Helper()
	if _, err := localserver.FindRedis(); err != nil {
		gate, url := testserver.RedisGate(t, testserver.Redis(t))
		return url, func() error { gate.Close(); return nil }, func() error { gate.Open(); return nil }
	}
	r, err := localserver.StartRedis(t.Context(), localserver.Options{Dir: t.TempDir(), AppendFsync: "always"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r.URL(), r.Kill, func() error { return r.Start(context.Background()) }
}

// ownMySQL is a MySQL that the test may stop. Where that is not possible, a gate in front of it is closed instead.
func ownMySQL(t *testing.T) (dsn string, stop func() error, again func() error) {
	t.Helper()
	if _, err := localserver.FindMySQL(); err != nil {
		gate, dsn := testserver.MySQLGate(t, testserver.MySQL(t))
		return dsn, func() error { gate.Close(); return nil }, func() error { gate.Open(); return nil }
	}
	m, err := localserver.StartMySQL(t.Context(), localserver.Options{Dir: t.TempDir(), Durable: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	db, err := sql.Open("mysql", m.DSN(""))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), "CREATE DATABASE e2e"); err != nil {
		t.Fatal(err)
	}
	return m.DSN("e2e"), m.Kill, func() error { return m.Start(context.Background()) }
}

// wantRefused posts until the api refuses with 503 and says when to retry.
func (w *world) wantRefused(id item.ID, count item.Count) {
	w.t.Helper()
	testserver.Eventually(w.t, "503 unavailable", patience, func() error {
		err := w.Post(context.Background(), id, count)
		var p *client.Problem
		if !errors.As(err, &p) || p.Status != http.StatusServiceUnavailable || p.Kind() != fault.Unavailable {
			return fmt.Errorf("it was answered with %w", err)
		}
		return nil
	})
}

// wantAccepted posts until the api accepts again.
func (w *world) wantAccepted(id item.ID, count item.Count) {
	w.t.Helper()
	testserver.Eventually(w.t, "200", patience, func() error { return w.Post(context.Background(), id, count) })
}

func TestARedisThatIsKilledAndComesBackCostsNoAcceptedCount(t *testing.T) {
	url, stop, again := ownRedis(t)
	w := start(t, options{redisURL: url, relocators: 2})
	for id := item.ID(1); id <= 40; id++ {
		w.add(id, "bronze", 50_000)
	}
	for id := item.ID(1); id <= 40; id++ {
		w.post(id, 1500)
	}
	w.must("kill Redis", stop())
	w.wantRefused(1, 0)
	w.must("start Redis", again())
	w.wantAccepted(1, 5000)
	w.checkSettled()
}

func TestWhileMySQLIsAwayKnownItemsAreAcceptedAndAllIsDoneWhenItIsBack(t *testing.T) {
	dsn, stop, again := ownMySQL(t)
	w := start(t, options{mysqlDSN: dsn})
	w.add(1, "bronze", 50_000)
	w.add(2, "bronze", 50_000)
	w.post(1, 1500) // now the api knows the item
	w.waitLevel(1, "silver")
	w.must("kill MySQL", stop())
	w.wantRefused(2, 1500)
	w.post(1, 5000)
	w.post(1, 10)
	w.post(1, 7000)
	w.must("start MySQL", again())
	w.wantAccepted(2, 1500)
	w.waitLevel(1, "gold")
	w.checkSettled()
}

func TestWithRedisWipedMySQLAndTheTiersAreEnough(t *testing.T) {
	w := start(t, options{settings: slowly})
	w.add(2, "bronze", 1000)
	w.startBigMove(1, "relocator-1")
	// This does what FLUSHALL does, but other tests use this Redis as well.
	keys, err := w.Redis.Keys(t.Context(), w.Keys.Views()[:len(w.Keys.Views())-len("views")]+"*").Result()
	w.must("list keys", err)
	w.must("delete all keys", w.Redis.Del(t.Context(), keys...).Err())
	w.wantAccepted(2, 1500)
	w.waitLevel(2, "silver")
	w.wantAccepted(1, 5000)
	w.checkSettled()
}
