package tierhealth_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/relocatortest"
	"github.com/tierflow/tierflow/shared/state"
)

// commands counts what a client sends to Redis.
type commands struct{ n atomic.Int64 }

func (c *commands) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

func (c *commands) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { c.n.Add(1); return next(ctx, cmd) }
}

func (c *commands) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error { c.n.Add(int64(len(cmds))); return next(ctx, cmds) }
}

// waiting waits until n entries of `views` wait: each has been in hand, and would cost no attempt now.
func waiting(w *relocatortest.World, n int) {
	w.T.Helper()
	w.Eventually(fmt.Sprintf("%d moves wait", n), func() error {
		pending, err := w.Redis.XPendingExt(context.Background(), &redis.XPendingExtArgs{Stream: w.Store.Keys().Views(),
			Group: state.GroupRelocator, Start: "-", End: "+", Count: 10_000}).Result()
		got := 0
		for _, p := range pending {
			if p.RetryCount == 0 {
				got++
			}
		}
		if err == nil && got != n {
			err = fmt.Errorf("%d", got)
		}
		return err
	})
}

func TestManyMovesThatWaitForATierCostNothingAndBeginOnceWhenItIsBack(t *testing.T) {
	const n = 300
	w := relocatortest.New(t)
	away := w.Roots["gold"] + ".unmounted"
	if err := os.Rename(w.Roots["gold"], away); err != nil {
		t.Fatal(err)
	}
	var looks, made atomic.Int64
	w.FS.Hook = func(s fsys.Step, path string) error {
		switch {
		case s == fsys.OpenTier && strings.HasPrefix(path, w.Roots["gold"]):
			looks.Add(1)
		case s == fsys.OpenSource && path == w.Roots["bronze"]:
			made.Add(1)
		}
		return nil
	}
	for i := range n {
		w.Item(i+1, fmt.Sprint(i))
		w.Post(i+1, 5000)
	}
	var sent commands
	w.Redis.AddHook(&sent)
	w.Relocator("r1")
	waiting(w, n)
	before, looked := sent.n.Load(), looks.Load()
	w.Eventually("the tier is looked at", func() error {
		if looks.Load() < looked+4 {
			return fmt.Errorf("%d times", looks.Load()-looked)
		}
		return nil
	})
	if cost := sent.n.Load() - before; cost > 50 {
		t.Errorf("%d commands were sent while %d moves waited", cost, n)
	}
	if made.Load() > 0 {
		t.Errorf("%d moves were begun", made.Load())
	}
	if err := os.Rename(away, w.Roots["gold"]); err != nil {
		t.Fatal(err)
	}
	w.Releaser("r1")
	w.Committer()
	w.Settled()
	if n := w.Redis.XLen(t.Context(), w.Store.Keys().Dead()).Val(); n != 0 {
		t.Errorf("%d dead letters", n)
	}
}
