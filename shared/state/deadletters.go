package state

import (
	"context"
	"fmt"
	"slices"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
)

// DeadLetter settles an entry that failed for good and keeps it in dead. entry has the fields of the failed entry. It replaces
// an older dead letter of the same item and stage, and of later stages of the same copy. Where it returns false, the entry was
// settled before, or another consumer has it now, and nothing was done.
func (s *Store) DeadLetter(ctx context.Context, group, consumer string, entry map[string]string, f event.Failure) (bool, error) {
	args := append([]any{group, consumer, f.SourceID}, anys(event.Ordered(entry))...)
	args = append(args, anys(f.Fields())...)
	k, _, ok := s.keys.OfStream(f.SourceStream)
	if !ok {
		return false, fault.New(fault.Internal, "write dead letter of", f.SourceID, fmt.Errorf("%q is not a stream of Tierflow", f.SourceStream))
	}
	id, err := deadLetterScript.Run(ctx, s.rdb, append([]string{f.SourceStream}, k.dead()...), args...).Text()
	if err != nil {
		return false, unavailable("write dead letter of", f.SourceID, err)
	}
	return id != "", nil
}

// DeadEntry is an entry of dead. event.ParseDead reads its fields.
type DeadEntry struct {
	Ref    Ref
	Fields map[string]string
}

// DeadLetters reads up to limit entries of dead after a Ref, oldest first over all partitions. next is the Ref to go on
// from, nil at the end. One pipeline reads all partitions.
func (s *Store) DeadLetters(ctx context.Context, after Ref, limit int) (dead []DeadEntry, next *Ref, err error) {
	all := s.keys.Each()
	pages := make([]*redis.XMessageSliceCmd, len(all))
	// The pipeline's error is that of its first failed command; each command has its own.
	_, _ = s.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for p, k := range all {
			pages[p] = pipe.XRangeN(ctx, k.Dead(), after.start(p), "+", int64(limit))
		}
		return nil
	})
	for p, page := range pages {
		ms, err := page.Result()
		if err != nil {
			return nil, nil, unavailable("read", all[p].Dead(), err)
		}
		for _, m := range ms {
			dead = append(dead, DeadEntry{Ref{p, m.ID}, texts(m.Values)})
		}
	}
	slices.SortFunc(dead, func(a, b DeadEntry) int { return a.Ref.Compare(b.Ref) })
	if len(dead) >= limit {
		dead = dead[:limit]
		next = &dead[limit-1].Ref
	}
	return dead, next, nil
}

// GetDeadLetter reads one entry of dead. ok is false where there is none.
func (s *Store) GetDeadLetter(ctx context.Context, r Ref) (d DeadEntry, ok bool, err error) {
	dead := s.keys.In(r.Partition).Dead()
	ms, err := s.rdb.XRange(ctx, dead, r.ID, r.ID).Result()
	if err != nil {
		return DeadEntry{}, false, unavailable("read", dead, err)
	}
	if len(ms) == 0 {
		return DeadEntry{}, false, nil
	}
	return DeadEntry{r, texts(ms[0].Values)}, true, nil
}

// DropDeadLetter deletes an entry of dead. ok is false where there is none.
func (s *Store) DropDeadLetter(ctx context.Context, r Ref) (ok bool, err error) {
	n, err := dropScript.Run(ctx, s.rdb, s.keys.In(r.Partition).dead(), r.ID).Int()
	if err != nil {
		return false, unavailable("drop", r.Text(s.keys), err)
	}
	return n > 0, nil
}

// RetryResult says what became of a retry.
type RetryResult struct {
	Gone    bool   // dead has no such entry (any more)
	Newer   bool   // the item has a newer event, which the retry would undo
	EntryID string // the new entry
}

func retryResult(r string, err error) (RetryResult, error) {
	switch {
	case err != nil:
		return RetryResult{}, unavailable("retry", "dead entry", err)
	case r == "gone":
		return RetryResult{Gone: true}, nil
	case r == "newer":
		return RetryResult{Newer: true}, nil
	}
	return RetryResult{EntryID: r}, nil
}

// RetryView moves an entry of dead back to views, as v, which has a new event id and belongs to the same partition.
// sourceID is the id that the entry had in views. rowEntry is the CountEntry of the item's row, read just before. Where the
// row or the state has a newer count, the result is Newer. Like Append, it must not be sent twice.
func (s *Store) RetryView(ctx context.Context, dead Ref, sourceID, rowEntry string, v event.View) (RetryResult, error) {
	st := NewState(v)
	st.Status = Update
	k := s.keys.Of(v.ID)
	args := append([]any{dead.ID, sourceID, rowEntry, st.head(), st.tail()}, anys(v.Fields())...)
	return retryResult(retryViewScript.Run(ctx, s.rdb,
		append(k.dead(), k.Views(), k.State(v.ID)), args...).Text())
}

// Retry moves an entry of dead back to its stream with the given fields. The stream is relocated or committed of the same
// partition. Like Append, it must not be sent twice.
func (s *Store) Retry(ctx context.Context, dead Ref, stream string, fields []string) (RetryResult, error) {
	return retryResult(retryScript.Run(ctx, s.rdb, append(s.keys.In(dead.Partition).dead(), stream),
		append([]any{dead.ID}, anys(fields)...)...).Text())
}

// DeadEvents tells which of these events have an entry in dead. It reads all of dead.
func (s *Store) DeadEvents(ctx context.Context, events ...string) (map[string]bool, error) {
	wanted := make(map[string]bool, len(events))
	for _, e := range events {
		wanted[e] = true
	}
	dead := map[string]bool{}
	for _, k := range s.keys.Each() {
		err := s.eachEntry(ctx, k.Dead(), "-", func(e redis.XMessage) {
			if id, _ := e.Values["event_id"].(string); wanted[id] {
				dead[id] = true
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return dead, nil
}
