package state

import "github.com/redis/go-redis/v9"

// library heads every script that reads states or ids.
//
// The parts of a state are taken with patterns and not with cjson, because cjson writes other JSON than it has
// read. That is sound: json.dumps' form has no bare quote inside a string, and level names have none at all.
const library = `
local function newer(a, b)
  local am, as = string.match(a, '^(%d+)%-(%d+)$')
  local bm, bs = string.match(b, '^(%d+)%-(%d+)$')
  if not am then return false end
  if not bm then return true end
  if am ~= bm then
    if #am ~= #bm then return #am > #bm end
    return am > bm
  end
  if #as ~= #bs then return #as > #bs end
  return as > bs
end
local pattern = '^({"cid": "%d+", "count": "%d+", "target": "[^"]*", "db_level": ")([^"]*)(", "filename": ".*", ' ..
  '"worker_id": )([^,]*)(, "status": ")(%a+)(", "event_id": "[^"]*", "entry_id": ")([^"]*)(", "updated_at": ")[^"]*("})$'
local function read(key)
  local v = redis.call('GET', key)
  if not v then return nil end
  local a, level, b, worker, c, status, d, entry, e, f = string.match(v, pattern)
  if not a then return nil end
  return {a=a, level=level, b=b, worker=worker, c=c, status=status, d=d, entry=entry, e=e, f=f, json=v}
end
local function write(key, s, now, ttl)
  local v = s.a .. s.level .. s.b .. s.worker .. s.c .. s.status .. s.d .. s.entry .. s.e .. now .. s.f
  if s.status == 'done' then redis.call('SET', key, v, 'EX', ttl) else redis.call('SET', key, v) end
end
`

// appendScript accepts view events: one XADD and one SET each, in one step for all. It is what the rate of single posts
// hangs on: few arguments, no look-up of a global in the loop, no SET that the same call replaces.
//
//	KEYS  views, content:{cid} of each event
//	ARGV  seconds to live of a state that is done, and eight for each event: state up to its entry id ('': a later event of
//	      this call is of the same content), and the seven values of the entry
//	->    the entry ids
var appendScript = redis.NewScript(`
local call, keys, argv, ids = redis.call, KEYS, ARGV, {}
local views, ttl, a = keys[1], argv[1], 2
for i = 2, #keys do
  local state, target, level, at = argv[a], argv[a+4], argv[a+5], argv[a+7]
  local id = call('XADD', views, '*', 'event_id', argv[a+1], 'cid', argv[a+2], 'count', argv[a+3],
    'target', target, 'db_level', level, 'filename', argv[a+6], 'posted_at', at)
  if state == '' then -- the later one's is written
  elseif target == level then call('SET', keys[i], state .. id .. '", "updated_at": "' .. at .. '"}', 'EX', ttl)
  else call('SET', keys[i], state .. id .. '", "updated_at": "' .. at .. '"}') end
  ids[i-1] = id
  a = a + 8
end
return ids`)

// appendIfScript accepts a view event that repeats the last count, unless a newer count has come since that was read.
//
//	KEYS  views, content:{cid}
//	ARGV  entry id of the newest event as the caller knows it ('' no state), state up to its entry id, state after
//	      it, seconds to live (0: for ever), the fields and values of the entry
//	->    the entry id, '' where there is a newer event
var appendIfScript = redis.NewScript(library + `
local s = read(KEYS[2])
if (s and s.entry or '') ~= ARGV[1] then return '' end
local id = redis.call('XADD', KEYS[1], '*', unpack(ARGV, 5))
local state = ARGV[2] .. id .. ARGV[3]
if ARGV[4] == '0' then redis.call('SET', KEYS[2], state)
else redis.call('SET', KEYS[2], state, 'EX', ARGV[4]) end
return id`)

// takeScript begins the work on a view event (protocol step 2).
//
//	KEYS  content:{cid}, lock:{cid}, views
//	ARGV  entry id, token, lease in ms, group, worker id as JSON, now, ttl
//	->    'newer': a newer event has an entry of its own, this one is acked
//	      'busy', who: pending, to be tried again
//	      'taken': the lock is ours
var takeScript = redis.NewScript(library + `
local s = read(KEYS[1])
if s and newer(s.entry, ARGV[1]) then
  redis.call('XACK', KEYS[3], ARGV[4], ARGV[1])
  return {'newer'}
end
local held = redis.call('GET', KEYS[2])
if held and held ~= ARGV[2] then return {'busy', held} end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
if s then
  s.worker = ARGV[5]
  write(KEYS[1], s, ARGV[6], ARGV[7])
end
return {'taken'}`)

// doneScript settles a view event whose content lies where it should (step 3).
//
//	KEYS  content:{cid}, lock:{cid}, views
//	ARGV  entry id, token, group, the state if this is still the newest event, ttl
//	->    1
var doneScript = redis.NewScript(library + `
local s = read(KEYS[1])
if not (s and newer(s.entry, ARGV[1])) then redis.call('SET', KEYS[1], ARGV[4], 'EX', ARGV[5]) end
if redis.call('GET', KEYS[2]) == ARGV[2] then redis.call('DEL', KEYS[2]) end
redis.call('XACK', KEYS[3], ARGV[3], ARGV[1])
return 1`)

// emitScript hands a durable copy to the committer and settles the view event (step 5). The token is the fence.
//
//	KEYS  content:{cid}, lock:{cid}, views, relocated, progress:{cid}
//	ARGV  entry id, token, the lock's value from now on, lease in ms, group,
//	      the state if this is still the newest event, ttl, the entry's fields and values
//	->    'emitted': now or before; 'refused': the lock is not ours any more, nothing was done
var emitScript = redis.NewScript(library + `
local held = redis.call('GET', KEYS[2])
if held == ARGV[3] then return 'emitted' end
if held ~= ARGV[2] then return 'refused' end
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
redis.call('XADD', KEYS[4], '*', unpack(ARGV, 8))
local s = read(KEYS[1])
if not (s and newer(s.entry, ARGV[1])) then redis.call('SET', KEYS[1], ARGV[6], 'EX', ARGV[7]) end
redis.call('DEL', KEYS[5])
redis.call('XACK', KEYS[3], ARGV[5], ARGV[1])
return 'emitted'`)

// finishScript spreads the news of a commit, once COMMIT has returned (step 7).
//
//	KEYS  content:{cid}, lock:{cid}, relocated, committed, views
//	ARGV  entry id, group, the lock's value while this event waited, outcome, to, level that the row names
//	      ('' unknown), event id, now, ttl, the fields and values of the entry of committed
//	->    1 where the newest event was appended again, else 0
var finishScript = redis.NewScript(library + `
local s = read(KEYS[1])
local readable, j = false
if s then readable, j = pcall(cjson.decode, s.json) end
redis.call('XADD', KEYS[4], '*', unpack(ARGV, 10))
local held = redis.call('GET', KEYS[2])
if held and string.sub(held, 1, #ARGV[3]) == ARGV[3] then redis.call('DEL', KEYS[2]) end
local again = 0
if readable then
  -- A level that a late committer has read may be an old one. It does no harm where the newest event is looked at again,
  -- or wants what was committed; else it is that event's work to write the level.
  local newest = j.event_id == ARGV[7]
  if ARGV[6] ~= '' and (ARGV[4] == 'committed' or newest) then s.level = ARGV[6] end
  if ARGV[4] == 'committed' then
    if j.target ~= ARGV[5] then again = 1 end
  elseif newest then
    again = 1
  end
  if again == 1 then
    s.entry = redis.call('XADD', KEYS[5], '*', 'event_id', j.event_id, 'cid', j.cid, 'count', j.count,
      'target', j.target, 'db_level', s.level, 'filename', j.filename, 'posted_at', ARGV[8])
    s.worker = 'null'
    s.status = j.target == s.level and 'done' or 'update'
  end
  write(KEYS[1], s, ARGV[8], ARGV[9])
end
redis.call('XACK', KEYS[3], ARGV[2], ARGV[1])
return again`)

// lockScript takes the lock for a release (step 8).
//
//	KEYS  lock:{cid}
//	ARGV  token, lease in ms
//	->    '' where it is ours, else who has it
var lockScript = redis.NewScript(`
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return held end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ''`)

// renewScript prolongs a lock that is still ours.
//
//	KEYS  lock:{cid}
//	ARGV  token, lease in ms
//	->    1 renewed, 0 not ours
var renewScript = redis.NewScript(`
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])`)

// unlockScript lets go of a lock that is still ours, and settles an entry where one is given.
//
//	KEYS  lock:{cid}, progress:{cid}, the entry's stream
//	ARGV  token, group, entry id ('': it stays pending)
//	->    1
var unlockScript = redis.NewScript(`
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1], KEYS[2]) end
if ARGV[3] ~= '' then redis.call('XACK', KEYS[3], ARGV[2], ARGV[3]) end
return 1`)

// deadScript settles an entry that failed for good, and keeps it in dead with its reason. XACK alone would let a worker
// that wakes up late bury what another one is doing.
//
//	KEYS  the entry's stream, dead
//	ARGV  group, consumer, entry id, fields and values of the entry of dead
//	->    the id in dead, '' where the entry was settled before or is another consumer's now
var deadScript = redis.NewScript(`
if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2]) == 0 then return '' end
local id = redis.call('XADD', KEYS[2], '*', unpack(ARGV, 4)) -- first: an entry with too many fields must stay pending
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
return id`)

// retryViewScript gives a dead view event another life (POST /v1/dead/{id}/retry).
//
//	KEYS  dead, views, content:{cid}
//	ARGV  id in dead, id that the entry had in views, state up to its entry id, state after it,
//	      the fields and values of the entry of views
//	->    'gone', 'newer': a newer event of this content exists, or the new entry id
var retryViewScript = redis.NewScript(library + `
if #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 0 then return 'gone' end
local s = read(KEYS[3])
if s and newer(s.entry, ARGV[2]) then return 'newer' end
redis.call('XDEL', KEYS[1], ARGV[1])
local id = redis.call('XADD', KEYS[2], '*', unpack(ARGV, 5))
redis.call('SET', KEYS[3], ARGV[3] .. id .. ARGV[4])
return id`)

// retryScript gives a dead entry of another stream another life.
//
//	KEYS  dead, the entry's stream
//	ARGV  id in dead, the fields and values of the entry
//	->    'gone', or the new entry id
var retryScript = redis.NewScript(`
if redis.call('XDEL', KEYS[1], ARGV[1]) == 0 then return 'gone' end
return redis.call('XADD', KEYS[2], '*', unpack(ARGV, 2))`)

// timeScript asks the server that has a stream for its time: in a cluster, TIME alone goes to any.
//
//	KEYS  stream
//	->    seconds and microseconds
var timeScript = redis.NewScript(`
local t = redis.call('TIME')
return {tonumber(t[1]), tonumber(t[2])}`)
