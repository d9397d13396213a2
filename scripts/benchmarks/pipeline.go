package benchmarks

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
)

var pipeline = Part{
	Name:  "pipeline",
	About: "from a post to its commit, the most moves that 1, 2 and 4 relocators hold, and counts that need no move",
	Run:   runPipeline,
}

func runPipeline(ctx context.Context, b *Bench) error {
	n := b.smallCount()
	for _, relocators := range []int{1, 2, 4} {
		dir := filepath.Join(b.Dir, fmt.Sprint(relocators))
		t, err := startTierflow(ctx, b, stack.Options{Dir: dir, Relocators: relocators}, smallFiles(n, "bronze"))
		if err != nil {
			return err
		}
		if relocators == 1 {
			for range b.Rounds {
				if err := t.latencies(ctx); err != nil {
					return err
				}
			}
			if _, err := t.moveAll(ctx, "bronze"); err != nil { // those that are not on bronze yet
				return err
			}
		}
		at := "bronze"
		err = b.Compare(ctx, Case{
			Figure: Figure{Name: fmt.Sprintf("files of 16 KiB, one file system, %d relocators", relocators), Unit: "moves/s"},
			Ours: Subject{Name: "from the post to the last release", Measure: func(ctx context.Context) (float64, error) {
				at = map[string]string{"bronze": "silver", "silver": "bronze"}[at]
				took, err := t.moveAll(ctx, at)
				return float64(n) / took.Seconds(), err
			}},
		})
		if err == nil && relocators == 1 {
			count := counts[at]
			stay := func(more item.Count) func(context.Context) (float64, error) {
				return func(ctx context.Context) (float64, error) {
					count += more
					took, err := t.postAll(ctx, count)
					return float64(n) / took.Seconds(), err
				}
			}
			err = b.Compare(ctx, Case{
				Figure:  Figure{Name: "counts that need no move, 1 relocator", Unit: "counts/s"},
				Ours:    Subject{Name: "each written into its row", Measure: stay(1)},
				Against: []Subject{{Name: "the same again, which write nothing", Measure: stay(0)}},
			})
		}
		if err := errors.Join(err, t.stack.Stop()); err != nil {
			return err
		}
	}
	return nil
}

// latencies posts 200 moves a second for some seconds, each file once.
func (t *tierflow) latencies(ctx context.Context) error {
	const rate = 200
	n := min(rate*int(t.seconds()/time.Second), len(t.files))
	to := "silver"
	if row, err := t.stack.Catalog.Row(ctx, t.files[0].ID); err != nil {
		return err
	} else if row.Level == to {
		to = "bronze"
	}
	ids := make([]item.ID, n)
	for i := range ids {
		ids[i] = t.files[i].ID
	}
	syscall.Sync() // so that writing the new files to the disk is not measured
	took, err := t.timeMoves(ctx, ids, to, rate)
	if err != nil {
		return err
	}
	t.Observe(Figure{Name: "from the post to the commit at 200 moves/s, median", Unit: "ms", Max: 5}, quantile(took, 500))
	t.Observe(Figure{Name: "from the post to the commit at 200 moves/s, 99 of 100", Unit: "ms", Max: 25}, quantile(took, 990))
	t.Logf("from the post to the commit: median %v, p99 %v, most %v of %d", took[len(took)/2], took[len(took)*99/100], took[len(took)-1], n)
	if _, err := t.settled(ctx, time.Now()); err != nil {
		return err
	}
	return t.stack.CheckSettled(ctx)
}

// timeMoves posts a count that calls for the level for each of the items, so many a second. It returns the times from before
// each post to the commit's entry in the stream `committed`, both by this machine's clock. The committer writes the entry
// after MySQL's COMMIT.
func (t *tierflow) timeMoves(ctx context.Context, ids []item.ID, to string, rate int) ([]time.Duration, error) {
	posted := make(map[item.ID]time.Time, len(ids))
	var mu sync.Mutex
	var took []time.Duration
	last := "0"
	if newest, err := t.stack.Redis.XRevRangeN(ctx, t.stack.Keys.Committed(), "+", "-", 1).Result(); err != nil {
		return nil, err
	} else if len(newest) == 1 {
		last = newest[0].ID
	}
	read := make(chan error, 1)
	go func() { read <- t.watch(ctx, last, len(ids), posted, &mu, &took) }()
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	var wg sync.WaitGroup
	errs := make([]error, len(ids))
	for i, id := range ids {
		<-tick.C
		wg.Go(func() {
			mu.Lock()
			posted[id] = time.Now()
			mu.Unlock()
			errs[i] = t.stack.Post(ctx, id, counts[to])
		})
	}
	wg.Wait()
	err := errors.Join(errors.Join(errs...), <-read)
	return took, err
}

// watch reads `committed` until it has n of the posted moves.
func (t *tierflow) watch(ctx context.Context, last string, n int, posted map[item.ID]time.Time, mu *sync.Mutex, took *[]time.Duration) error {
	for deadline := time.Now().Add(2 * time.Minute); len(*took) < n; {
		streams, err := t.stack.Redis.XRead(ctx, &redis.XReadArgs{Streams: []string{t.stack.Keys.Committed(), last}, Block: time.Second}).Result()
		now := time.Now()
		if err != nil && !errors.Is(err, redis.Nil) {
			return err
		}
		if now.After(deadline) {
			return fmt.Errorf("%d of %d moves were committed within two minutes", len(*took), n)
		}
		for _, s := range streams {
			for _, m := range s.Messages {
				last = m.ID
				cid, _ := m.Values["cid"].(string)
				id, err := item.ParseID(cid)
				if err != nil {
					return err
				}
				if m.Values["outcome"] != string(event.OutcomeCommitted) {
					return fmt.Errorf("item %s: its move was %v", id, m.Values["outcome"])
				}
				mu.Lock()
				*took = append(*took, now.Sub(posted[id]))
				mu.Unlock()
			}
		}
	}
	return nil
}
