package batch_test

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/tierflow/tierflow/shared/batch"
)

// gate is a run function that says when it begins, and waits until the test lets it continue.
type gate struct {
	begun chan []int
	gone  chan struct{}
}

func newGate() gate { return gate{make(chan []int), make(chan struct{})} }

func (g gate) run(ins []int) []int {
	g.begun <- ins
	<-g.gone
	outs := make([]int, len(ins))
	for i, in := range ins {
		outs[i] = 10 * in
	}
	return outs
}

// start calls Do for each argument, each in a goroutine of its own.
func start(t *testing.T, r *batch.Runner[int, int], ins ...int) *sync.WaitGroup {
	t.Helper()
	var wg sync.WaitGroup
	for _, in := range ins {
		wg.Go(func() {
			if out, err := r.Do(context.Background(), in); out != 10*in || err != nil {
				t.Errorf("Do(%d) = %d, %v", in, out, err)
			}
		})
	}
	return &wg
}

func TestALoneCallRunsAtOnceAndLaterCallsAreTheNextBatch(t *testing.T) {
	g := newGate()
	r := batch.New(100, g.run)
	first := start(t, r, 1)
	if ins := <-g.begun; !slices.Equal(ins, []int{1}) {
		t.Fatalf("the first batch is %v", ins)
	}
	var rest []*sync.WaitGroup
	for in := 2; in <= 5; in++ {
		rest = append(rest, start(t, r, in))
	}
	for batch.Waiting(r) < 4 { // no batch begins while one runs, so all four calls will wait
		runtime.Gosched()
	}
	g.gone <- struct{}{}
	first.Wait()
	second := slices.Sorted(slices.Values(<-g.begun))
	if !slices.Equal(second, []int{2, 3, 4, 5}) {
		t.Errorf("the second batch is %v", second)
	}
	g.gone <- struct{}{}
	for _, wg := range rest {
		wg.Wait()
	}
}

func TestABatchHasAtMostTheMaximumAndEveryCallIsServed(t *testing.T) {
	var largest, calls atomic.Int64
	r := batch.New(7, func(ins []int) []int {
		largest.Store(max(largest.Load(), int64(len(ins))))
		outs := make([]int, len(ins))
		for i, in := range ins {
			calls.Add(1)
			outs[i] = 10 * in
		}
		return outs
	})
	ins := make([]int, 1000)
	for i := range ins {
		ins[i] = i
	}
	start(t, r, ins...).Wait()
	if largest.Load() > 7 || calls.Load() != 1000 {
		t.Errorf("largest batch %d, %d calls", largest.Load(), calls.Load())
	}
}

// A shared fsync is sound because of this: everything that a caller did before Do is there when the run begins.
func TestTheRunThatServesACallBeginsAfterTheCall(t *testing.T) {
	var mu sync.Mutex
	done := map[int]bool{}
	r := batch.New(16, func(ins []int) []bool {
		mu.Lock()
		defer mu.Unlock()
		outs := make([]bool, len(ins))
		for i, in := range ins {
			outs[i] = done[in]
		}
		return outs
	})
	var wg sync.WaitGroup
	for i := range 2000 {
		wg.Go(func() {
			mu.Lock()
			done[i] = true
			mu.Unlock()
			if ok, err := r.Do(context.Background(), i); !ok || err != nil {
				t.Errorf("the run that served %d did not see what was done before: %v", i, err)
			}
		})
	}
	wg.Wait()
}

func TestACallerThatGivesUpGetsItsCauseAndDelaysNoOther(t *testing.T) {
	g := newGate()
	r := batch.New(1, g.run)
	first := start(t, r, 1)
	<-g.begun
	ctx, cancel := context.WithCancelCause(context.Background())
	gaveUp := errors.New("gave up")
	cancel(gaveUp)
	if _, err := r.Do(ctx, 2); !errors.Is(err, gaveUp) {
		t.Errorf("error %v", err)
	}
	last := start(t, r, 3)
	g.gone <- struct{}{}
	first.Wait()
	for range 2 { // the second call's turn comes all the same
		<-g.begun
		g.gone <- struct{}{}
	}
	last.Wait()
}
