package mover_test

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
)

// row stands for a row in MySQL. Every method is one statement.
type row struct {
	mu         sync.Mutex
	level      int
	generation int
	commits    int // how often the level changed
}

func (r *row) read() (level, generation, commits int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.level, r.generation, r.commits
}

func (r *row) commit(to, generation int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.generation != generation {
		return false
	}
	r.level, r.generation, r.commits = to, generation+1, r.commits+1
	return true
}

func (r *row) release(level int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.level == level {
		return false
	}
	r.generation++
	return true
}

// TestReadersFindTheFileWhileMoversAndReleasersRaceForIt moves one item between two tiers with several movers, releasers
// and sweeps at the same time and without any lock, as if every lock had expired. By the protocol the generation alone
// must be enough. Readers look up the row and open the file that it names, without any grace. Where the file is missing,
// the row must have changed since the look-up.
func TestReadersFindTheFileWhileMoversAndReleasersRaceForIt(t *testing.T) {
	for _, r := range routes[:2] {
		for _, kind := range []string{"file", "directory"} {
			t.Run(kind+" "+r.name, func(t *testing.T) { newRace(t, r, kind).run() })
		}
	}
}

// race is one item that several movers, releasers, sweeps and readers work on at the same time.
type race struct {
	t      *testing.T
	levels []policy.Level
	name   string // of the item
	open   string // the file that readers open
	want   string // its digest
	row    row
	clear  chan int // stands for the stream `committed`: tiers that hold an old copy

	seed uint64
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	retries, reads, misses atomic.Int64
}

func newRace(t *testing.T, r route, kind string) *race {
	a, b := r.tiers(t)
	x := &race{t: t, levels: []policy.Level{a, b}, name: "p/x", open: "p/x", clear: make(chan int, 1<<16), seed: rand.Uint64()}
	t.Logf("seed %d", x.seed)
	data := random(100_000)
	if kind == "directory" {
		x.open = "p/x/sub/1"
		write(t, a.Path+"/p/x/2", random(10))
	}
	write(t, a.Path+"/"+x.open, data)
	x.want = sha(data)
	x.ctx, x.stop = context.WithCancel(context.Background())
	t.Cleanup(x.stop)
	return x
}

// run lets them race until there were enough commits. It then sweeps and releases what is left, and checks the last copy.
func (x *race) run() {
	x.work(3, x.move)
	x.work(2, x.release)
	x.work(1, x.sweepAny)
	x.work(3, x.read)
	x.waitForCommits(40)
	x.stop()
	x.wg.Wait()
	level, generation, n := x.row.read()
	x.t.Logf("%d commits, generation %d, %d releases retried, %d reads, %d files missing", n, generation, x.retries.Load(),
		x.reads.Load(), x.misses.Load())

	m := mover.New(mover.Options{})
	for l := range x.levels {
		x.sweep(m, l)
	}
	for tries := 0; len(x.clear) > 0; tries++ {
		x.clearOne(m, <-x.clear)
		if tries > 1<<16 {
			x.t.Fatal("the releases do not end")
		}
	}
	got, err := os.ReadFile(x.levels[level].Path + "/" + x.open)
	if err != nil || sha(got) != x.want {
		x.t.Errorf("in the end: %d bytes, %v", len(got), err)
	}
	wantAbsent(x.t, x.levels[1-level].Path+"/p")
	wantClean(x.t, x.levels...)
}

// work runs step again and again in n goroutines, each with a mover of its own.
func (x *race) work(n int, step func(m *mover.Mover, rnd *rand.Rand)) {
	for i := range n {
		s := x.seed + uint64(i)*7919
		m := mover.New(mover.Options{FS: pausing(s), Verify: mover.Stream})
		rnd := rand.New(rand.NewPCG(s, 2))
		x.wg.Go(func() {
			for x.ctx.Err() == nil {
				step(m, rnd)
			}
		})
	}
}

// pausing makes an FS that pauses before random operations.
func pausing(seed uint64) fsys.FS {
	rnd := rand.New(rand.NewPCG(seed, 1))
	var mu sync.Mutex
	return fsys.FS{Hook: func(fsys.Step, string) error {
		mu.Lock()
		pause := time.Duration(0)
		if rnd.IntN(20) == 0 {
			pause = time.Duration(rnd.IntN(2000)) * time.Microsecond
		}
		mu.Unlock()
		if pause > 0 {
			<-time.After(pause)
		}
		return nil
	}}
}

func (x *race) waitForCommits(commits int) {
	deadline := time.After(60 * time.Second)
	for {
		select {
		case <-x.ctx.Done():
			return
		case <-deadline:
			x.t.Error("not enough moves within a minute")
			return
		case <-time.After(time.Millisecond):
			if _, _, n := x.row.read(); n >= commits {
				return
			}
		}
	}
}

// fail reports an error and ends the race.
func (x *race) fail(format string, args ...any) {
	x.t.Errorf(format, args...)
	x.stop()
}

// expected tells whether an attempt may fail with the error because others disturb it.
func expected(err error) bool {
	return slices.Contains([]fault.Kind{fault.MissingFile, fault.Lost, fault.Busy, fault.Changed}, fault.KindOf(err))
}

func (x *race) move(m *mover.Mover, _ *rand.Rand) {
	from, generation, _ := x.row.read()
	made, err := m.Make(context.Background(), request(x.levels[from], x.levels[1-from], x.name))
	switch {
	case err != nil:
		if !expected(err) {
			x.fail("move: %v", err)
		}
		if made != nil {
			x.clear <- 1 - from
		}
	case x.row.commit(1-from, generation):
		x.clear <- from
	default:
		x.clear <- 1 - from
	}
	if made != nil {
		if err := made.Discard(); err != nil {
			x.t.Errorf("discard: %v", err)
		}
	}
}

func (x *race) release(m *mover.Mover, _ *rand.Rand) {
	select {
	case level := <-x.clear:
		x.clearOne(m, level)
	case <-x.ctx.Done():
	}
}

func (x *race) clearOne(m *mover.Mover, level int) {
	r := release(x.levels[level], x.name)
	r.Fence = func(context.Context) (bool, error) { return x.row.release(level), nil }
	out, err := m.Release(context.Background(), r)
	if err != nil && !expected(err) {
		x.fail("release: %v", err)
	}
	if err != nil || out == mover.RetryLater {
		x.retries.Add(1)
		x.clear <- level
	}
}

// sweepAny sweeps one of the tiers, even what is in use.
func (x *race) sweepAny(m *mover.Mover, rnd *rand.Rand) {
	x.sweep(m, rnd.IntN(2))
	select {
	case <-time.After(time.Duration(rnd.IntN(40)) * time.Millisecond):
	case <-x.ctx.Done():
	}
}

func (x *race) sweep(m *mover.Mover, level int) {
	_, err := m.Sweep(context.Background(), x.levels[level], -time.Minute, func(item.ID, string) bool { return false },
		func(context.Context, item.ID, string) error { x.clear <- level; return nil })
	if err != nil {
		x.fail("sweep: %v", err)
	}
}

// read looks up the row and opens the file that it names.
func (x *race) read(_ *mover.Mover, rnd *rand.Rand) {
	level, _, before := x.row.read()
	if rnd.IntN(4) == 0 {
		<-time.After(time.Duration(rnd.IntN(5000)) * time.Microsecond)
	}
	got, err := os.ReadFile(x.levels[level].Path + "/" + x.open)
	x.reads.Add(1)
	_, _, after := x.row.read()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		x.misses.Add(1)
		if before == after {
			x.fail("the row names level %d and the file was not there", level)
		}
	case err != nil || sha(got) != x.want:
		x.fail("read %d bytes, %v", len(got), err)
	}
}
