package mover_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
)

// TestAllMovesShareTheBandwidthEvenly runs in a synctest bubble, whose clock stands still while a goroutine runs. The
// measured times are therefore those of the limiter alone.
func TestAllMovesShareTheBandwidthEvenly(t *testing.T) {
	const bandwidth, burst, size, moves = 1 << 20, 1 << 18, 3 << 20, 4
	from, to := newLevel(t, inMemory(t), "bronze"), newLevel(t, t.TempDir(), "gold")
	for i := range moves {
		write(t, fmt.Sprintf("%s/%d", from.Path, i), random(size))
	}
	write(t, from.Path+"/small/x", random(1000))
	synctest.Test(t, func(t *testing.T) {
		m := mover.New(mover.Options{Limiter: rate.NewLimiter(bandwidth, burst)})
		began := time.Now()
		var mu sync.Mutex
		var done [moves]int64
		var lead int64 // the most bytes that one move was ahead of another
		var small time.Duration
		var wg sync.WaitGroup
		for i := range moves {
			wg.Go(func() {
				r := request(from, to, fmt.Sprint(i))
				r.ID = item.ID(i + 1)
				last := time.Now()
				r.Progress = func(n, total int64) {
					mu.Lock()
					defer mu.Unlock()
					done[i] = n
					for _, d := range done {
						lead = max(lead, n-d)
					}
					if since := time.Since(last); since > time.Second {
						t.Errorf("no progress was reported for %v while the move was held back", since)
					}
					last = time.Now()
				}
				if made, err := m.Make(context.Background(), r); err != nil {
					t.Error(err)
				} else if err := made.Discard(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Go(func() {
			time.Sleep(time.Second)
			r := request(from, to, "small/x")
			r.ID = 99
			began := time.Now()
			if _, err := m.Make(context.Background(), r); err != nil {
				t.Error(err)
			}
			small = time.Since(began)
		})
		wg.Wait()
		total := float64(moves*size + 1000 - burst)
		want := time.Duration(total / bandwidth * float64(time.Second))
		if took := time.Since(began); took < want || took > want+want/50 {
			t.Errorf("%d bytes at %d a second, of which %d at once, took %v, want %v", moves*size+1000, bandwidth, burst, took, want)
		}
		if lead > 2<<20 { // progress is reported for each chunk
			t.Errorf("one move was %d bytes ahead of another", lead)
		}
		if small > time.Second/4 {
			t.Errorf("a file of 1,000 bytes waited for %v", small)
		}
	})
}

// TestACancelledMoveStopsAtTheNextChunkInEveryPhase counts operations, not seconds. A cancelled move may finish the chunk
// that it works on, whatever its phase.
func TestACancelledMoveStopsAtTheNextChunkInEveryPhase(t *testing.T) {
	lost := fault.New(fault.Lost, "hold", "lock:7", errors.New("another worker has the lock"))
	const size = 12 << 20
	bytesOf := map[fsys.Step]bool{fsys.ReadSource: true, fsys.WriteTemp: true, fsys.ReadBack: true, fsys.ReadAdopted: true}
	for _, phase := range []struct {
		step    fsys.Step
		kind    string // file, dir
		sparse  bool
		adopted bool
	}{
		{step: fsys.Reserve, kind: "file"}, {step: fsys.ReadSource, kind: "file"}, {step: fsys.WriteTemp, kind: "file"},
		{step: fsys.ReadSource, kind: "file", sparse: true}, {step: fsys.ReadBack, kind: "file"}, {step: fsys.ReadBack, kind: "dir"},
		{step: fsys.WriteTemp, kind: "dir"}, {step: fsys.FsyncTree, kind: "dir"},
		{step: fsys.RecheckSource, kind: "dir"}, {step: fsys.ReadAdopted, kind: "file", adopted: true},
		{step: fsys.ReadAdopted, kind: "dir", adopted: true},
	} {
		t.Run(fmt.Sprintf("%+v", phase), func(t *testing.T) {
			from, to := routes[1].tiers(t)
			names := []string{"/file"}
			if phase.kind == "dir" {
				names = []string{"/dir/a", "/dir/b"}
			}
			for _, n := range names {
				data := random(size)
				write(t, from.Path+n, data)
				if phase.sparse {
					if err := os.Truncate(from.Path+n, 0); err != nil {
						t.Fatal(err)
					}
					if err := os.Truncate(from.Path+n, size); err != nil {
						t.Fatal(err)
					}
				}
				if phase.adopted {
					write(t, to.Path+n, data)
				}
			}
			ctx, cancel := context.WithCancelCause(context.Background())
			defer cancel(nil)
			seen, after := 0, 0
			m := mover.New(mover.Options{FS: fsys.FS{Hook: func(s fsys.Step, _ string) error {
				if ctx.Err() != nil && bytesOf[s] {
					after++
				}
				if s == phase.step {
					if seen++; seen == 2 {
						cancel(lost)
					}
				}
				return nil
			}}})
			made, err := m.Make(ctx, request(from, to, phase.kind))
			if seen < 2 {
				t.Fatalf("%s ran %d times: nothing was cancelled", phase.step, seen)
			}
			if !errors.Is(err, lost) || made != nil {
				t.Errorf("got %+v, %v", made, err)
			}
			limit := 2
			if phase.adopted {
				limit = 8 // list, lstat and open are operations of this step as well
			}
			if after > limit {
				t.Errorf("%d more operations on bytes", after)
			}
			if !phase.adopted {
				wantAbsent(t, to.Path+"/"+phase.kind)
			}
			wantClean(t, to)
		})
	}
	t.Run("a comparison before a release", func(t *testing.T) {
		from, to := routes[1].tiers(t)
		write(t, from.Path+"/x", random(size))
		write(t, to.Path+"/x", random(size))
		ctx, cancel := context.WithCancelCause(context.Background())
		defer cancel(nil)
		n := 0
		m := mover.New(mover.Options{FS: fsys.FS{Hook: func(s fsys.Step, _ string) error {
			if s == fsys.ReadReleased {
				if n++; n == 2 {
					cancel(lost)
				}
			}
			return nil
		}}})
		_, err := m.Compare(ctx, mover.Comparison{Filename: "x", Old: from, Current: to})
		if !errors.Is(err, lost) || n > 3 {
			t.Errorf("%d chunks were read, %v", n, err)
		}
	})
}

// TestAMoveThatTheLimiterHoldsBackEndsAtOnceWhenCancelled runs in a synctest bubble: its clock stands still while a
// goroutine runs.
func TestAMoveThatTheLimiterHoldsBackEndsAtOnceWhenCancelled(t *testing.T) {
	from, to := routes[1].tiers(t)
	write(t, from.Path+"/x", random(1<<20))
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		m := mover.New(mover.Options{Limiter: rate.NewLimiter(1000, 1000)})
		var cancelled time.Time
		time.AfterFunc(90*time.Second, func() { cancelled = time.Now(); cancel() })
		made, err := m.Make(ctx, request(from, to, "x"))
		if !errors.Is(err, context.Canceled) || made != nil {
			t.Errorf("got %+v, %v", made, err)
		}
		if took := time.Since(cancelled); took > 0 {
			t.Errorf("it took %v", took)
		}
	})
	wantClean(t, to)
}

func TestALargeFileNeedsNoMoreMemoryThanASmallFile(t *testing.T) {
	from, to := routes[1].tiers(t)
	m := mover.New(mover.Options{})
	allocated := func(name string, size int64) uint64 {
		path := filepath.Join(from.Path, name)
		write(t, path, random(1<<20))
		if err := os.Truncate(path, size); err != nil { // the rest is a hole; holes are read as well
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		mustMake(t, m, request(from, to, name))
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	small, large := allocated("small", 2<<20), allocated("large", 256<<20)
	if large > small+8<<20 {
		t.Errorf("a file of 256 MiB took %d bytes of memory in total, a file of 2 MiB %d", large, small)
	}
}

// The caller has large items copied a few at a time.
func TestTheCallerIsAskedOnceBeforeALargeItemIsCopied(t *testing.T) {
	from, to := newLevel(t, inMemory(t), "bronze"), newLevel(t, t.TempDir(), "gold")
	same := newLevel(t, filepath.Dir(from.Path), "silver")
	write(t, from.Path+"/small", random(100_000))
	write(t, from.Path+"/large", random(300_000))
	for i := range 3 {
		write(t, fmt.Sprintf("%s/directory/%d", from.Path, i), random(100_000))
	}
	var created int
	m := mover.New(mover.Options{FS: fsys.FS{Hook: func(step fsys.Step, path string) error {
		if step == fsys.CreateTemp {
			created++
		}
		return nil
	}}})
	refused := fault.New(fault.Busy, "wait for", "a slot", nil)
	for i, c := range []struct {
		name  string
		to    policy.Level
		asked int
	}{{"small", to, 0}, {"large", same, 0}, {"large", to, 1}, {"directory", to, 1}} {
		for _, answer := range []error{refused, nil} {
			asked := 0
			created = 0
			r := request(from, c.to, c.name)
			r.ID = item.ID(i + 1)
			r.Large = func() error { asked++; return answer }
			made, err := m.Make(t.Context(), r)
			if asked != c.asked {
				t.Errorf("%s to %s: asked %d times", c.name, c.to.Name, asked)
			}
			if c.asked > 0 && answer != nil {
				if made != nil || !errors.Is(err, answer) || created > 0 {
					t.Errorf("%s: %v, %v, %d files", c.name, made, err, created)
				}
				if left, _ := os.ReadDir(c.to.Path + "/.tierflow/tmp"); len(left) > 0 {
					t.Errorf("%s: left: %v", c.name, left)
				}
				continue
			}
			if err != nil {
				t.Fatalf("%s to %s: %v", c.name, c.to.Name, err)
			}
			if err := made.Discard(); err != nil {
				t.Error(err)
			}
		}
	}
}
