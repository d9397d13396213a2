package state

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/stream"
)

// Worker is a living worker, as its heartbeat describes it.
type Worker struct {
	ID    string
	Tiers []string // names of the levels whose tiers it reaches; nil: all
}

// Reaches reports whether the worker reaches all these tiers.
func (w Worker) Reaches(tiers ...string) bool {
	if w.Tiers == nil {
		return true
	}
	for _, t := range tiers {
		found := false
		for _, reached := range w.Tiers {
			found = found || reached == t
		}
		if !found {
			return false
		}
	}
	return true
}

// tiers is the form of a worker's tiers in Redis: names with commas between, or * for all.
func (w Worker) tiers() string {
	if w.Tiers == nil {
		return "*"
	}
	return strings.Join(w.Tiers, ",")
}

// heartbeatScript records the heartbeat of a worker, forgets workers whose last heartbeat is too old, and lists the
// others. The time is the server's. A heartbeat of the future is from before the server's clock went back, and says no more
// than an old one.
//
//	KEYS  workers:{group}
//	ARGV  worker id, its tiers, how long a heartbeat counts in ms
//	->    id and tiers of each living worker
var heartbeatScript = stream.Script(`
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f %s', now, ARGV[2]))
local living = {}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local seen, tiers = string.match(all[i+1], '^(%d+) (.*)$')
  if not seen or math.abs(now - seen) > tonumber(ARGV[3]) then
    redis.call('HDEL', KEYS[1], all[i])
  else
    living[#living+1] = all[i]
    living[#living+1] = tiers
  end
end
return living`)

// Heartbeat records that a worker lives and returns all living workers of its group, which are those with a heartbeat within
// the given time. The list decides only which worker does what. The consumer group, the lock and the generation see to
// it that each entry takes effect once.
func (s *Store) Heartbeat(ctx context.Context, group string, w Worker, within time.Duration) ([]Worker, error) {
	if err := s.agreed(ctx); err != nil {
		return nil, err
	}
	list, err := heartbeatScript.Run(ctx, s.rdb, []string{s.keys.Workers(group)}, w.ID, w.tiers(), within.Milliseconds()).StringSlice()
	if err == nil && len(list)%2 != 0 {
		err = fmt.Errorf("%d values", len(list))
	}
	if err != nil {
		return nil, unavailable("send heartbeat to", s.keys.Workers(group), err)
	}
	living := make([]Worker, 0, len(list)/2)
	for i := 0; i < len(list); i += 2 {
		other := Worker{ID: list[i]}
		if list[i+1] != "*" {
			other.Tiers = strings.Split(list[i+1], ",")
		}
		living = append(living, other)
	}
	return living, nil
}

// living returns the workers of a group with a heartbeat within the given time.
func (s *Store) living(ctx context.Context, group string, within time.Duration) (ids []string, err error) {
	beats, err := s.rdb.HGetAll(ctx, s.keys.Workers(group)).Result()
	if err != nil {
		return nil, unavailable("read", s.keys.Workers(group), err)
	}
	if len(beats) == 0 {
		return nil, nil
	}
	// The api may not run a script on the heartbeats. In a cluster, the clock may be that of another server than theirs.
	now, err := s.Now(ctx, s.keys.Services())
	if err != nil {
		return nil, err
	}
	for id, beat := range beats {
		at, _, _ := strings.Cut(beat, " ")
		ms, err := strconv.ParseInt(at, 10, 64)
		if err == nil && now.Sub(time.UnixMilli(ms)).Abs() <= within {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Leave removes a worker from its group: the others have its partitions after their next heartbeats.
func (s *Store) Leave(ctx context.Context, group, id string) error {
	if err := s.rdb.HDel(ctx, s.keys.Workers(group), id).Err(); err != nil {
		return unavailable("leave", s.keys.Workers(group), err)
	}
	return nil
}

// reassignScript gives an entry that its consumer still has to another consumer. XCLAIM resets the idle time, so the other
// consumer has its full time. JUSTID leaves the delivery count as it is: this is no attempt.
//
//	KEYS  stream
//	ARGV  group, the entry's consumer, entry id, the other consumer
//	->    1 reassigned, 0 not this consumer's entry any more
var reassignScript = stream.Script(`
local p = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])
if #p == 0 then return 0 end
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[4], 0, ARGV[3], 'JUSTID')
return 1`)

// Reassign gives a pending entry of one consumer to another consumer of the group. false: the entry is not the first
// consumer's any more.
func (s *Store) Reassign(ctx context.Context, stream, group, from, entryID, to string) (bool, error) {
	n, err := reassignScript.Run(ctx, s.rdb, []string{stream}, group, from, entryID, to).Int()
	if err != nil {
		return false, unavailable("reassign", entryID, err)
	}
	return n == 1, nil
}

// unreachableFor is how long MarkUnreachable counts. A relocator that waits for such tiers calls it more often.
const unreachableFor = 2 * time.Minute

// MarkUnreachable records that entries wait for a relocator that reaches all these tiers.
func (s *Store) MarkUnreachable(ctx context.Context, tiers ...string) error {
	key := s.keys.Unreachable()
	_, err := s.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		pipe.HSet(ctx, key, strings.Join(tiers, ","), formatNow())
		pipe.Expire(ctx, key, unreachableFor)
		return nil
	})
	if err != nil {
		return unavailable("write", key, err)
	}
	return nil
}

// ClearUnreachable removes what MarkUnreachable has recorded.
func (s *Store) ClearUnreachable(ctx context.Context, tiers ...string) error {
	if err := s.rdb.HDel(ctx, s.keys.Unreachable(), strings.Join(tiers, ",")).Err(); err != nil {
		return unavailable("write", s.keys.Unreachable(), err)
	}
	return nil
}
