package state

import (
	"context"
	"errors"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/stream"
)

// InFlight returns which of these contents, or of all where none is given, an unsettled entry of any stage names. It may
// return more of them: of each stream it takes everything from the first unsettled entry on. Stages are read in the order
// in which an entry goes through them, so none slips by.
func (s *Store) InFlight(ctx context.Context, among ...item.ID) (map[item.ID]bool, error) {
	if err := s.agreed(ctx); err != nil {
		return nil, err
	}
	asked := make(map[item.ID]bool, len(among))
	for _, id := range among {
		asked[id] = true
	}
	ids := map[item.ID]bool{}
	for _, g := range s.queues() {
		start, err := s.firstUnsettled(ctx, g.stream, g.group)
		if err != nil {
			return nil, unavailable("read", g.stream, err)
		}
		for start != "" {
			page, err := s.rdb.XRangeN(ctx, g.stream, start, "+", 1000).Result()
			if err != nil {
				return nil, unavailable("read", g.stream, err)
			}
			for _, e := range page {
				cid, _ := e.Values["cid"].(string)
				if id, err := item.ParseID(cid); err == nil && (len(asked) == 0 || asked[id]) {
					ids[id] = true
				}
			}
			start = ""
			if len(page) == 1000 {
				start = "(" + page[999].ID
			}
		}
	}
	return ids, nil
}

// Dead tells which of these events have an entry in dead.
func (s *Store) Dead(ctx context.Context, events ...string) (map[string]bool, error) {
	asked := make(map[string]bool, len(events))
	for _, e := range events {
		asked[e] = true
	}
	dead := map[string]bool{}
	for _, k := range s.keys.Each() {
		for start := "-"; start != ""; {
			page, err := s.rdb.XRangeN(ctx, k.Dead(), start, "+", 1000).Result()
			if err != nil {
				return nil, unavailable("read", k.Dead(), err)
			}
			for _, e := range page {
				if id, _ := e.Values["event_id"].(string); asked[id] {
					dead[id] = true
				}
			}
			start = ""
			if len(page) == 1000 {
				start = "(" + page[999].ID
			}
		}
	}
	return dead, nil
}

// firstUnsettled is where XRANGE starts to see everything that a group has not settled.
func (s *Store) firstUnsettled(ctx context.Context, key, group string) (string, error) {
	groups, err := s.rdb.XInfoGroups(ctx, key).Result()
	if err != nil {
		if isNoKey(err) {
			return "", nil
		}
		return "", err
	}
	for _, g := range groups {
		if g.Name != group {
			continue
		}
		p, err := s.rdb.XPending(ctx, key, group).Result()
		if err != nil && !errors.Is(err, redis.Nil) {
			return "", err
		}
		if p != nil && p.Count > 0 && !stream.Newer(p.Lower, g.LastDeliveredID) {
			return p.Lower, nil
		}
		return "(" + g.LastDeliveredID, nil
	}
	return "-", nil // no group yet: nothing is settled
}
