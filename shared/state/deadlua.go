package state

import "github.com/tierflow/tierflow/shared/stream"

// deadLibrary begins every script that changes dead. It keeps two hashes beside the stream. dead:index names the dead letter
// of each subject, dead:reasons counts by stage and reason. A dead letter without the field times is from before them.
//
// A subject is an item and a stage. For commit and release it has a level too: the one whose copy the entry is about. Otherwise
// an old copy kept on bronze would be forgotten because another is kept on silver.
const deadLibrary = library + `
local function named(list, from)
  local v = {}
  for i = from, #list, 2 do v[list[i]] = list[i+1] end
  return v
end
local function subject(v)
  if not v.cid or #v.cid > 19 or not find(v.cid, '^[1-9]%d*$') then return nil end
  if v.stage == 'relocate' then return v.cid .. ' relocate' end
  local level = v.to
  if v.stage == 'release' and v.outcome == 'committed' then level = v.from end
  if level and level ~= '' and (v.stage == 'commit' or v.stage == 'release') then return v.cid .. ' ' .. v.stage .. ' ' .. level end
  return nil
end
local function get(dead, id)
  local found = redis.call('XRANGE', dead, id, id)
  return found[1] and named(found[1][2], 1)
end
local function counted(reasons, v, n)
  local name = (v.stage or '') .. ' ' .. (v.reason or '')
  if redis.call('HINCRBY', reasons, name, n) <= 0 then redis.call('HDEL', reasons, name) end
end
local function remove(dead, index, reasons, id)
  local v = get(dead, id)
  if not v then return false end
  redis.call('XDEL', dead, id)
  local s = subject(v)
  if s and redis.call('HGET', index, s) == id then redis.call('HDEL', index, s) end
  if v.times then counted(reasons, v, -1) end
  return true
end
`

// deadLetterScript settles an entry that failed for good, and appends it to dead with its reason. It reads the pending list
// first: with XACK alone, a worker that was paused could dead-letter an entry that another worker has now. It replaces the
// dead letter that an older entry of the same subject has. So an item that cannot be moved has one, however often it is
// posted. A dead letter of a newer entry stays, and the new one stays beside it.
//
//	KEYS  the entry's stream, dead, dead:index, dead:reasons
//	ARGV  group, consumer, entry id, fields and values of the entry of dead
//	->    the id in dead, '' where the entry was settled before or is another consumer's now
var deadLetterScript = stream.Script(deadLibrary + `
if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2]) == 0 then return '' end
if redis.call('XLEN', KEYS[2]) == 0 then redis.call('DEL', KEYS[3], KEYS[4]) end -- somebody has deleted the stream by hand
local new = named(ARGV, 4)
local s = subject(new)
local old = s and redis.call('HGET', KEYS[3], s)
local v = old and get(KEYS[2], old)
local times, first = 1, new.failed_at
if v and subject(v) == s then
  if newer(v.source_id or '', ARGV[3]) then
    s, v = nil, nil
  else
    times, first = (tonumber(v.times) or 1) + 1, v.first_failed_at or v.failed_at
  end
else
  v = nil
end
for _, text in ipairs({'times', string.format('%.0f', times), 'first_failed_at', first or ''}) do ARGV[#ARGV+1] = text end
local id = redis.call('XADD', KEYS[2], '*', unpack(ARGV, 4)) -- first: an entry with too many fields must stay pending
if v then remove(KEYS[2], KEYS[3], KEYS[4], old) end
if s then redis.call('HSET', KEYS[3], s, id) end
counted(KEYS[4], new, 1)
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
return id`)

// dropScript deletes a dead letter.
//
//	KEYS  dead, dead:index, dead:reasons
//	ARGV  id in dead
//	->    1, 0 where there is none
var dropScript = stream.Script(deadLibrary + `
return remove(KEYS[1], KEYS[2], KEYS[3], ARGV[1]) and 1 or 0`)

// retryViewScript appends a view event of dead again (POST /v1/dead/{id}/retry). The row may know of a newer count when the
// state of that one has expired. An id that views has not reached is of a Redis that was wiped, and says nothing.
//
//	KEYS  dead, dead:index, dead:reasons, views, content:{cid}
//	ARGV  id in dead, id that the entry had in views, id of the entry whose count the row has ('' unknown), state up to its
//	      entry id, state after it, the fields and values of the entry of views
//	->    'gone', 'newer': a newer event of this item exists, or the new entry id
var retryViewScript = stream.Script(deadLibrary + `
if not get(KEYS[1], ARGV[1]) then return 'gone' end
local newest = entry(redis.call('GET', KEYS[5]))
if newest and newer(newest, ARGV[2]) then return 'newer' end
if newer(ARGV[3], ARGV[2]) then
  local info, last = redis.pcall('XINFO', 'STREAM', KEYS[4]), '0-0'
  if info.err and not find(info.err, 'no such key', 1, true) then return info end
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then last = info[i+1] end
  end
  if not newer(ARGV[3], last) then return 'newer' end
end
remove(KEYS[1], KEYS[2], KEYS[3], ARGV[1])
local id = redis.call('XADD', KEYS[4], '*', unpack(ARGV, 6))
redis.call('SET', KEYS[5], ARGV[4] .. id .. ARGV[5])
return id`)

// retryScript appends an entry of dead to relocated or committed again.
//
//	KEYS  dead, dead:index, dead:reasons, the entry's stream
//	ARGV  id in dead, the fields and values of the entry
//	->    'gone', or the new entry id
var retryScript = stream.Script(deadLibrary + `
if not remove(KEYS[1], KEYS[2], KEYS[3], ARGV[1]) then return 'gone' end
return redis.call('XADD', KEYS[4], '*', unpack(ARGV, 2))`)
