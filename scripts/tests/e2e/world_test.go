package e2e_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// patience is how long a test waits for what must happen: far longer than it ever takes.
const patience = 2 * time.Minute

// programs is the folder of the services with the race detector, built once for all tests; TestMain removes it.
var (
	programsDir string
	programs    = sync.OnceValues(func() (dir string, err error) {
		programsDir, err = stack.BuildTemp(context.Background(), stack.BuildOptions{Race: true})
		return programsDir, err
	})
)

func TestMain(m *testing.M) { testserver.Main(tidy{m}) }

// tidy runs the tests and then removes what programs made.
type tidy struct{ *testing.M }

func (t tidy) Run() int {
	defer func() { os.RemoveAll(programsDir); os.RemoveAll(directedDir) }()
	return t.M.Run()
}

// world is a running Tierflow of the test's own: its own database, Redis prefix, tiers and processes. Where a method of the
// stack returns an error, the world's method fails the test and shows the ends of the services' logs.
type world struct {
	*stack.Stack
	t *testing.T
}

// options are the values of stack.Options that a test may change.
type options struct {
	redisURL   string            // the default is the test process' Redis
	prefix     string            // of the keys in redisURL
	mysqlDSN   string            // the default is a fresh database in the test process' MySQL
	partitions int               // 1 by default
	relocators int               // 1 by default
	committers int               // 1 by default
	settings   map[string]string // of every service; they override the world's
	stopped    bool              // do not start any service yet
	directed   bool              // use the programs that a director can lead
}

// start makes a world and starts its services. Where the machine has several file systems, gold lies on another one than
// bronze and silver. At the end of the test every service must exit with 0, unless the test killed it.
func start(t *testing.T, o options) *world {
	t.Helper()
	find := programs
	if o.directed {
		find = directedPrograms
	}
	dir, err := find()
	if err != nil {
		t.Fatal(err)
	}
	so := stack.Options{
		Programs: dir, Dir: t.TempDir(), Environ: os.Environ(), Tiers: map[string]string{},
		RedisURL: o.redisURL, RedisPrefix: o.prefix, MySQLDSN: o.mysqlDSN, Relocators: o.relocators, Committers: o.committers, Partitions: o.partitions,
		// These times are short. So what must not happen before they pass happens within the test.
		Settings: map[string]string{"TIERFLOW_RELEASE_GRACE": "200ms", "TIERFLOW_MIN_IDLE": "2s"},
	}
	if so.RedisURL == "" {
		so.RedisURL, so.RedisPrefix = testserver.Redis(t), testserver.Prefix(t)
	}
	if so.MySQLDSN == "" {
		so.MySQLDSN = testserver.MySQL(t)
	}
	for name, value := range o.settings {
		so.Settings[name] = value
	}
	if folder, ok := stack.SecondFilesystem(so.Dir, 1<<30); ok {
		so.Tiers["gold"] = filepath.Join(folder, "gold")
		t.Cleanup(func() { os.RemoveAll(folder) })
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := stack.New(ctx, so)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{s, t}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("the end: %v", err)
		}
		if t.Failed() {
			t.Log(s.Logs())
		}
	})
	if !o.stopped {
		w.must("start", s.Start(ctx))
	}
	return w
}

// must ends the test where err is not nil.
func (w *world) must(what string, err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatalf("%s: %v", what, err)
	}
}

// add makes an item of one file and returns it. Its name follows from its id.
func (w *world) add(id item.ID, level string, size int64) stack.Sample {
	w.t.Helper()
	p := stack.Sample{ID: id, Filename: fmt.Sprintf("videos/%s.mp4", id), Level: level, Size: size}
	w.must("add an item", w.Add(w.t.Context(), p))
	return p
}

// post posts a view event, which the api must accept.
func (w *world) post(id item.ID, count item.Count) {
	w.t.Helper()
	w.must(fmt.Sprintf("post cid=%s count=%s", id, count), w.Post(w.t.Context(), id, count))
}

// waitLevel waits until MySQL names the level as the item's.
func (w *world) waitLevel(id item.ID, level string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	_, err := w.WaitLevel(ctx, id, level)
	w.must("wait for a level", err)
}

// checkSettled waits until nothing is under way, and checks everything that must be true then.
func (w *world) checkSettled() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	w.must("check at rest", w.CheckSettled(ctx))
}

// path returns where an item's file lies while it is on the level.
func (w *world) path(p stack.Sample, level string) string {
	w.t.Helper()
	levels, err := w.Catalog.Levels(w.t.Context())
	w.must("read the levels", err)
	for _, l := range levels {
		if l.Name == level {
			return filepath.Join(l.Path, p.Filename)
		}
	}
	w.t.Fatalf("there is no level %s", level)
	return ""
}

// moves returns the number of committed moves of the item.
func (w *world) moves(id item.ID) int {
	w.t.Helper()
	rows, err := w.Catalog.History(w.t.Context(), id, 0, 1000)
	w.must("read the history", err)
	return len(rows)
}
