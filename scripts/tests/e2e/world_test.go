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

// world is a running Tierflow of the test's own: its own database, Redis prefix, tiers and processes. Its methods
// fail the test, with the ends of the services' logs, where the stack's return an error.
type world struct {
	*stack.Stack
	t *testing.T
}

// options are those of stack.Options that a test may want otherwise.
type options struct {
	redisURL   string            // else the test process' Redis
	prefix     string            // of the keys in redisURL
	mysqlDSN   string            // else a fresh database in the test process' MySQL
	partitions int               // else 1
	relocators int               // else 1
	committers int               // else 1
	settings   map[string]string // of every service; they win over the world's
	stopped    bool              // start no service yet
	directed   bool              // with the programs that a director can lead
}

// start makes a world and starts its services. gold lies on another file system than bronze and silver, where the
// machine has one. At the end of the test every service must exit with 0, unless the test killed it.
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
		// Short, so that what must not happen before they pass happens within the test.
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

// add makes a content of one file and returns it. Its name follows from its id.
func (w *world) add(id item.ID, level string, size int64) stack.Sample {
	w.t.Helper()
	p := stack.Sample{ID: id, Filename: fmt.Sprintf("videos/%s.mp4", id), Level: level, Size: size}
	w.must("add a content", w.Add(w.t.Context(), p))
	return p
}

// post posts a view event, which the api must accept.
func (w *world) post(id item.ID, count item.Count) {
	w.t.Helper()
	w.must(fmt.Sprintf("post cid=%s count=%s", id, count), w.Post(w.t.Context(), id, count))
}

// waitLevel waits until MySQL names the level as the content's.
func (w *world) waitLevel(id item.ID, level string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	_, err := w.WaitLevel(ctx, id, level)
	w.must("wait for a level", err)
}

// checkSettled waits until nothing is on its way, and checks everything that must be true then.
func (w *world) checkSettled() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	w.must("check at rest", w.CheckSettled(ctx))
}

// path is where a content's file lies while it is on the level.
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

// moves is the number of relocations of the content that were committed.
func (w *world) moves(id item.ID) int {
	w.t.Helper()
	rows, err := w.Catalog.History(w.t.Context(), id, 0, 1000)
	w.must("read the history", err)
	return len(rows)
}
