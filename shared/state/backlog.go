package state

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/entryid"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/stream"
)

// Unsettled is the number of entries that their groups have not settled, unread or pending, over all three streams and all
// partitions. It counts all three because each entry is work of an accepted view. If it counted views only, the other
// streams would grow without bound while the committer is away.
func (s *Store) Unsettled(ctx context.Context) (int64, error) {
	load, err := s.Load(ctx)
	return load.Unsettled(), err
}

// CreateRelocatorGroups makes the group of the relocators on views of every partition, from the first entry on, where it
// is missing. Without a group, Unsettled counts every entry that is still in the stream.
func (s *Store) CreateRelocatorGroups(ctx context.Context) error {
	for _, k := range s.keys.Each() {
		err := stream.CreateGroup(ctx, s.rdb, k.Views(), GroupRelocator, "0")
		if err != nil && !redis.HasErrorPrefix(err, "BUSYGROUP") {
			return unavailable("create group on", k.Views(), err)
		}
	}
	return nil
}

// streamGroup is a stream and the group that settles its entries.
type streamGroup struct{ stream, group string }

func (s *Store) groups() []streamGroup {
	var all []streamGroup
	for _, k := range s.keys.Each() {
		all = append(all, streamGroup{k.Views(), GroupRelocator}, streamGroup{k.Relocated(), GroupCommitter}, streamGroup{k.Committed(), GroupReleaser})
	}
	return all
}

// InFlight returns the items that an unsettled entry of any stage names, among the given ones or, where none is given,
// among all. It may return more: of each stream it takes every entry from the first unsettled one on. It reads the
// stages in the order in which an entry passes through them, so it misses none.
func (s *Store) InFlight(ctx context.Context, among ...item.ID) (map[item.ID]bool, error) {
	if err := s.agreed(ctx); err != nil {
		return nil, err
	}
	wanted := make(map[item.ID]bool, len(among))
	for _, id := range among {
		wanted[id] = true
	}
	ids := map[item.ID]bool{}
	for _, g := range s.groups() {
		start, err := s.firstUnsettled(ctx, g.stream, g.group)
		if err != nil {
			return nil, unavailable("read", g.stream, err)
		}
		if start == "" {
			continue
		}
		err = s.eachEntry(ctx, g.stream, start, func(e redis.XMessage) {
			cid, _ := e.Values["cid"].(string)
			if id, err := item.ParseID(cid); err == nil && (len(wanted) == 0 || wanted[id]) {
				ids[id] = true
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return ids, nil
}

// eachEntry calls fn for every entry of a stream from start on, as XRANGE takes it, page by page.
func (s *Store) eachEntry(ctx context.Context, stream, start string, fn func(redis.XMessage)) error {
	const limit = 1000
	for {
		page, err := s.rdb.XRangeN(ctx, stream, start, "+", limit).Result()
		if err != nil {
			return unavailable("read", stream, err)
		}
		for _, e := range page {
			fn(e)
		}
		if len(page) < limit {
			return nil
		}
		start = "(" + page[limit-1].ID
	}
}

// firstUnsettled is where XRANGE starts to return everything that a group has not settled, "" where the stream is missing.
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
		if p != nil && p.Count > 0 && !entryid.Newer(p.Lower, g.LastDeliveredID) {
			return p.Lower, nil
		}
		return "(" + g.LastDeliveredID, nil
	}
	return "-", nil // no group yet: nothing is settled
}

// Unreachable returns the sets of tiers, names with commas between, that no relocator reached lately, and when that was last
// found: what MarkUnreachable has recorded.
func (s *Store) Unreachable(ctx context.Context) (map[string]time.Time, error) {
	all, err := s.rdb.HGetAll(ctx, s.keys.Unreachable()).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return nil, unavailable("read", s.keys.Unreachable(), err)
	}
	found := map[string]time.Time{}
	for tiers, at := range all {
		if t, err := time.Parse(time.RFC3339Nano, at); err == nil && time.Since(t).Abs() < unreachableFor {
			found[tiers] = t
		}
	}
	return found, nil
}
