package state

import (
	"context"

	"github.com/tierflow/tierflow/shared/event"
)

// Finished is what the committer knows of one entry of `relocated` once COMMIT has returned.
type Finished struct {
	EntryID  string
	Event    event.Committed
	RowLevel string // level that the row names now; "" where there is no row
}

// Finish publishes the commits of one partition and settles their entries (step 7): one script each, all in one pipeline.
// errs has an error for each entry that must be finished again, nil for the others.
func (s *Store) Finish(ctx context.Context, fs []Finished) (errs []error) {
	errs = make([]error, len(fs))
	calls := make([]call, len(fs))
	for i, f := range fs {
		id := f.Event.ID
		k := s.keys.Of(id)
		calls[i] = call{
			script: finishScript,
			keys:   []string{k.State(id), k.Lock(id), k.Relocated(), k.Committed(), k.Views()},
			args: append([]any{f.EntryID, GroupCommitter, emittedPrefix(f.Event.EventID), string(f.Event.Outcome), f.Event.To,
				f.RowLevel, f.Event.EventID, formatNow(), s.seconds()}, values(f.Event.Fields())...),
		}
	}
	for i, c := range runAll(ctx, s.rdb, calls) {
		if c.Err() != nil {
			errs[i] = unavailable("finish", fs[i].Event.ID.String(), c.Err())
		}
	}
	return errs
}
