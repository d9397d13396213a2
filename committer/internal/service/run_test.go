package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/process"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/localserver"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m) }

// command runs the program with arguments and returns its exit code and what it wrote.
func command(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = Main(t.Context(), args, &out, &errs)
	return code, out.String(), errs.String()
}

func freeAddress(t *testing.T) string {
	t.Helper()
	port, err := localserver.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", port)
}

func TestWrongSettingsAreAllNamedAtOnce(t *testing.T) {
	t.Setenv("TIERFLOW_CONCURRENCY", "another program's")
	code, _, stderr := command(t, "serve", "--drain=x", "--max-attempts=0", "--admin-listen=nowhere", "--redis-url=http://x",
		"--mysql-dsn=user@tcp(127.0.0.1:3306)/", "--log-level=loud", "--worker-id=a b")
	if code != process.Settings {
		t.Errorf("exit code %d", code)
	}
	for _, name := range []string{"DRAIN", "MAX_ATTEMPTS", "ADMIN_LISTEN", "REDIS_URL", "MYSQL_DSN", "LOG_LEVEL", "WORKER_ID"} {
		if !strings.Contains(stderr, "TIERFLOW_"+name+": ") {
			t.Errorf("TIERFLOW_%s is not named", name)
		}
	}
	if strings.Contains(stderr, "CONCURRENCY") || t.Failed() {
		t.Errorf("stderr: %s", stderr)
	}
}

func TestAnUnknownVerbIsRefused(t *testing.T) {
	if code, _, stderr := command(t, "dance"); code != process.Settings || !strings.Contains(stderr, "dance") {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
}

func TestVersionNeedsNoSettings(t *testing.T) {
	t.Setenv("TIERFLOW_DRAIN", "wrong")
	if code, stdout, _ := command(t, "version"); code != process.OK || !strings.HasPrefix(stdout, "committer ") {
		t.Errorf("exit code %d, stdout %q", code, stdout)
	}
}

func TestMigrateSaysWhatItApplied(t *testing.T) {
	dsn := testserver.MySQL(t)
	t.Run("from several places at once", func(t *testing.T) {
		var wg sync.WaitGroup
		outs := make([]bytes.Buffer, 3)
		for i := range outs {
			wg.Go(func() {
				if code := Main(t.Context(), []string{"migrate", "--mysql-dsn", dsn}, &outs[i], &outs[i]); code != process.OK {
					t.Errorf("exit code %d: %s", code, &outs[i])
				}
			})
		}
		wg.Wait()
		all := outs[0].String() + outs[1].String() + outs[2].String()
		if strings.Count(all, "contents") != 1 || strings.Count(all, "nothing to apply") != 2 {
			t.Errorf("together they said:\n%s", all)
		}
	})
	t.Run("and nothing the second time", func(t *testing.T) {
		code, stdout, _ := command(t, "migrate", "--mysql-dsn", dsn)
		if code != process.OK || strings.Contains(stdout, "applied") {
			t.Errorf("exit code %d, stdout %q", code, stdout)
		}
	})
	t.Run("and does not wait for a server that is away", func(t *testing.T) {
		code, _, stderr := command(t, "migrate", "--mysql-dsn", "root@tcp("+freeAddress(t)+")/tierflow")
		if code != process.Failed || !strings.Contains(stderr, "connection refused") {
			t.Errorf("exit code %d, stderr %q", code, stderr)
		}
	})
}

// serving is a committer that serves, in this process.
type serving struct {
	t      *testing.T
	admin  string
	cancel context.CancelFunc
	code   chan int
}

func startServing(t *testing.T, args ...string) *serving {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := &serving{t: t, admin: freeAddress(t), cancel: cancel, code: make(chan int, 1)}
	go func() {
		s.code <- Main(ctx, append(args, "--admin-listen", s.admin, "--log-level=error"), io.Discard, io.Discard)
	}()
	t.Cleanup(cancel)
	return s
}

// ready asks once; missing is what the answer says, "" where it is ready.
func (s *serving) ready() (missing string, err error) {
	resp, err := http.Get("http://" + s.admin + "/readyz")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if resp.StatusCode == http.StatusOK || err != nil {
		return "", err
	}
	return string(body), nil
}

func (s *serving) eventuallyMisses(words ...string) {
	s.t.Helper()
	testserver.Eventually(s.t, "it says what is missing", 20*time.Second, func() error {
		missing, err := s.ready()
		if err != nil {
			return err
		}
		for _, w := range words {
			if !strings.Contains(missing, w) {
				return fmt.Errorf("no %q in %q", w, missing)
			}
		}
		return nil
	})
}

func (s *serving) eventuallyReady() {
	s.t.Helper()
	testserver.Eventually(s.t, "it is ready", 20*time.Second, func() error {
		missing, err := s.ready()
		if err == nil && missing != "" {
			err = errors.New(missing)
		}
		return err
	})
}

// stop is what SIGTERM does.
func (s *serving) stop() {
	s.t.Helper()
	s.cancel()
	select {
	case code := <-s.code:
		if code != process.OK {
			s.t.Errorf("exit code %d", code)
		}
	case <-time.After(20 * time.Second):
		s.t.Fatal("it does not stop")
	}
}

// relocated plays a relocator: it appends the move of item 7 from bronze to gold, and returns its client of Redis.
func relocated(t *testing.T, redisURL, prefix string) redis.UniversalClient {
	t.Helper()
	rdb, err := state.Connect(redisURL, -1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rdb.Close() })
	now := time.Now()
	if err := rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: state.NewKeys(prefix).Relocated(), Values: event.Relocated{
		EventID: "0198a5b0-0000-7000-8000-000000000001", ID: 7, From: "bronze", To: "gold", Filename: "g.mp4", Count: 2000,
		Method: "link", WorkerID: "r1", StartedAt: now, FinishedAt: now,
	}.Fields()}).Err(); err != nil {
		t.Fatal(err)
	}
	return rdb
}

func TestReadyzSaysWhatTheLastCommitSaid(t *testing.T) {
	redisURL, dsn, prefix := testserver.Redis(t), testserver.MySQL(t), testserver.Prefix(t)
	s := startServing(t, "serve", "--migrate", "--redis-url", redisURL, "--mysql-dsn", dsn, "--redis-prefix", prefix)
	s.eventuallyReady()
	db, err := catalog.Open(dsn, catalog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	exec := func(statement string) {
		t.Helper()
		if _, err := db.DB().Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	exec("INSERT INTO contents (cid, content_level, filename) VALUES (7, 'bronze', 'g.mp4')")
	exec("CREATE TRIGGER refuse BEFORE UPDATE ON contents FOR EACH ROW SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 3100, MESSAGE_TEXT = 'not now'")
	relocated(t, redisURL, prefix)
	s.eventuallyMisses("commit", "Error 3100", "not now")
	exec("DROP TRIGGER refuse")
	s.eventuallyReady()
	if row, err := db.Row(t.Context(), 7); err != nil || row.Level != "gold" {
		t.Errorf("it is ready, and the row is %+v, %v", row, err)
	}
	s.stop()
}

func TestServeBeginsWhenRedisAndMySQLAnswer(t *testing.T) {
	redisURL, dsn, prefix := testserver.Redis(t), testserver.MySQL(t), testserver.Prefix(t)
	redisGate, gatedRedis := testserver.RedisGate(t, redisURL)
	mysqlGate, gatedMySQL := testserver.MySQLGate(t, dsn)
	redisGate.Close()
	mysqlGate.Close()
	s := startServing(t, "serve", "--migrate", "--redis-url", gatedRedis, "--mysql-dsn", gatedMySQL, "--redis-prefix", prefix)
	s.eventuallyMisses("redis", "mysql", "connection refused")
	if code, _, stderr := command(t, "healthcheck", "--admin-listen", s.admin); code != process.Failed || !strings.Contains(stderr, "mysql") {
		t.Errorf("healthcheck: exit code %d, stderr %q", code, stderr)
	}
	redisGate.Open()
	mysqlGate.Open()
	s.eventuallyReady()
	if code, _, stderr := command(t, "healthcheck", "--admin-listen", s.admin); code != process.OK {
		t.Errorf("healthcheck: exit code %d, stderr %q", code, stderr)
	}

	db, err := catalog.Open(dsn, catalog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.DB().Exec("INSERT INTO contents (cid, content_level, filename) VALUES (7, 'bronze', 'g.mp4')"); err != nil {
		t.Fatal(err)
	}
	rdb := relocated(t, redisURL, prefix)
	testserver.Eventually(t, "it commits", 20*time.Second, func() error {
		row, err := db.Row(t.Context(), 7)
		if err == nil && row.Level != "gold" {
			err = fmt.Errorf("row: %+v", row)
		}
		return err
	})
	testserver.Eventually(t, "it counts", 20*time.Second, func() error {
		resp, err := http.Get("http://" + s.admin + "/metrics")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err == nil && !strings.Contains(string(body), `tierflow_committer_settled_total{outcome="committed"} 1`) {
			err = errors.New("no such line")
		}
		return err
	})
	s.stop()
	if left := rdb.XInfoConsumers(t.Context(), state.NewKeys(prefix).Relocated(), state.GroupCommitter).Val(); len(left) != 0 {
		t.Errorf("it left consumers: %+v", left)
	}
}

func TestServeWithoutSchemaWaitsForIt(t *testing.T) {
	dsn := testserver.MySQL(t)
	s := startServing(t, "--redis-url", testserver.Redis(t), "--mysql-dsn", dsn, "--redis-prefix", testserver.Prefix(t))
	s.eventuallyMisses("mysql", "committer migrate")
	if code, _, stderr := command(t, "migrate", "--mysql-dsn", dsn); code != process.OK {
		t.Fatalf("migrate: %d, %s", code, stderr)
	}
	s.eventuallyReady()
	s.stop()
}

func TestServeThatCannotSendHeartbeatsIsNotReadyAndSaysWhatToDo(t *testing.T) {
	prefix := testserver.Prefix(t)
	url, allow := testserver.RedisUser(t, "+@all", "~"+prefix+"partitions", "~"+prefix+"relocated")
	s := startServing(t, "serve", "--migrate", "--redis-url", url, "--mysql-dsn", testserver.MySQL(t), "--redis-prefix", prefix)
	s.eventuallyMisses("workers", "cannot send heartbeats", "Redis user use the key "+prefix+"workers:committer")
	allow("~" + prefix + "*")
	s.eventuallyReady()
	s.stop()
}

func TestServeStopsWhileRedisAndMySQLAreAway(t *testing.T) {
	s := startServing(t, "serve", "--migrate", "--redis-url", "redis://"+freeAddress(t), "--mysql-dsn", "root@tcp("+freeAddress(t)+")/tierflow")
	s.eventuallyMisses("redis", "mysql")
	s.stop()
}

func TestServeWithATakenAddressFails(t *testing.T) {
	s := startServing(t, "--redis-url", testserver.Redis(t), "--mysql-dsn", testserver.MySQL(t), "--redis-prefix", testserver.Prefix(t))
	s.eventuallyMisses("mysql")
	if code, _, _ := command(t, "serve", "--admin-listen", s.admin, "--log-level=error"); code != process.Failed {
		t.Errorf("exit code %d", code)
	}
	s.stop()
}
