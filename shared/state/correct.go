package state

import (
	"context"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/stream"
)

// Correct asks the committer to make a row name the level that has the item's file. It is Emit without a view event: the
// caller has the lock, and has looked up the row under it. False: the caller has lost the lock, and nothing was appended.
func (s *Store) Correct(ctx context.Context, token Token, r event.Relocated) (bool, error) {
	k := s.keys.Of(r.ID)
	args := append([]any{string(token), emittedPrefix(r.EventID) + string(token), s.lock.Milliseconds()}, values(r.Fields())...)
	res, err := s.run(ctx, r.ID, correctScript, []string{k.Lock(r.ID), k.Relocated()}, args...).Text()
	if err != nil {
		return false, unavailable("correct", r.ID.String(), err)
	}
	return res == "emitted", nil
}

// correctScript appends an entry of relocated that no view event has caused. The token is the fence.
//
//	KEYS  lock:{cid}, relocated
//	ARGV  token, the lock's value from now on, lease in ms, the entry's values
//	->    'emitted': now or before; 'refused': the caller has lost the lock, nothing was done
var correctScript = stream.Script(`
local held = redis.call('GET', KEYS[1])
if held == ARGV[2] then return 'emitted' end
if held ~= ARGV[1] then return 'refused' end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
` + xadd("KEYS[2]", 4, event.Relocated{}.Fields()) + `
return 'emitted'`)
