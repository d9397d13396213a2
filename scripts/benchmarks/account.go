package benchmarks

import (
	"context"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/content"
	"github.com/tierflow/tierflow/shared/state"
)

// clear empties Redis, but for the relocators' group: what is there afterwards comes from the next measurement.
func (p *posts) clear(ctx context.Context) error {
	if err := p.stack.Redis.FlushAll(ctx).Err(); err != nil {
		return err
	}
	return p.stack.Redis.XGroupCreateMkStream(ctx, p.stack.Keys.Views(), state.GroupRelocator, "0").Err()
}

// account checks that every post that was answered with 200 is in the stream, once, and that the state of each content
// is its newest event's. Posts that were under way at the end, one a connection, may be there as well.
func (p *posts) account(ctx context.Context, r result) error {
	counts, events := map[string]bool{}, map[string]bool{}
	newest := map[content.ID]redis.XMessage{}
	entries := 0
	for from := "-"; ; {
		page, err := p.stack.Redis.XRangeN(ctx, p.stack.Keys.Views(), from, "+", 10_000).Result()
		if err != nil {
			return err
		}
		if len(page) == 0 {
			break
		}
		for _, e := range page {
			count, _ := e.Values["count"].(string)
			event, _ := e.Values["event_id"].(string)
			cid, _ := e.Values["cid"].(string)
			id, err := content.ParseID(cid)
			if err != nil {
				return fmt.Errorf("entry %s: cid %w", e.ID, err)
			}
			counts[count], events[event], newest[id] = true, true, e
		}
		entries += len(page)
		from = "(" + page[len(page)-1].ID
	}
	switch {
	case entries < r.ok || entries > r.ok+connections:
		return fmt.Errorf("%d posts were answered with 200, and %d entries are in the stream", r.ok, entries)
	case len(counts) != entries || len(events) != entries:
		return fmt.Errorf("%d entries are in the stream, with only %d different counts and %d different event ids",
			entries, len(counts), len(events))
	}
	return p.statesAgree(ctx, newest)
}

func (p *posts) statesAgree(ctx context.Context, newest map[content.ID]redis.XMessage) error {
	store := state.NewStore(state.Options{Redis: p.stack.Redis, Keys: p.stack.Keys})
	var ids []content.ID
	for id := range newest {
		ids = append(ids, id)
	}
	states, err := store.GetMany(ctx, ids)
	if err != nil {
		return err
	}
	var wrong []error
	for i, id := range ids {
		e, s := newest[id], states[i]
		if s == nil || s.EntryID != e.ID || s.EventID != e.Values["event_id"] || s.Count.String() != e.Values["count"] {
			wrong = append(wrong, fmt.Errorf("content %s: its newest entry is %s %v, its state %+v", id, e.ID, e.Values, s))
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("%d states do not agree with the stream, such as: %w", len(wrong), errors.Join(wrong[:min(3, len(wrong))]...))
	}
	return nil
}
