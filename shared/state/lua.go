package state

import (
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/stream"
)

// library begins every script that reads states or entry ids.
//
// The scripts take the parts of a state with find and match. cjson takes longer, and writes other JSON than it has read.
// The patterns are sound: the JSON of json.dumps has no bare quote inside a string, and level names have no quote at all.
const library = `
local find, match, sub = string.find, string.match, string.sub
local function newer(a, b)
  if a == b then return false end
  local am, as = match(a, '^(%d+)%-(%d+)$')
  local bm, bs = match(b, '^(%d+)%-(%d+)$')
  if not am then return false end
  if not bm then return true end
  if am ~= bm then
    if #am ~= #bm then return #am > #bm end
    return am > bm
  end
  if #as ~= #bs then return #as > #bs end
  return as > bs
end
-- Returns the entry id of a state, and the position at which the time of its last change begins. Nil: v is no state.
local function entry(v)
  if not v or not find(v, '^{"cid": "%d+", "count": "%d+", "target": "') then return nil end
  local _, e = find(v, '", "entry_id": "', 1, true)
  if not e then return nil end
  return match(v, '^([^"]*)", "updated_at": "()[^"]*"}$', e + 1)
end
`

// xadd is the call that adds an entry. Its values are in ARGV, beginning at index from. The names of its fields never
// change, so they stand in the script and are not sent with each call.
func xadd(stream string, from int, fields []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "redis.call('XADD', %s, '*'", stream)
	for i := 0; i < len(fields); i += 2 {
		fmt.Fprintf(&b, ", '%s', ARGV[%d]", fields[i], from+i/2)
	}
	return b.String() + ")"
}

// appendScript accepts view events: one XADD and one SET each, in one step for all. The rate of single posts depends on
// it. So it has few arguments, its loop looks up no global, and it does no SET that the same call would replace. The states get
// no expiry: an unsettled event always has a state, so the state always names the newest event.
//
//	KEYS  views, content:{cid} of each event
//	ARGV  eight for each event: state up to its entry id ('': a later event of this call is of the same item), and the
//	      seven values of the entry
//	->    the entry ids
var appendScript = redis.NewScript(`
local call, keys, argv, ids = redis.call, KEYS, ARGV, {}
local views, a = keys[1], 1
for i = 2, #keys do
  local state, at = argv[a], argv[a+7]
  local id = call('XADD', views, '*', 'event_id', argv[a+1], 'cid', argv[a+2], 'count', argv[a+3],
    'target', argv[a+4], 'db_level', argv[a+5], 'filename', argv[a+6], 'posted_at', at)
  if state ~= '' then call('SET', keys[i], state .. id .. '", "updated_at": "' .. at .. '"}') end -- else the later one's
  ids[i-1] = id
  a = a + 8
end
return ids`)

// appendIfScript accepts a view event that repeats the last count, unless a newer event came after the caller read it.
//
//	KEYS  views, content:{cid}
//	ARGV  entry id of the newest event as the caller knows it ('' no state), state up to its entry id, state after
//	      it, the fields and values of the entry
//	->    the entry id, '' where there is a newer event
var appendIfScript = redis.NewScript(library + `
if (entry(redis.call('GET', KEYS[2])) or '') ~= ARGV[1] then return '' end
local id = redis.call('XADD', KEYS[1], '*', unpack(ARGV, 4))
redis.call('SET', KEYS[2], ARGV[2] .. id .. ARGV[3])
return id`)

// bound has a function that bounds the life of a lock, in ms. A lock that lasts longer than any lease is from before the
// server's clock went back. Where its holder lives, it renews the lock; where it has died, the lock would stay for as long as
// the clock went back. The bound is also above the lease of a deletion (registry.ForgetLease).
const bound = `
local function bound(lock, lease)
  local longest = math.max(4 * lease, 120000)
  if redis.call('PTTL', lock) > longest then redis.call('PEXPIRE', lock, longest) end
end
`

// takeScript begins the work on a view event (protocol step 2). An unsettled event has a state. So where there is none, the
// entry must be pending: a worker may have read it before Redis was wiped.
//
//	KEYS  content:{cid}, lock:{cid}, views
//	ARGV  entry id, token, lease in ms, group, worker id as JSON, now
//	->    'newer': a newer event has an entry of its own, this one is acked
//	      'gone': there is no state and the entry is not pending; nothing is left to do
//	      'busy', lock: somebody else has the lock, whose value follows; the entry stays pending
//	      'taken': the lock is the caller's
var takeScript = stream.Script(library + bound + `
local v = redis.call('GET', KEYS[1])
local newest, at = entry(v)
if newest and newer(newest, ARGV[1]) then
  redis.call('XACK', KEYS[3], ARGV[4], ARGV[1])
  return {'newer'}
end
if not newest then
  local pending = redis.pcall('XPENDING', KEYS[3], ARGV[4], ARGV[1], ARGV[1], 1)
  if pending.err and not find(pending.err, 'NOGROUP', 1, true) then return pending end
  if pending.err or #pending == 0 then return {'gone'} end
end
local held = redis.call('GET', KEYS[2])
if held and held ~= ARGV[2] then
  bound(KEYS[2], ARGV[3])
  return {'busy', held}
end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
if newest == ARGV[1] then
  local _, w = find(v, '", "worker_id": ', 1, true)
  local status, rest
  if w then status, rest = match(v, '^[^,]*, "status": "(%a+)()', w + 1) end
  if status then
    redis.call('SET', KEYS[1], sub(v, 1, w) .. ARGV[5] .. ', "status": "' .. status .. sub(v, rest, at - 1) .. ARGV[6] .. '"}', 'KEEPTTL')
  end
end
return {'taken'}`)

// doneScript settles a view event whose item is on its target already (step 3). From now on the state may expire: the row has the
// event's count. The state of another event stays as it is, and none is made where there is none.
//
//	KEYS  content:{cid}, lock:{cid}, views
//	ARGV  entry id, token, group, the state if this is still the newest event, ttl
//	->    1
var doneScript = stream.Script(library + `
if entry(redis.call('GET', KEYS[1])) == ARGV[1] then redis.call('SET', KEYS[1], ARGV[4], 'EX', ARGV[5]) end
if redis.call('GET', KEYS[2]) == ARGV[2] then redis.call('DEL', KEYS[2]) end
redis.call('XACK', KEYS[3], ARGV[3], ARGV[1])
return 1`)

// settleScript settles view events whose items are on their targets, and whose counts their rows have, without their locks
// (step 3). From now on their states may expire. The state of a newer event stays as it is, and none is made where there is
// none. The script also acks events that are superseded.
//
//	KEYS  views, content:{cid} of each event that is not superseded
//	ARGV  group, ttl, two for each of these events: its entry id, and its state ('': as it is); the entry ids of the others
//	->    1
var settleScript = stream.Script(`
local call, find, keys, argv, ttl, ids = redis.call, string.find, KEYS, ARGV, ARGV[2], {}
for i = 2, #keys do
  local id, state = argv[2*i-1], argv[2*i]
  local v = call('GET', keys[i])
  -- Its JSON has no bare quote inside a string, so this is the entry id and nothing else.
  if v and find(v, '", "entry_id": "' .. id .. '", "updated_at": "', 1, true) then
    if state == '' then call('EXPIRE', keys[i], ttl) else call('SET', keys[i], state, 'EX', ttl) end
  end
  ids[i-1] = id
end
for i = 2 * #keys + 1, #argv do ids[#ids+1] = argv[i] end
call('XACK', keys[1], argv[1], unpack(ids))
return 1`)

// emitScript reports a durable copy to the committer and settles the view event (step 5). The token is the fence. The state gets no
// expiry before the commit: the committer may be away for longer, and the event may have to be appended again.
//
//	KEYS  content:{cid}, lock:{cid}, views, relocated, progress:{cid}
//	ARGV  entry id, token, the lock's value from now on, lease in ms, group,
//	      the state if this is still the newest event, the entry's values
//	->    'emitted': now or before; 'refused': the caller has lost the lock, nothing was done
var emitScript = stream.Script(library + `
local held = redis.call('GET', KEYS[2])
if held == ARGV[3] then return 'emitted' end
if held ~= ARGV[2] then return 'refused' end
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
` + xadd("KEYS[4]", 7, event.Relocated{}.Fields()) + `
if entry(redis.call('GET', KEYS[1])) == ARGV[1] then redis.call('SET', KEYS[1], ARGV[6]) end
redis.call('DEL', KEYS[5])
redis.call('XACK', KEYS[3], ARGV[5], ARGV[1])
return 'emitted'`)

// finishScript publishes a commit in committed, after COMMIT has returned, and settles the entry (step 7). The state of the
// committed event may expire from now on: the row has its count. That of an event that is appended again may not.
//
//	KEYS  content:{cid}, lock:{cid}, relocated, committed, views
//	ARGV  entry id, group, the lock's value while this event waited, outcome, to, level that the row names
//	      ('' unknown), event id, now, ttl, the values of the entry of committed
//	->    1 where the newest event was appended again, else 0
var finishScript = stream.Script(library + `
local v = redis.call('GET', KEYS[1])
local head, target, level, filename, worker, status, id, newest
if v then
  head, target, level, filename, worker, status, id, newest = match(v,
    '^({"cid": "%d+", "count": "%d+", "target": "([^"%c\\]*)", "db_level": ")([^"%c\\]*)", "filename": "(.-)", ' ..
    '"worker_id": ([^,]*), "status": "(%a+)", "event_id": "([^"%c\\]*)", "entry_id": "([^"%c\\]*)", "updated_at": "[^"%c\\]*"}$')
  -- Redis does not undo the writes of a script that fails. So the script finds out first whether it can decode the state.
  local plain = head and not find(filename, '["%c\\]') and (worker == 'null' or find(worker, '^"[^"%c\\]*"$'))
  if head and not plain and not pcall(cjson.decode, v) then head = nil end
end
` + xadd("KEYS[4]", 10, event.Committed{}.Fields()) + `
local held = redis.call('GET', KEYS[2])
if held and sub(held, 1, #ARGV[3]) == ARGV[3] then redis.call('DEL', KEYS[2]) end
local again = 0
if head then
  -- A late committer may have read an old level. That does no harm where the newest event is appended again, or where its
  -- target is what was committed. Else the work on the newest event writes the level.
  if ARGV[6] ~= '' and (ARGV[4] == 'committed' or id == ARGV[7]) then level = ARGV[6] end
  if ARGV[4] == 'committed' then
    if target ~= ARGV[5] then again = 1 end
  elseif id == ARGV[7] then
    again = 1
  end
  if again == 1 then
    local j = cjson.decode(v)
    newest = redis.call('XADD', KEYS[5], '*', 'event_id', id, 'cid', j.cid, 'count', j.count,
      'target', target, 'db_level', level, 'filename', j.filename, 'posted_at', ARGV[8])
    worker = 'null'
    status = target == level and 'done' or 'update'
  end
  local state = head .. level .. '", "filename": "' .. filename .. '", "worker_id": ' .. worker .. ', "status": "' ..
    status .. '", "event_id": "' .. id .. '", "entry_id": "' .. newest .. '", "updated_at": "' .. ARGV[8] .. '"}'
  if again == 1 then redis.call('SET', KEYS[1], state)
  elseif id == ARGV[7] then redis.call('SET', KEYS[1], state, 'EX', ARGV[9])
  else redis.call('SET', KEYS[1], state, 'KEEPTTL') end
end
redis.call('XACK', KEYS[3], ARGV[2], ARGV[1])
return again`)

// lockScript takes an item's lock, for a release (step 8) or the deletion of its row.
//
//	KEYS  lock:{cid}
//	ARGV  token, lease in ms
//	->    '' where the caller has the lock now, else the lock's value
var lockScript = stream.Script(bound + `
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then
  bound(KEYS[1], ARGV[2])
  return held
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ''`)

// renewScript prolongs the caller's lock.
//
//	KEYS  lock:{cid}
//	ARGV  token, lease in ms
//	->    1 renewed, 0 the caller has lost it
var renewScript = stream.Script(`
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])`)

// unlockScript deletes the lock where it still is the caller's, and settles an entry where one is given.
//
//	KEYS  lock:{cid}, progress:{cid}, the entry's stream
//	ARGV  token, group, entry id ('': it stays pending)
//	->    1
var unlockScript = stream.Script(`
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1], KEYS[2]) end
if ARGV[3] ~= '' then redis.call('XACK', KEYS[3], ARGV[2], ARGV[3]) end
return 1`)

// strayScript reports a copy that was published but that nothing names.
//
//	KEYS  committed
//	ARGV  the values of the entry
//	->    its id
var strayScript = stream.Script("return " + xadd("KEYS[1]", 1, event.Committed{}.Fields()))
