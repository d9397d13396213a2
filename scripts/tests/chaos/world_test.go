package chaos_test

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/testenv/localserver"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

const (
	// patience is how long a test waits for what must happen: far longer than it ever takes.
	patience = 3 * time.Minute
	// minIdle is short, so that leases end and entries are taken over within a test.
	minIdle = time.Second
)

// programs is the folder of the services with the race detector, built once; TestMain removes it.
var (
	programsDir string
	programs    = sync.OnceValues(func() (dir string, err error) {
		programsDir, err = stack.BuildTemp(context.Background(), stack.BuildOptions{Race: true})
		return programsDir, err
	})
)

// world is a Tierflow on servers of its own, which the test may break.
type world struct {
	*stack.Stack
	t      testing.TB
	redis  topology
	mysql  *localserver.MySQL
	gates  map[string]*testserver.Gate // to MySQL, one for each service, by the service's name
	ledger *ledger
	reader *reader
	disks  []*disk // none where the machine has none

	presence presence
	victims  [victims]sync.Mutex

	mu      sync.Mutex
	lossy   bool // accepted counts may be lost
	history []string
}

// verdict is a test that repeats its errors below all logs.
type verdict struct {
	testing.TB
	mu   sync.Mutex
	said []string
}

func newVerdict(t testing.TB) *verdict {
	v := &verdict{TB: t}
	t.Cleanup(func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		if len(v.said) > 0 {
			t.Logf("what was wrong:\n%s", strings.Join(v.said, "\n"))
		}
	})
	return v
}

func (v *verdict) say(what string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.said = append(v.said, what)
}

// Error, Errorf, Fatal and Fatalf record the message and call the methods of the test.
func (v *verdict) Error(args ...any) {
	v.TB.Helper()
	v.say(fmt.Sprint(args...))
	v.TB.Error(args...)
}

func (v *verdict) Errorf(format string, args ...any) {
	v.TB.Helper()
	v.say(fmt.Sprintf(format, args...))
	v.TB.Errorf(format, args...)
}

func (v *verdict) Fatal(args ...any) {
	v.TB.Helper()
	v.say(fmt.Sprint(args...))
	v.TB.Fatal(args...)
}

func (v *verdict) Fatalf(format string, args ...any) {
	v.TB.Helper()
	v.say(fmt.Sprintf(format, args...))
	v.TB.Fatalf(format, args...)
}

// start makes a world with its items and starts its services.
func start(tb testing.TB, topology string, samples []stack.Sample) *world {
	tb.Helper()
	t := newVerdict(tb)
	if _, err := localserver.FindRedis(); err != nil {
		t.Skipf("it breaks its servers, so it needs its own: %v", err)
	}
	dir, err := programs()
	if err != nil {
		t.Fatalf("build: %v", err)
	}
	w := &world{t: t, gates: map[string]*testserver.Gate{}, ledger: newLedger(), presence: presence{changes: map[string]int{}}}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	w.redis = topologies[topology](ctx, w)
	w.startMySQL(ctx)

	o := stack.Options{
		Programs: dir, Dir: t.TempDir(), Environ: os.Environ(), Relocators: 2, Tiers: map[string]string{},
		RedisURL: w.redis.url(""), Partitions: partitionsOf[topology], MySQLDSN: w.mysql.DSN("chaos"),
		Settings: map[string]string{"TIERFLOW_MIN_IDLE": minIdle.String(), "TIERFLOW_RELEASE_GRACE": "100ms",
			"TIERFLOW_BANDWIDTH": "8MiB"},
	}
	w.makeDisks(&o)
	w.Stack, err = stack.New(ctx, o)
	w.must("prepare", err)
	t.Cleanup(func() {
		if w.reader != nil {
			w.reader.stop()
		}
		w.heal()
		if err := w.Close(); err != nil {
			t.Errorf("the end: %v", err)
		}
		w.checkLogs(o.Dir)
		t.Logf("what was done:\n%s", strings.Join(w.history, "\n"))
		if t.Failed() {
			t.Log(w.Logs())
		}
	})
	for _, v := range w.Services() {
		v.Settings["TIERFLOW_REDIS_URL"] = w.redis.url(v.Name)
		w.gates[v.Name], v.Settings["TIERFLOW_MYSQL_DSN"] = testserver.MySQLGate(t, w.serviceDSN())
	}
	w.must("add items", w.Add(ctx, samples...))
	w.must("start", w.Start(ctx))
	w.reader = w.read(samples)
	return w
}

func (w *world) startMySQL(ctx context.Context) {
	w.t.Helper()
	m, err := localserver.StartMySQL(ctx, localserver.Options{Dir: w.t.TempDir(), Binary: os.Getenv("TIERFLOW_TEST_MYSQLD")})
	w.must("start a MySQL", err)
	w.t.Cleanup(func() { m.Close() })
	w.mysql = m
	w.must("make a database", w.asRoot(ctx, func(root *sql.Conn) error {
		for _, statement := range []string{"CREATE DATABASE chaos", "CREATE USER " + account, "CREATE USER " + crowd,
			"GRANT ALL ON chaos.* TO " + account} {
			if _, err := root.ExecContext(ctx, statement); err != nil {
				return err
			}
		}
		return nil
	}))
}

func eventually(ctx context.Context, check func() error) error {
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (w *world) must(what string, err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatalf("%s: %v", what, err)
	}
}

// note records what the test does, for the message of a failure.
func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.history = append(w.history, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

// heal takes every fault away, starts what does not run, and returns when all is ready.
func (w *world) heal() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	w.mendDisks()                    // first, because a process on a disk that hangs cannot even be killed
	for _, g := range w.allGates() { // then, because the nodes of a cluster replicate through their gates
		g.Judge(nil)
		g.Open()
	}
	w.must("heal Redis", w.redis.heal(ctx))
	_ = w.mysql.Resume() // fails where MySQL does not run
	w.must("start MySQL", w.mysql.Start(ctx))
	w.must("allow writes", w.allowWrites(ctx))
	for _, v := range w.Services() {
		_ = v.Resume()
		w.must("launch "+v.Name, v.Launch())
	}
	for _, v := range w.Services() {
		w.must(v.Name+" is ready again", v.AwaitReady(ctx))
	}
}

// allGates returns the gates between the services and their servers.
func (w *world) allGates() []*testserver.Gate {
	return append(w.redis.gates(), slices.Collect(maps.Values(w.gates))...)
}

// check waits until everything is settled and then checks all guarantees. Where counts may have been lost, it first does
// what operations.md tells an operator to do.
func (w *world) check() {
	w.t.Helper()
	w.heal()
	w.look()
}

// look checks without taking the faults away.
func (w *world) look() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	settle := func() { w.t.Helper(); w.must("settle", eventually(ctx, func() error { return w.Settled(ctx) })) }
	settle()
	if w.lossy {
		w.note("counts may be lost: each item is posted again, and verify --repair runs")
		from := map[string]string{}
		for _, k := range w.Keys.Each() {
			newest, err := w.Redis.XRevRangeN(ctx, k.Views(), "+", "-", 1).Result()
			w.must("read views", err)
			if len(newest) > 0 {
				from[k.Views()] = "(" + newest[0].ID
			}
		}
		w.ledger.forget(from)
		for id := range w.reader.want {
			w.must("post again", eventually(ctx, func() error { return w.post(ctx, id, item.Count(id%3)*1000) }))
		}
		settle()
		if out, code, err := w.Run(ctx, stack.Relocator, "verify", "--repair"); err != nil || code > 1 {
			w.t.Fatalf("verify --repair: exit code %d, %v\n%s", code, err, out)
		}
		w.lossy = false
		settle()
	}
	for _, problem := range w.ledger.check(ctx, w) {
		w.t.Error(problem)
	}
	if err := w.CheckSettled(ctx); err != nil {
		w.t.Errorf("at rest: %v", err)
	}
	if out, code, err := w.Run(ctx, stack.Relocator, "verify", "--digest"); err != nil || code != 0 {
		w.t.Errorf("verify: exit code %d, %v\n%s", code, err, out)
	}
	for _, problem := range w.reader.problems() {
		w.t.Errorf("a reader: %s", problem)
	}
	w.note("checked")
}

// checkLogs looks for errors that a killed process could not report by its exit code.
func (w *world) checkLogs(dir string) {
	for _, v := range w.Services() {
		log, err := os.ReadFile(filepath.Join(dir, v.Name+".log"))
		if err != nil {
			w.t.Error(err)
		}
		for _, sign := range []string{"WARNING: DATA RACE", "panic: ", "fatal error: "} {
			if at := bytes.Index(log, []byte(sign)); at >= 0 {
				w.t.Errorf("%s: %s", v.Name, log[at:min(at+4000, len(log))])
			}
		}
	}
}
