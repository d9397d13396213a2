package state

import (
	"context"
	"errors"
	"slices"
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
	cmds := make([]*redis.Cmd, len(calls))
	send := func(run runner, which []int) {
		if cluster, ok := rdb.(*redis.ClusterClient); ok {
			sendToCluster(ctx, cluster, run, calls, cmds, which)
			return
		}
		send(ctx, rdb, run, calls, cmds, which)
	}
	byDigest(cmds, send)
	return cmds
}

// byDigest sends all scripts by their digests, and those as texts that a server does not know.
func byDigest(cmds []*redis.Cmd, send func(run runner, which []int)) {
	all := make([]int, len(cmds))
	for i := range all {
		all[i] = i
	}
	send((*redis.Script).EvalSha, all)
	unknown := slices.DeleteFunc(all, func(i int) bool { return !redis.HasErrorPrefix(cmds[i].Err(), "NOSCRIPT") })
	if len(unknown) > 0 {
		send((*redis.Script).Eval, unknown)
	}
}

// runner is how a script is sent.
type runner func(s *redis.Script, ctx context.Context, c redis.Scripter, keys []string, args ...any) *redis.Cmd

// send sends the calls whose numbers are in which, in one pipeline, and puts their results into cmds.
func send(ctx context.Context, rdb pipeliner, run runner, calls []call, cmds []*redis.Cmd, which []int) {
	// The pipeline's error is that of its first failed command; each command has its own.
	_, _ = rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for _, i := range which {
			cmds[i] = run(calls[i].script, ctx, pipe, calls[i].keys, calls[i].args...)
		}
		return nil
	})
}

type pipeliner interface {
	Pipelined(ctx context.Context, fn func(redis.Pipeliner) error) ([]redis.Cmder, error)
}

const (
	// clusterAttempts is how often a pipeline is sent to a node that does not answer. The node may be away for a moment, or
	// another one may have its slots by then.
	clusterAttempts = 3
	clusterWait     = 20 * time.Millisecond
)

// sendToCluster is send for a cluster. All calls are of one partition, so one node has them all.
//
// The pipeline goes to that node itself. In a pipeline of the cluster's client, go-redis follows a slot that has moved command by
// command. When the connection breaks at the same time, it sends some commands twice at once, and both write the same result. A
// transaction (MULTI) would be followed as a whole, but Redis refuses it at maxmemory, whatever its scripts may do. Nothing else
// is lost without it: each script is atomic alone.
func sendToCluster(ctx context.Context, cluster *redis.ClusterClient, run runner, calls []call, cmds []*redis.Cmd, which []int) {
	for attempt := 1; ; attempt++ {
		node, err := cluster.MasterForKey(ctx, calls[which[0]].keys[0])
		if err != nil {
			for _, i := range which {
				cmds[i] = redis.NewCmd(ctx)
				cmds[i].SetErr(err)
			}
		} else {
			send(ctx, node, run, calls, cmds, which)
		}
		var silent []int
		for _, i := range which {
			var answered redis.Error
			switch err := cmds[i].Err(); {
			case err == nil:
			case !errors.As(err, &answered):
				silent = append(silent, i)
			case elsewhere(err):
				cmds[i] = run(calls[i].script, ctx, cluster, calls[i].keys, calls[i].args...)
			}
		}
		if len(silent) == 0 {
			return
		}
		cluster.ReloadState(ctx) // in the background; a replica may have been promoted
		if attempt == clusterAttempts {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(clusterWait):
		}
		which = silent
	}
}

// elsewhere reports whether a node did not run a script because another one has the slot, or will have it. The cluster's client
// knows what to do about each single one of these.
func elsewhere(err error) bool {
	return notRun(err) || redis.HasErrorPrefix(err, "MOVED") || redis.HasErrorPrefix(err, "ASK") || redis.HasErrorPrefix(err, "READONLY")
}
