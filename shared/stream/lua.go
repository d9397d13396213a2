package stream

import (
	"context"

	"github.com/redis/go-redis/v9"
)

// Script makes a script that runs at Redis' maxmemory as well: all that settles entries, because it frees memory in the end.
// By default Redis refuses a script there as soon as its first command may take memory. Only what accepts views is
// made with redis.NewScript. Source: Redis' documentation of script flags, allow-oom (7.0).
func Script(src string) *redis.Script { return redis.NewScript("#!lua flags=allow-oom\n" + src) }

// CreateGroup makes a consumer group, and its stream where that is missing. start is the id after which the group reads. An
// error with the prefix BUSYGROUP says that the group is there.
func CreateGroup(ctx context.Context, rdb redis.UniversalClient, key, group, start string) error {
	return createGroupScript.Run(ctx, rdb, []string{key}, group, start).Err()
}

// createGroupScript is XGROUP CREATE, which Redis refuses at maxmemory outside of a script.
//
//	KEYS  stream
//	ARGV  group, id after which it reads
//	->    OK, or the error BUSYGROUP
var createGroupScript = Script(`return redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], ARGV[2], 'MKSTREAM')`)

// Results of scripts for an entry. XCLAIM drops an entry that was deleted from the stream, and does not return it.
const (
	isOurs    = 1
	isDeleted = -1
	notOurs   = -2 // of beginScript
)

// renewScript resets the idle time of the consumer's entries, without counting a delivery.
//
//	KEYS  stream
//	ARGV  group, consumer, 1 to renew or 0 only to check, ids
//	->    for each id 1 (the consumer's), 0 (not the consumer's) or -1 (deleted from the stream)
var renewScript = Script(`
local found = {}
for i = 4, #ARGV do
  local r = 0
  if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2]) == 1 then
    r = 1
    if ARGV[3] == '1' and #redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID') == 0 then r = -1 end
  end
  found[i-3] = r
end
return found`)

// failScript records a failed attempt at an entry of the consumer: the number of the next attempt, and when it is due. It
// also removes records that are too old, because their entries are gone.
//
//	KEYS  stream, backoff
//	ARGV  group, consumer, id, next attempt, ms until then, ms that a record stays after it is due
//	->    1 (done), 0 (not the consumer's) or -1 (deleted from the stream)
var failScript = Script(`
if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2]) == 0 then return 0 end
local mine = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'RETRYCOUNT', ARGV[4], 'JUSTID')
if #mine == 0 then return -1 end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now - ARGV[6]))
redis.call('ZADD', KEYS[2], string.format('%.0f', now + ARGV[5]), ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[5] + ARGV[6])
return 1`)

// beginScript renews pending entries of the consumer and returns what Redis knows of them. The number of the next attempt
// follows from the delivery count and from whether the last attempt has failed, so the caller says what to add.
//
//	KEYS  stream, backoff
//	ARGV  group, consumer, what to add to the count of an entry that has failed, and of another one, ids
//	->    for each id its count, -2 (not the consumer's) or -1 (deleted from the stream), and the ms that are left of its
//	      back-off, -1 where its last attempt has not failed
var beginScript = Script(`
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local found = {}
for i = 5, #ARGV do
  local count, wait = -2, -1
  local p = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])
  if #p == 1 then
    local due = redis.call('ZSCORE', KEYS[2], ARGV[i])
    local add = tonumber(ARGV[4])
    if due then wait, add = math.max(due - now, 0), tonumber(ARGV[3]) end
    count = math.max(p[1][4] + add, 0)
    if #redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'RETRYCOUNT', count, 'JUSTID') == 0 then
      count = -1
    end
  end
  found[#found+1] = count
  found[#found+1] = wait
end
return found`)

// countScript sets the delivery counts of entries of the consumer, and renews them.
//
//	KEYS  stream
//	ARGV  group, consumer, an id and its count for each entry
var countScript = Script(`
for i = 3, #ARGV, 2 do
  if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2]) == 1 then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'RETRYCOUNT', ARGV[i+1], 'JUSTID')
  end
end`)

// walkScript lets one consumer of a group walk at a time. A lease that is longer than any is from before the server's clock went
// back, and does not count.
//
//	KEYS  walker
//	ARGV  consumer, ms of the lease, ms of the longest lease
//	->    0 (the consumer walks), or the ms that are left of another one's lease
var walkScript = Script(`
local left = redis.call('PTTL', KEYS[1])
if left > 0 and left <= tonumber(ARGV[3]) and redis.call('GET', KEYS[1]) ~= ARGV[1] then return left end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 0`)

// leaveWalkScript ends the walk of the consumer. Until the time is over nobody walks, this consumer neither.
//
//	KEYS  walker
//	ARGV  consumer, ms
//	->    1 done, 0 another consumer has the lease
var leaveWalkScript = Script(`
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then return redis.call('DEL', KEYS[1]) end
redis.call('SET', KEYS[1], '-', 'PX', ARGV[2])
return 1`)

// makeIdleScript makes entries of the consumer look idle, so that others take them over at once. A take-over counts as an
// attempt, so the script takes one off the count. It does not where an entry waits for its back-off (see beginScript), or
// where the count is one less already. It leaves entries alone that look idle already.
//
//	KEYS  stream, backoff
//	ARGV  group, consumer, idle in ms, what to take off a count (1 or 0), ids
//	->    the ids that were deleted from the stream
var makeIdleScript = Script(`
local deleted = {}
for i = 5, #ARGV do
  local p = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])
  if #p == 1 and p[1][3] < tonumber(ARGV[3]) then
    local count = p[1][4]
    if not redis.call('ZSCORE', KEYS[2], ARGV[i]) then count = math.max(count - ARGV[4], 0) end
    local mine = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'IDLE', ARGV[3], 'RETRYCOUNT', count, 'JUSTID')
    if #mine == 0 then deleted[#deleted+1] = ARGV[i] end
  end
end
return deleted`)

// forgetScript removes a consumer that has nothing pending. XGROUP DELCONSUMER also deletes a consumer's pending entries, so
// the script checks first.
//
//	KEYS  stream
//	ARGV  group, consumer
//	->    1 removed, 0 not
var forgetScript = Script(`
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) ~= 0 then return 0 end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
return 1`)

// trimScript removes entries that every group has settled, up to the given id. Without LIMIT 0, Redis would remove at
// most 10,000 at a time, and a busy stream would grow for ever.
//
//	KEYS  stream
//	ARGV  id: entries from here on stay
//	->    how many were removed
var trimScript = Script(`
local function older(a, b)
  local am, as = string.match(a, '^(%d+)%-(%d+)$')
  local bm, bs = string.match(b, '^(%d+)%-(%d+)$')
  if am ~= bm then
    if #am ~= #bm then return #am < #bm end
    return am < bm
  end
  if #as ~= #bs then return #as < #bs end
  return as < bs
end
local keep = ARGV[1]
for _, g in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local f = {}
  for i = 1, #g, 2 do f[g[i]] = g[i+1] end
  local bound = f['last-delivered-id']
  local pending = redis.call('XPENDING', KEYS[1], f['name'])
  if pending[1] > 0 then bound = pending[2] end
  if older(bound, keep) then keep = bound end
end
return redis.call('XTRIM', KEYS[1], 'MINID', '~', keep, 'LIMIT', 0)`)
