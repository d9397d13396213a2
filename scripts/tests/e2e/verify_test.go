package e2e_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/item"
)

// TestVerifyBesideAWorkingPipelineFindsNothingAndHarmsNothing runs verify --repair again and again while every item moves
// back and forth and readers look for it.
func TestVerifyBesideAWorkingPipelineFindsNothingAndHarmsNothing(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	// No process dies here. On a busy machine a lease could expire and leave files for the sweep.
	w := start(t, options{relocators: 2, settings: map[string]string{"TIERFLOW_MIN_IDLE": "60s", "TIERFLOW_RELEASE_GRACE": "100ms"}})
	const n, runs = 120, 10
	samples := make([]stack.Sample, n)
	for i := range samples {
		samples[i] = stack.Sample{ID: item.ID(i + 1), Filename: fmt.Sprintf("%02d/%d.mp4", i%5, i), Level: "bronze", Size: int64(1 + random.IntN(40_000))}
	}
	w.must("add items", w.Add(t.Context(), samples...))

	verified := make(chan struct{})
	var both sync.WaitGroup
	defer both.Wait()
	both.Go(func() {
		defer close(verified)
		for range runs {
			out, code, err := w.Run(t.Context(), stack.Relocator, "verify", "--repair", "--digest")
			if err != nil || code != 0 && code != 1 {
				t.Errorf("relocator verify: exit code %d, %v\n%s", code, err, out)
				return
			}
			for line := range strings.Lines(out) {
				kind, _, finding := strings.Cut(line, "\t")
				// A mover may be held up for longer than the grace before it removes its temporary. Then nothing records
				// its attempt any more, and it is right to sweep the temporary.
				if finding && kind != "left-over" {
					t.Errorf("a finding where nothing is wrong: %s", line)
				}
			}
		}
	})
	both.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-verified:
				return
			default:
			}
			if err := w.readable(samples[i%n]); err != nil {
				t.Error(err)
				return
			}
		}
	})
	posts := 0
	for busy := true; busy; posts++ {
		views := make([]client.View, n/4)
		for i := range views {
			views[i] = client.View{CID: item.ID(1 + random.IntN(n)), Count: item.Count(random.IntN(3000))}
		}
		w.must("post a batch", w.PostAll(t.Context(), views))
		// Some items come to rest between two batches, so that verify sees both kinds.
		select {
		case <-verified:
			busy = false
		case <-time.After(50 * time.Millisecond):
		}
	}
	both.Wait()
	w.checkSettled()
	moves := 0
	for _, s := range samples {
		moves += w.moves(s.ID)
	}
	t.Logf("%d batches, %d moves", posts, moves)
	if moves < n {
		t.Errorf("only %d moves: nothing was shown", moves)
	}
	if out, code, err := w.Run(t.Context(), stack.Relocator, "verify", "--digest"); err != nil || code != 0 {
		t.Errorf("relocator verify at rest: exit code %d, %v\n%s", code, err, out)
	}
}

// readable reads an item where its row says that it is. A reader that comes late looks the row up again.
func (w *world) readable(s stack.Sample) error {
	ctx := w.t.Context()
	for {
		row, err := w.Catalog.Row(ctx, s.ID)
		if err != nil {
			return err
		}
		levels, err := w.Catalog.Levels(ctx)
		if err != nil {
			return err
		}
		var path string
		for _, l := range levels {
			if l.Name == row.Level {
				path = filepath.Join(l.Path, s.Filename)
			}
		}
		body, err := os.ReadFile(path)
		if err == nil && int64(len(body)) == s.Size {
			return nil
		}
		again, lerr := w.Catalog.Row(ctx, s.ID)
		if lerr != nil {
			return lerr
		}
		if !errors.Is(err, fs.ErrNotExist) || again.Updated.Equal(row.Updated) && again.Level == row.Level {
			return fmt.Errorf("item %s on %s: %d bytes, %v", s.ID, row.Level, len(body), err)
		}
	}
}
