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
			t.Run(kind+" "+r.name, func(t *testing.T) { race(t, r, kind) })
		}
	}
}

func race(t *testing.T, r route, kind string) {
	const commits = 40
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	a, b := r.tiers(t)
	levels := []policy.Level{a, b}
	var data []byte
	name, open := "p/x", "p/x"
	if kind == "file" {
		data = random(100_000)
		write(t, a.Path+"/p/x", data)
	} else {
		open = "p/x/sub/1"
		data = random(50_000)
		write(t, a.Path+"/p/x/sub/1", data)
		write(t, a.Path+"/p/x/2", random(10))
	}
	want := sha(data)

	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	db := &row{}
	clear := make(chan int, 1<<16) // stands for the stream `committed`: tiers that hold an old copy
	var retries atomic.Int64
	slow := func(seed uint64) fsys.FS { // pauses before random operations
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
	var wg sync.WaitGroup
	work := func(n int, step func(m *mover.Mover, rnd *rand.Rand)) {
		for i := range n {
			s := seed + uint64(i)*7919
			m := mover.New(mover.Options{FS: slow(s), Verify: mover.Stream})
			rnd := rand.New(rand.NewPCG(s, 2))
			wg.Go(func() {
				for ctx.Err() == nil {
					step(m, rnd)
				}
			})
		}
	}
	// Attempts that disturb each other may fail with these kinds only.
	expected := func(err error) bool {
		k := fault.KindOf(err)
		return slices.Contains([]fault.Kind{fault.MissingFile, fault.Lost, fault.Busy, fault.Changed}, k)
	}
	work(3, func(m *mover.Mover, _ *rand.Rand) { // movers
		from, generation, _ := db.read()
		made, err := m.Make(context.Background(), request(levels[from], levels[1-from], name))
		switch {
		case err != nil:
			if !expected(err) {
				t.Errorf("move: %v", err)
				stop()
			}
			if made != nil {
				clear <- 1 - from
			}
		case db.commit(1-from, generation):
			clear <- from
		default:
			clear <- 1 - from
		}
		if made != nil {
			if err := made.Discard(); err != nil {
				t.Errorf("discard: %v", err)
			}
		}
	})
	clearOne := func(m *mover.Mover, level int) {
		rel := release(levels[level], name)
		rel.Fence = func(context.Context) (bool, error) { return db.release(level), nil }
		out, err := m.Release(context.Background(), rel)
		if err != nil && !expected(err) {
			t.Errorf("release: %v", err)
			stop()
		}
		if err != nil || out == mover.RetryLater {
			retries.Add(1)
			clear <- level
		}
	}
	work(2, func(m *mover.Mover, _ *rand.Rand) { // releasers
		select {
		case level := <-clear:
			clearOne(m, level)
		case <-ctx.Done():
		}
	})
	sweep := func(m *mover.Mover, level int) {
		_, err := m.Sweep(context.Background(), levels[level], -time.Minute, func(item.ID, string) bool { return false },
			func(context.Context, item.ID, string) error { clear <- level; return nil })
		if err != nil {
			t.Errorf("sweep: %v", err)
			stop()
		}
	}
	work(1, func(m *mover.Mover, rnd *rand.Rand) { // the sweep removes even what is in use
		sweep(m, rnd.IntN(2))
		select {
		case <-time.After(time.Duration(rnd.IntN(40)) * time.Millisecond):
		case <-ctx.Done():
		}
	})
	var reads, misses atomic.Int64
	work(3, func(_ *mover.Mover, rnd *rand.Rand) { // readers
		level, _, before := db.read()
		if rnd.IntN(4) == 0 {
			<-time.After(time.Duration(rnd.IntN(5000)) * time.Microsecond)
		}
		got, err := os.ReadFile(levels[level].Path + "/" + open)
		reads.Add(1)
		_, _, after := db.read()
		switch {
		case errors.Is(err, fs.ErrNotExist):
			misses.Add(1)
			if before == after {
				t.Errorf("the row names level %d and the file was not there", level)
				stop()
			}
		case err != nil || sha(got) != want:
			t.Errorf("read %d bytes, %v", len(got), err)
			stop()
		}
	})
	deadline := time.After(60 * time.Second)
	for done := false; !done; {
		select {
		case <-ctx.Done():
			done = true
		case <-deadline:
			t.Error("not enough moves within a minute")
			done = true
		case <-time.After(time.Millisecond):
			_, _, n := db.read()
			done = n >= commits
		}
	}
	stop()
	wg.Wait()
	level, generation, n := db.read()
	t.Logf("%d commits, generation %d, %d releases retried, %d reads, %d files missing", n, generation, retries.Load(),
		reads.Load(), misses.Load())

	// Now everything left is swept and released, and one copy remains.
	m := mover.New(mover.Options{})
	for l := range levels {
		sweep(m, l)
	}
	for tries := 0; len(clear) > 0; tries++ {
		clearOne(m, <-clear)
		if tries > 1<<16 {
			t.Fatal("the releases do not end")
		}
	}
	got, err := os.ReadFile(levels[level].Path + "/" + open)
	if err != nil || sha(got) != want {
		t.Errorf("in the end: %d bytes, %v", len(got), err)
	}
	wantAbsent(t, levels[1-level].Path+"/p")
	wantClean(t, levels...)
}
