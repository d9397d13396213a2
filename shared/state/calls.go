package state

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/batch"
	"github.com/tierflow/tierflow/shared/item"
)

const (
	// maxCalls bounds how many scripts one batch has. Redis runs them one by one, each as atomic as alone.
	maxCalls = 256
	// batchTimeout ends a batch whose callers have all given up.
	batchTimeout = 5 * time.Second
)

// call is one of many calls of scripts.
type call struct {
	script *redis.Script
	keys   []string
	args   []any
}

// callBatcher sends the scripts of one partition that are called at the same time to Redis in one pipeline. Each partition has
// its own, so a partition that does not answer delays no other.
type callBatcher = batch.Runner[call, *redis.Cmd]

func newBatchers(rdb redis.UniversalClient, partitions int) []*callBatcher {
	batchers := make([]*callBatcher, partitions)
	for p := range batchers {
		batchers[p] = batch.New(maxCalls, func(calls []call) []*redis.Cmd {
			ctx, cancel := context.WithTimeout(context.Background(), batchTimeout)
			defer cancel()
			return runAll(ctx, rdb, calls)
		})
	}
	return batchers
}

// run is Script.Run in a shared batch. The script must be safe to run again: go-redis repeats a whole pipeline whose replies
// were lost. All its keys must be of the item's partition.
func (s *Store) run(ctx context.Context, id item.ID, script *redis.Script, keys []string, args ...any) *redis.Cmd {
	cmd, err := s.batchers[s.keys.Partition(id)].Do(ctx, call{script, keys, args})
	if err != nil {
		cmd = redis.NewCmd(ctx)
		cmd.SetErr(err)
	}
	return cmd
}

// runAll is Script.Run for many calls of one partition in one pipeline, two where a server does not know a script yet. A SCRIPT
// LOAD before each pipeline would have to reach every node of a cluster, and fail with any of them.
func runAll(ctx context.Context, rdb redis.UniversalClient, calls []call) []*redis.Cmd {
	pipelined := rdb.Pipelined
	if _, cluster := rdb.(*redis.ClusterClient); cluster {
		// In one transaction: where a slot has moved, go-redis follows it with the whole of it. The commands of a pipeline it
		// follows one by one, and when the connection breaks at the same time, it sends some of them twice at once.
		pipelined = rdb.TxPipelined
	}
	cmds := make([]*redis.Cmd, len(calls))
	send := func(run func(redis.Pipeliner, call) *redis.Cmd, which []int) {
		// The pipeline's error is that of its first failed command; each command has its own.
		_, _ = pipelined(ctx, func(pipe redis.Pipeliner) error {
			for _, i := range which {
				cmds[i] = run(pipe, calls[i])
			}
			return nil
		})
	}
	all := make([]int, len(calls))
	for i := range all {
		all[i] = i
	}
	send(func(pipe redis.Pipeliner, c call) *redis.Cmd { return c.script.EvalSha(ctx, pipe, c.keys, c.args...) }, all)
	var unknown []int
	for i, c := range cmds {
		if redis.HasErrorPrefix(c.Err(), "NOSCRIPT") {
			unknown = append(unknown, i)
		}
	}
	if len(unknown) > 0 {
		send(func(pipe redis.Pipeliner, c call) *redis.Cmd { return c.script.Eval(ctx, pipe, c.keys, c.args...) }, unknown)
	}
	return cmds
}
