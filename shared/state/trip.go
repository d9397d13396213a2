package state

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/batch"
	"github.com/tierflow/tierflow/shared/content"
)

const (
	// tripMost bounds how many scripts travel together. Redis runs them one by one, each as atomic as alone.
	tripMost = 256
	// tripTimeout is for a trip whose callers have all given up.
	tripTimeout = 5 * time.Second
)

// call is one of many calls of scripts.
type call struct {
	script *redis.Script
	keys   []string
	args   []any
}

// trip takes the scripts of one partition that are called at the same time to Redis together. Partitions have trips of
// their own: one that is away holds up no other.
type trip = batch.Runner[call, *redis.Cmd]

func newTrips(rdb redis.UniversalClient, partitions int) []*trip {
	trips := make([]*trip, partitions)
	for p := range trips {
		trips[p] = batch.New(tripMost, func(calls []call) []*redis.Cmd {
			ctx, cancel := context.WithTimeout(context.Background(), tripTimeout)
			defer cancel()
			return runAll(ctx, rdb, calls)
		})
	}
	return trips
}

// run is Script.Run on a shared trip, for a script that is safe to run again: go-redis repeats a whole trip whose replies
// were lost. All its keys are of the content's partition.
func (s *Store) run(ctx context.Context, id content.ID, script *redis.Script, keys []string, args ...any) *redis.Cmd {
	cmd, err := s.trips[s.keys.Partition(id)].Do(ctx, call{script, keys, args})
	if err != nil {
		cmd = redis.NewCmd(ctx)
		cmd.SetErr(err)
	}
	return cmd
}

// runAll is Script.Run for many calls on one trip, or one to each partition of a cluster.
func runAll(ctx context.Context, rdb redis.UniversalClient, calls []call) []*redis.Cmd {
	cmds := make([]*redis.Cmd, len(calls))
	if _, cluster := rdb.(*redis.ClusterClient); !cluster {
		all := make([]int, len(calls))
		for i := range all {
			all[i] = i
		}
		runSome(ctx, rdb.Pipelined, calls, cmds, all)
		return cmds
	}
	// In transactions: where a slot has moved, go-redis follows it with the whole of one. The commands of a pipeline it
	// follows one by one, and when the connection breaks at the same time, it sends some of them twice at once.
	byTag := map[string][]int{}
	for i, c := range calls {
		tag := hashTag(c.keys[0])
		byTag[tag] = append(byTag[tag], i)
	}
	var wg sync.WaitGroup
	for _, which := range byTag {
		wg.Go(func() { runSome(ctx, rdb.TxPipelined, calls, cmds, which) })
	}
	wg.Wait()
	return cmds
}

// hashTag is the part of a key by which a cluster places it.
func hashTag(key string) string {
	_, rest, _ := strings.Cut(key, "{")
	tag, _, _ := strings.Cut(rest, "}")
	return tag
}

// runSome runs some of the calls on one trip, two where a server does not know a script yet: SCRIPT LOAD in front of each
// trip would have to reach every node of a cluster, and fail with any of them.
func runSome(ctx context.Context, pipelined func(context.Context, func(redis.Pipeliner) error) ([]redis.Cmder, error),
	calls []call, cmds []*redis.Cmd, which []int) {
	trip := func(run func(redis.Pipeliner, call) *redis.Cmd, which []int) {
		// The pipeline's error is that of its first failed command; each command has its own.
		_, _ = pipelined(ctx, func(pipe redis.Pipeliner) error {
			for _, i := range which {
				cmds[i] = run(pipe, calls[i])
			}
			return nil
		})
	}
	trip(func(pipe redis.Pipeliner, c call) *redis.Cmd { return c.script.EvalSha(ctx, pipe, c.keys, c.args...) }, which)
	var unknown []int
	for _, i := range which {
		if redis.HasErrorPrefix(cmds[i].Err(), "NOSCRIPT") {
			unknown = append(unknown, i)
		}
	}
	if len(unknown) > 0 {
		trip(func(pipe redis.Pipeliner, c call) *redis.Cmd { return c.script.Eval(ctx, pipe, c.keys, c.args...) }, unknown)
	}
}
