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

// Stages of an entry, in the order in which it passes through them. Dead letters name them as well.
const (
	StageRelocate = "relocate" // views
	StageCommit   = "commit"   // relocated
	StageRelease  = "release"  // committed
)

// Stages are all stages.
var Stages = [...]string{StageRelocate, StageCommit, StageRelease}

// StageLoad is what waits at a stage, over all partitions.
type StageLoad struct {
	Stage     string
	Unsettled int64         // entries that are unread, or read and not settled
	Oldest    time.Duration // how long ago the oldest of them was appended, by the clock of its Redis; 0 where there is none
}

// DeadKind tells dead letters apart.
type DeadKind struct{ Stage, Reason string }

// Load is what waits and what has failed for good.
type Load struct {
	Stages [len(Stages)]StageLoad
	Dead   map[DeadKind]int64 // the kind {"", ""} counts dead letters of before they were counted by reason
}

// Unsettled is the sum over all stages.
func (l Load) Unsettled() (sum int64) {
	for _, s := range l.Stages {
		sum += s.Unsettled
	}
	return sum
}

// DeadTotal is the number of dead letters.
func (l Load) DeadTotal() (sum int64) {
	for _, n := range l.Dead {
		sum += n
	}
	return sum
}

// loadScript reads what waits in a partition. The commands that it runs are bounded, however much waits.
//
//	KEYS  views, relocated, committed, dead, dead:reasons
//	ARGV  the groups of the first three
//	->    of each of the three: unsettled entries, age of the oldest one in ms; then the number of dead letters, and names
//	      and numbers of dead:reasons
var loadScript = stream.Script(`
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local found = {}
for i = 1, 3 do
  local n, first = redis.call('XLEN', KEYS[i]), '-' -- with no group yet, nothing is settled
  if n > 0 then
    for _, g in ipairs(redis.call('XINFO', 'GROUPS', KEYS[i])) do
      local f = {}
      for j = 1, #g, 2 do f[g[j]] = g[j+1] end
      if f['name'] == ARGV[i] then
        first = '(' .. f['last-delivered-id']
        local lag = f['lag']
        if not lag then -- entries were deleted by hand; where very many are unread, the length is the upper bound
          lag = #redis.call('XRANGE', KEYS[i], first, '+', 'COUNT', 1000)
          if lag == 1000 then lag = n - f['pending'] end
        end
        n = f['pending'] + lag
        if f['pending'] > 0 then first = redis.call('XPENDING', KEYS[i], ARGV[i])[2] end
      end
    end
  end
  local age = 0
  if n > 0 then
    -- A pending entry may have been deleted by hand: then the id that is pending says its age.
    local oldest = string.match(first, '^%d+%-%d+$') or (redis.call('XRANGE', KEYS[i], first, '+', 'COUNT', 1)[1] or {})[1]
    if oldest then age = math.max(now - string.match(oldest, '^%d+'), 0) end
  end
  found[#found+1] = n
  found[#found+1] = age
end
found[#found+1] = redis.call('XLEN', KEYS[4])
for _, text in ipairs(redis.call('HGETALL', KEYS[5])) do found[#found+1] = text end
return found`)

// Load reads what waits. One pipeline has a script for each partition.
func (s *Store) Load(ctx context.Context) (Load, error) {
	load := Load{Dead: map[DeadKind]int64{}}
	for i, stage := range Stages {
		load.Stages[i].Stage = stage
	}
	var calls []call
	for _, k := range s.keys.Each() {
		calls = append(calls, call{loadScript, []string{k.Views(), k.Relocated(), k.Committed(), k.Dead(), k.DeadReasons()},
			[]any{GroupRelocator, GroupCommitter, GroupReleaser}})
	}
	cmds := make([]*redis.Cmd, len(calls))
	byDigest(cmds, func(run runner, which []int) { send(ctx, s.rdb, run, calls, cmds, which) })
	for i, cmd := range cmds {
		found, err := cmd.Slice()
		if err == nil {
			err = load.add(found)
		}
		if err != nil {
			return Load{}, unavailable("read what waits in", calls[i].keys[0], err)
		}
	}
	return load, nil
}

// add adds what loadScript returns.
func (l *Load) add(found []any) error {
	const numbers = 2*len(Stages) + 1
	if len(found) < numbers || len(found)%2 == 0 {
		return fmt.Errorf("%d values", len(found))
	}
	var n [numbers]int64
	for i := range n {
		var ok bool
		if n[i], ok = found[i].(int64); !ok {
			return fmt.Errorf("%v is not a number", found[i])
		}
	}
	for i := range l.Stages {
		l.Stages[i].Unsettled += n[2*i]
		l.Stages[i].Oldest = max(l.Stages[i].Oldest, time.Duration(n[2*i+1])*time.Millisecond)
	}
	kinds, sum := map[DeadKind]int64{}, int64(0)
	for i := numbers; i < len(found); i += 2 {
		name, _ := found[i].(string)
		text, _ := found[i+1].(string)
		stage, reason, _ := strings.Cut(name, " ")
		count, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return err
		}
		kinds[DeadKind{stage, reason}] += count
		sum += count
	}
	total := n[numbers-1]
	if sum > total { // somebody has deleted dead letters by hand
		kinds, sum = nil, 0
	}
	for kind, count := range kinds {
		l.Dead[kind] += count
	}
	if rest := total - sum; rest > 0 {
		l.Dead[DeadKind{}] += rest
	}
	return nil
}
