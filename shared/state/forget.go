package state

import (
	"context"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/entryid"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/stream"
)

// NewForgetToken makes the token of one attempt to delete an item's row.
func NewForgetToken(random string) Token { return Token("deleting " + random) }

// forgetScript ends the deletion of a row. The token is the fence: the state and the lock of another holder stay.
//
//	KEYS  lock:{cid}, content:{cid}
//	ARGV  token, '1' where the row is gone and its state goes too
//	->    1 where the caller had the lock, else 0
var forgetScript = stream.Script(`
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '1' then redis.call('DEL', KEYS[2]) end
redis.call('DEL', KEYS[1])
return 1`)

// Forget unlocks an item that Lock has locked with a NewForgetToken. Where its row is gone, Forget also deletes the item's state.
// False: the caller had lost the lock, and nothing was done.
func (s *Store) Forget(ctx context.Context, id item.ID, token Token, gone bool) (bool, error) {
	flag := ""
	if gone {
		flag = "1"
	}
	n, err := s.run(ctx, id, forgetScript, []string{s.keys.Lock(id), s.keys.State(id)}, string(token), flag).Int()
	if err != nil {
		return false, unavailable("forget state", id.String(), err)
	}
	return n == 1, nil
}

// Copies are the copies of an item, besides the one that its row names, that the pipeline still has to settle.
type Copies struct {
	Uncommitted bool // an emitted move waits for its commit
	Unreleased  bool // an old or a stray copy waits for its release
}

// CopiesUnderWay searches the unsettled entries of `relocated` and `committed` for an item. While the caller holds the item's lock,
// no move of it can be emitted, so the answer misses none. It reads all unsettled entries of the item's partition: a few where
// all services run, up to the backlog's bound where one is away.
func (s *Store) CopiesUnderWay(ctx context.Context, id item.ID) (c Copies, err error) {
	k := s.keys.Of(id)
	// An entry of relocated becomes one of committed in one step. So a search in this order cannot miss it.
	if c.Uncommitted, err = s.unsettledOf(ctx, k.Relocated(), GroupCommitter, id); err == nil {
		c.Unreleased, err = s.unsettledOf(ctx, k.Committed(), GroupReleaser, id)
	}
	return c, err
}

// unsettledOf reports whether a stream has an entry of an item that the group has not settled.
func (s *Store) unsettledOf(ctx context.Context, key, group string, id item.ID) (bool, error) {
	const page = 1000
	start, err := s.firstUnsettled(ctx, key, group)
	cid := id.String()
	for err == nil && start != "" {
		var entries []redis.XMessage
		if entries, err = s.rdb.XRangeN(ctx, key, start, "+", page).Result(); err != nil {
			break
		}
		for _, e := range entries {
			if e.Values["cid"] != cid {
				continue
			}
			settled, err := s.settled(ctx, key, group, e.ID)
			if err != nil {
				return false, unavailable("read", key, err)
			}
			if !settled {
				return true, nil
			}
		}
		start = ""
		if len(entries) == page {
			start = "(" + entries[page-1].ID
		}
	}
	if err != nil {
		return false, unavailable("read", key, err)
	}
	return false, nil
}

// settled reports whether a group has settled an entry: it was delivered and is not pending. The pending list is read after the
// group's position, so an entry that is delivered in between counts as unsettled.
func (s *Store) settled(ctx context.Context, key, group, entryID string) (bool, error) {
	groups, err := s.rdb.XInfoGroups(ctx, key).Result()
	if err != nil {
		return false, err
	}
	for _, g := range groups {
		if g.Name != group || entryid.Newer(entryID, g.LastDeliveredID) {
			continue
		}
		pending, err := s.rdb.XPendingExt(ctx, &redis.XPendingExtArgs{Stream: key, Group: group, Start: entryID, End: entryID, Count: 1}).Result()
		return err == nil && len(pending) == 0, err
	}
	return false, nil
}
