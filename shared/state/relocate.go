package state

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/entryid"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
)

// Token is the value of a lock: what its holder does, who the holder is, and a random part that makes it unique.
type Token string

// NewToken makes the token of one attempt at a relocation.
func NewToken(eventID, workerID, random string) Token {
	return Token("relocating " + eventID + " " + workerID + " " + random)
}

// NewReleaseToken makes the token of one attempt at a release.
func NewReleaseToken(workerID, random string) Token {
	return Token("releasing " + workerID + " " + random)
}

// emittedPrefix begins the lock's value between emit and finish. The committer knows the prefix only, without the random
// part. So it may unlock another attempt of the same event, which is no worse than an early expiry of the lock.
func emittedPrefix(eventID string) string { return "emitted " + eventID + " " }

// Taken is the answer to Take.
type Taken int

// Settled: a newer event has an entry of its own and this one is acked, or this one was settled before. Busy: somebody else
// has the lock. Mine: the caller has it.
const (
	Settled Taken = iota
	Busy
	Mine
)

// Take begins the work on a view event (step 2). Where the answer is Busy, who is the lock's value.
func (s *Store) Take(ctx context.Context, entryID string, id item.ID, token Token, workerID string) (t Taken, who string, err error) {
	k := s.keys.Of(id)
	r, err := s.run(ctx, id, takeScript, []string{k.State(id), k.Lock(id), k.Views()},
		entryID, string(token), s.lock.Milliseconds(), GroupRelocator, string(appendString(nil, workerID)),
		formatNow()).StringSlice()
	if err != nil {
		return 0, "", unavailable("lock", id.String(), err)
	}
	switch r[0] {
	case "newer", "gone":
		return Settled, "", nil
	case "busy":
		return Busy, r[1], nil
	}
	return Mine, "", nil
}

// Settle ends a view event whose item is on its target already (step 3). st is the event's state; its status becomes Done.
func (s *Store) Settle(ctx context.Context, st State, token Token) error {
	st.Status, st.WorkerID = Done, ""
	k := s.keys.Of(st.ID)
	err := s.run(ctx, st.ID, doneScript, []string{k.State(st.ID), k.Lock(st.ID), k.Views()},
		st.EntryID, string(token), GroupRelocator, st.JSON(), s.seconds()).Err()
	if err != nil {
		return unavailable("settle", st.ID.String(), err)
	}
	return nil
}

// Seen is what Redis has of an item.
type Seen struct {
	Entry string // that the state names; "" where there is no state
	Lock  Token  // "" where it is free
	state string
}

// Says reports whether the state, but for its time, says that this event is settled.
func (s Seen) Says(settled State) bool {
	settled.Status, settled.WorkerID = Done, ""
	return strings.HasPrefix(s.state, settled.head()+settled.EntryID+updatedAt)
}

// Newer reports whether the state names a newer entry than this one. That entry has a newer count, or the same one.
func (s Seen) Newer(entry string) bool { return s.Entry != "" && entryid.Newer(s.Entry, entry) }

// See reads the states and the locks of many items in one round trip. The state of an item is read no later than its lock.
func (s *Store) See(ctx context.Context, ids []item.ID) ([]Seen, error) {
	texts, err := s.readKeys(ctx, ids, s.keys.State, s.keys.Lock)
	if err != nil {
		return nil, unavailable("read states and locks", "", err)
	}
	all := make([]Seen, len(ids))
	for i := range ids {
		all[i] = Seen{Entry: entryOf(texts[0][i]), Lock: Token(texts[1][i]), state: texts[0][i]}
	}
	return all, nil
}

// maxSettled and maxAcked are how many events one script settles, or only acks: some hundred microseconds of Redis.
const (
	maxSettled = 128
	maxAcked   = 1000
)

// Settlement is a view event that is settled without the lock of its item.
type Settlement struct {
	ID      item.ID
	EntryID string
	// State is the event's state, where it is not the item's state as it stands. Its status becomes Done.
	State *State
	// Superseded: a newer event has an entry of its own. Only the ack is left to do.
	Superseded bool
}

// SettleAll settles view events of one partition, in one round trip: those that are superseded, and those whose counts their
// rows have. The states of the latter may expire from now on, where they are still the newest. After an error, some may be
// settled.
func (s *Store) SettleAll(ctx context.Context, all []Settlement) error {
	if len(all) == 0 {
		return nil
	}
	var acks []any
	var written []Settlement
	for _, one := range all {
		if one.Superseded {
			acks = append(acks, one.EntryID)
		} else {
			written = append(written, one)
		}
	}
	k := s.keys.Of(all[0].ID)
	var calls []call
	for ids := range slices.Chunk(acks, maxAcked) {
		calls = append(calls, call{settleScript, []string{k.Views()}, append([]any{GroupRelocator, s.seconds()}, ids...)})
	}
	for part := range slices.Chunk(written, maxSettled) {
		keys, args := []string{k.Views()}, []any{GroupRelocator, s.seconds()}
		for _, one := range part {
			text := ""
			if one.State != nil {
				st := *one.State
				st.Status, st.WorkerID = Done, ""
				text = st.JSON()
			}
			keys, args = append(keys, k.State(one.ID)), append(args, one.EntryID, text)
		}
		calls = append(calls, call{settleScript, keys, args})
	}
	for _, cmd := range runAll(ctx, s.rdb, calls) {
		if err := cmd.Err(); err != nil {
			return unavailable("settle", "many events", err)
		}
	}
	return nil
}

// Emit reports a durable copy to the committer (step 5). False: the caller has lost the lock, nothing was emitted.
func (s *Store) Emit(ctx context.Context, st State, token Token, r event.Relocated) (bool, error) {
	st.Status, st.WorkerID = Done, ""
	emitted := emittedPrefix(r.EventID) + string(token)
	args := append([]any{st.EntryID, string(token), emitted, s.lock.Milliseconds(), GroupRelocator, st.JSON()},
		values(r.Fields())...)
	k := s.keys.Of(st.ID)
	res, err := s.run(ctx, st.ID, emitScript, []string{k.State(st.ID), k.Lock(st.ID), k.Views(),
		k.Relocated(), k.Progress(st.ID)}, args...).Text()
	if err != nil {
		return false, unavailable("emit", st.ID.String(), err)
	}
	return res == "emitted", nil
}

// Stray orders the release of a copy that was published and that no row names (steps 5 and 9).
func (s *Store) Stray(ctx context.Context, c event.Committed) error {
	c.Outcome = event.OutcomeStray
	err := strayScript.Run(ctx, s.rdb, []string{s.keys.Of(c.ID).Committed()}, values(c.Fields())...).Err()
	if err != nil {
		return unavailable("report stray", c.ID.String(), err)
	}
	return nil
}

// Lock takes the lock for a release (step 8). who is "" where the caller has it now, else the lock's value.
func (s *Store) Lock(ctx context.Context, id item.ID, token Token) (who string, err error) {
	who, err = s.run(ctx, id, lockScript, []string{s.keys.Lock(id)}, string(token), s.lock.Milliseconds()).Text()
	if err != nil {
		return "", unavailable("lock", id.String(), err)
	}
	return who, nil
}

// Renew prolongs a lock. False: the caller has lost it, and must cancel its work.
func (s *Store) Renew(ctx context.Context, id item.ID, token Token) (bool, error) {
	n, err := s.run(ctx, id, renewScript, []string{s.keys.Lock(id)}, string(token), s.lock.Milliseconds()).Int()
	if err != nil {
		return false, unavailable("renew lock", id.String(), err)
	}
	return n == 1, nil
}

// Unlock deletes the lock where it still is the caller's. The entry stays pending.
func (s *Store) Unlock(ctx context.Context, id item.ID, token Token) error {
	return s.unlock(ctx, id, token, s.keys.Of(id).Views(), "", "")
}

// Supersede ends a view event for whose item the row has a newer count: unlock and ack (step 3). The state stays as it is.
func (s *Store) Supersede(ctx context.Context, id item.ID, token Token, entryID string) error {
	return s.unlock(ctx, id, token, s.keys.Of(id).Views(), GroupRelocator, entryID)
}

// LastView is the newest entry id that the item's views has given out, "0-0" where there is no such stream. An entry id that is
// newer is of another Redis: of one that was wiped, or of another partition.
func (s *Store) LastView(ctx context.Context, id item.ID) (string, error) {
	info, err := s.rdb.XInfoStream(ctx, s.keys.Of(id).Views()).Result()
	if redis.HasErrorPrefix(err, "no such key") {
		return "0-0", nil
	}
	if err != nil {
		return "", unavailable("read the last entry id of views", id.String(), err)
	}
	return info.LastGeneratedID, nil
}

// Released ends a release: unlock and ack (step 8).
func (s *Store) Released(ctx context.Context, id item.ID, token Token, entryID string) error {
	return s.unlock(ctx, id, token, s.keys.Of(id).Committed(), GroupReleaser, entryID)
}

// Forgotten ends a view event whose item was forgotten: unlock and ack (step 3).
func (s *Store) Forgotten(ctx context.Context, id item.ID, token Token, entryID string) error {
	return s.unlock(ctx, id, token, s.keys.Of(id).Views(), GroupRelocator, entryID)
}

func (s *Store) unlock(ctx context.Context, id item.ID, token Token, stream, group, entryID string) error {
	err := s.run(ctx, id, unlockScript, []string{s.keys.Lock(id), s.keys.Progress(id), stream},
		string(token), group, entryID).Err()
	if err != nil {
		return unavailable("unlock", id.String(), err)
	}
	return nil
}

// Holder reads the value of an item's lock, "" where it is free.
func (s *Store) Holder(ctx context.Context, id item.ID) (Token, error) {
	v, err := s.rdb.Get(ctx, s.keys.Lock(id)).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return "", unavailable("read lock", id.String(), err)
	}
	return Token(v), nil
}

// Holders is Holder of many items, in one pipeline.
func (s *Store) Holders(ctx context.Context, ids []item.ID) ([]Token, error) {
	texts, err := s.readKeys(ctx, ids, s.keys.Lock)
	if err != nil {
		return nil, unavailable("read locks", "", err)
	}
	tokens := make([]Token, len(ids))
	for i, text := range texts[0] {
		tokens[i] = Token(text)
	}
	return tokens, nil
}

// Progress of a move in flight.
type Progress struct {
	EventID    string
	From, To   string
	Filename   string
	WorkerID   string
	BytesDone  int64
	BytesTotal int64
	UpdatedAt  time.Time
}

// SetProgress publishes how far a move is. It expires with the lock. The protocol does not depend on it.
func (s *Store) SetProgress(ctx context.Context, id item.ID, p Progress) error {
	key := s.keys.Progress(id)
	_, err := s.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		pipe.HSet(ctx, key, "event_id", p.EventID, "from", p.From, "to", p.To, "filename", p.Filename,
			"worker_id", p.WorkerID, "bytes_done", p.BytesDone, "bytes_total", p.BytesTotal, "updated_at", formatNow())
		pipe.PExpire(ctx, key, s.lock)
		return nil
	})
	if err != nil {
		return unavailable("write progress", id.String(), err)
	}
	return nil
}

// GetProgress reads how far a move is; ok is false where none is in flight.
func (s *Store) GetProgress(ctx context.Context, id item.ID) (p Progress, ok bool, err error) {
	return parseProgress(id, s.rdb.HGetAll(ctx, s.keys.Progress(id)))
}

func parseProgress(id item.ID, hash *redis.MapStringStringCmd) (p Progress, ok bool, err error) {
	m, err := hash.Result()
	if err != nil {
		return Progress{}, false, unavailable("read progress", id.String(), err)
	}
	if len(m) == 0 {
		return Progress{}, false, nil
	}
	p = Progress{EventID: m["event_id"], From: m["from"], To: m["to"], Filename: m["filename"], WorkerID: m["worker_id"]}
	if p.BytesDone, err = strconv.ParseInt(m["bytes_done"], 10, 64); err != nil {
		return Progress{}, false, fmt.Errorf("progress of %s: bytes_done: %w", id, err)
	}
	if p.BytesTotal, err = strconv.ParseInt(m["bytes_total"], 10, 64); err != nil {
		return Progress{}, false, fmt.Errorf("progress of %s: bytes_total: %w", id, err)
	}
	p.UpdatedAt, err = time.Parse(time.RFC3339Nano, m["updated_at"])
	return p, err == nil, err
}

func (s *Store) seconds() int { return int(s.ttl.Seconds()) }
