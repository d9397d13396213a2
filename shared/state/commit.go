package state

import (
	"context"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
)

// Finished is what the committer knows of one entry of `relocated` once COMMIT has returned.
type Finished struct {
	EntryID  string
	Event    event.Committed
	RowLevel string // level that the row names now; "" where there is no row
}

// Finish spreads the news of commits and settles their entries (step 7): one script each, all on one trip. errs has
// an error for each entry that must be finished again, nil for the others.
func (s *Store) Finish(ctx context.Context, fs []Finished) (errs []error) {
	errs = make([]error, len(fs))
	calls := make([]call, len(fs))
	for i, f := range fs {
		id := f.Event.ID
		k := s.keys.Of(id)
		calls[i] = call{
			keys: []string{k.Content(id), k.Lock(id), k.Relocated(), k.Committed(), k.Views()},
			args: append([]any{f.EntryID, GroupCommitter, emittedPrefix(f.Event.EventID), string(f.Event.Outcome), f.Event.To,
				f.RowLevel, f.Event.EventID, formatNow(), s.seconds()}, anys(f.Event.Fields())...),
		}
	}
	for i, c := range runAll(ctx, s.rdb, finishScript, calls) {
		if c.Err() != nil {
			errs[i] = unavailable("finish", fs[i].Event.ID.String(), c.Err())
		}
	}
	return errs
}

// call is one of many calls of a script.
type call struct {
	keys []string
	args []any
}

// runAll is Script.Run for many calls on one trip, two where a server does not know the script yet: SCRIPT LOAD in
// front of each trip would have to reach every node of a cluster, and fail with any of them.
func runAll(ctx context.Context, rdb redis.UniversalClient, script *redis.Script, calls []call) []*redis.Cmd {
	cmds := make([]*redis.Cmd, len(calls))
	trip := func(run func(redis.Pipeliner, call) *redis.Cmd, which []int) {
		// The pipeline's error is that of its first failed command; each command has its own.
		_, _ = rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
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
	trip(func(pipe redis.Pipeliner, c call) *redis.Cmd { return script.EvalSha(ctx, pipe, c.keys, c.args...) }, all)
	var unknown []int
	for i, c := range cmds {
		if redis.HasErrorPrefix(c.Err(), "NOSCRIPT") {
			unknown = append(unknown, i)
		}
	}
	if len(unknown) > 0 {
		trip(func(pipe redis.Pipeliner, c call) *redis.Cmd { return script.Eval(ctx, pipe, c.keys, c.args...) }, unknown)
	}
	return cmds
}

// Bury settles an entry that failed for good and keeps it in dead. entry has the fields of the failed entry.
// false: it was settled before, or is another consumer's now; nothing was done.
func (s *Store) Bury(ctx context.Context, group, consumer string, entry map[string]string, f event.Failure) (bool, error) {
	args := append([]any{group, consumer, f.SourceID}, anys(event.Ordered(entry))...)
	args = append(args, anys(f.Fields())...)
	k, _, ok := s.keys.OfStream(f.SourceStream)
	if !ok {
		return false, fault.New(fault.Internal, "bury", f.SourceID, fmt.Errorf("%q is no stream of ours", f.SourceStream))
	}
	id, err := deadScript.Run(ctx, s.rdb, []string{f.SourceStream, k.Dead()}, args...).Text()
	if err != nil {
		return false, unavailable("bury", f.SourceID, err)
	}
	return id != "", nil
}
