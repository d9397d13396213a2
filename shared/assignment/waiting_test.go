package assignment_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/assignment"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// parkedConsumer has entries that wait.
type parkedConsumer struct {
	idleConsumer
	waits []stream.Wait
}

func (p *parkedConsumer) Waiting() map[string]int { return map[string]int{"tier-away": len(p.waits)} }

func (p *parkedConsumer) Waits(time.Duration) []stream.Wait { return p.waits }

// sent counts commands. One script is one command.
type sent struct{ n atomic.Int64 }

func (s *sent) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

func (s *sent) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		s.n.Add(1)
		return next(ctx, cmd)
	}
}

func (s *sent) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		s.n.Add(int64(len(cmds)))
		return next(ctx, cmds)
	}
}

// parkOne lets a worker have n entries that wait for a tier. rdb is what it sends its commands with.
func parkOne(t *testing.T, n int) (rdb redis.UniversalClient, store *state.Store, join func()) {
	t.Helper()
	rdb, err := state.Connect(testserver.Redis(t), 3)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rdb.Close() })
	store = state.NewStore(state.Options{Redis: rdb, Keys: state.NewKeys(testserver.Prefix(t)), TTL: time.Hour, Lease: time.Minute})
	var waits []stream.Wait
	for i := range n {
		waits = append(waits, stream.Wait{ID: fmt.Sprintf("1-%d", i+1), Stream: store.Keys().Views(), Values: map[string]string{"cid": fmt.Sprint(i + 1)},
			Reason: "tier-away", Cause: errors.New("gold is not mounted"), Since: time.Now()})
	}
	return rdb, store, func() {
		joinWith(t, store, state.Worker{ID: "a"}, func() assignment.Consumer {
			return &parkedConsumer{idleConsumer: idleConsumer{retired: make(chan struct{})}, waits: waits}
		})
	}
}

func TestWhatWaitsIsReportedWithOneCommandABeatHoweverMuchItIs(t *testing.T) {
	rdb, store, join := parkOne(t, 300)
	var all sent
	rdb.AddHook(&all)
	join()
	key := store.Keys().Waiting("g", "a")
	watcher := newStoreClient(t)
	var first, beats int64
	last := ""
	testserver.Eventually(t, "ten beats", 30*time.Second, func() error {
		if n := watcher.HLen(t.Context(), key).Val(); n != 302 {
			return fmt.Errorf("%d fields", n)
		}
		if beat := watcher.HGet(t.Context(), store.Keys().Workers("g"), "a").Val(); beat != last {
			last = beat
			if beats++; beats == 1 {
				first = all.n.Load()
			}
		}
		if beats <= 10 {
			return fmt.Errorf("%d beats", beats)
		}
		return nil
	})
	if n := all.n.Load() - first; n > 2*(beats+2) {
		t.Errorf("%d commands in %d beats", n, beats)
	}
}

func TestAReportThatCannotBeWrittenHoldsUpNoHeartbeat(t *testing.T) {
	rdb, store, join := parkOne(t, 3)
	if err := rdb.Set(t.Context(), store.Keys().Waiting("g", "a"), "no hash", 0).Err(); err != nil {
		t.Fatal(err)
	}
	join()
	seen := map[string]bool{}
	testserver.Eventually(t, "it beats", 30*time.Second, func() error {
		seen[rdb.HGet(t.Context(), store.Keys().Workers("g"), "a").Val()] = true
		if len(seen) < 4 {
			return fmt.Errorf("%d beats", len(seen))
		}
		return nil
	})
}

func newStoreClient(t *testing.T) redis.UniversalClient {
	t.Helper()
	rdb, err := state.Connect(testserver.Redis(t), 3)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rdb.Close() })
	return rdb
}
