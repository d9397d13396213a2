package stream

import "github.com/redis/go-redis/v9"

// What scripts say of an entry. XCLAIM drops an entry that was deleted from the stream, and does not return it.
const (
	isOurs    = 1
	isDeleted = -1
)

// renewScript resets the idle time of entries that are still ours, without counting a delivery.
//
//	KEYS  stream
//	ARGV  group, consumer, 1 to renew or 0 only to look, ids
//	->    for each id 1 (ours), 0 (not ours) or -1 (deleted from the stream)
var renewScript = redis.NewScript(`
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

// countScript sets the delivery count of an entry that is still ours.
//
//	KEYS  stream
//	ARGV  group, consumer, id, count
//	->    1 (done), 0 (not ours) or -1 (deleted from the stream)
var countScript = redis.NewScript(`
if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2]) == 0 then return 0 end
local mine = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'RETRYCOUNT', ARGV[4], 'JUSTID')
return #mine == 1 and 1 or -1`)

// releaseScript makes entries that are still ours look idle, so that others take them over at once. Taking over
// counts as an attempt, so one less is written down. What looks idle already is left alone.
//
//	KEYS  stream
//	ARGV  group, consumer, idle in ms, ids
//	->    the ids that were deleted from the stream
var releaseScript = redis.NewScript(`
local deleted = {}
for i = 4, #ARGV do
  local p = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])
  if #p == 1 and p[1][3] < tonumber(ARGV[3]) then
    local mine = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'IDLE', ARGV[3],
      'RETRYCOUNT', math.max(p[1][4] - 1, 0), 'JUSTID')
    if #mine == 0 then deleted[#deleted+1] = ARGV[i] end
  end
end
return deleted`)

// forgetScript removes a consumer that has nothing pending; one that has would take its entries along.
//
//	KEYS  stream
//	ARGV  group, consumer
//	->    1 removed, 0 not
var forgetScript = redis.NewScript(`
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) ~= 0 then return 0 end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
return 1`)

// trimScript removes entries that every group has settled, up to the given id. Without LIMIT 0, Redis would remove at
// most 10,000 at a time, and a busy stream would grow for ever.
//
//	KEYS  stream
//	ARGV  id: entries from here on are kept
//	->    how many were removed
var trimScript = redis.NewScript(`
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
