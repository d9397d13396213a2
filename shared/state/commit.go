package state

import (
	"context"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/event"
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
	if err := finishScript.Load(ctx, s.rdb).Err(); err != nil {
		for i := range errs {
			errs[i] = unavailable("finish", fs[i].Event.ID.String(), err)
		}
		return errs
	}
	cmds := make([]*redis.Cmd, len(fs))
	// The pipeline's error is that of its first failed command; each command has its own.
	_, _ = s.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, f := range fs {
			id := f.Event.ID
			args := append([]any{f.EntryID, GroupCommitter, emittedPrefix(f.Event.EventID), string(f.Event.Outcome), f.Event.To,
				f.RowLevel, f.Event.EventID, formatNow(), s.seconds()}, anys(f.Event.Fields())...)
			cmds[i] = finishScript.EvalSha(ctx, pipe, []string{s.keys.Content(id), s.keys.Lock(id), s.keys.Relocated(),
				s.keys.Committed(), s.keys.Views()}, args...)
		}
		return nil
	})
	for i, c := range cmds {
		if c.Err() != nil {
			errs[i] = unavailable("finish", fs[i].Event.ID.String(), c.Err())
		}
	}
	return errs
}

// Bury settles an entry that failed for good and keeps it in dead. entry has the fields of the failed entry.
// false: it was settled before, or is another consumer's now; nothing was done.
func (s *Store) Bury(ctx context.Context, group, consumer string, entry map[string]string, f event.Failure) (bool, error) {
	args := append([]any{group, consumer, f.SourceID}, anys(event.Ordered(entry))...)
	args = append(args, anys(f.Fields())...)
	id, err := deadScript.Run(ctx, s.rdb, []string{f.SourceStream, s.keys.Dead()}, args...).Text()
	if err != nil {
		return false, unavailable("bury", f.SourceID, err)
	}
	return id != "", nil
}
