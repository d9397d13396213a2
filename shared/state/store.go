package state

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/stream"
)

// Options of a Store. All are required.
type Options struct {
	Redis redis.UniversalClient
	Keys  Keys
	TTL   time.Duration // life of a state that is done
	Lease time.Duration // life of a lock between two renewals
}

// Store runs the protocol's scripts.
type Store struct {
	rdb  redis.UniversalClient
	keys Keys
	ttl  time.Duration
	lock time.Duration

	batchers []*callBatcher // by partition
	agree    atomic.Bool    // Redis has the same number of partitions
}

// NewStore makes a Store. It does not connect yet.
func NewStore(o Options) *Store {
	return &Store{rdb: o.Redis, keys: o.Keys, ttl: o.TTL, lock: o.Lease, batchers: newBatchers(o.Redis, o.Keys.Partitions())}
}

// Keys returns the key names in use.
func (s *Store) Keys() Keys { return s.keys }

// Get reads an item's state. ok is false where there is none, or one that cannot be read: in both cases no newer event is
// known.
func (s *Store) Get(ctx context.Context, id item.ID) (st State, ok bool, err error) {
	v, err := s.rdb.Get(ctx, s.keys.State(id)).Result()
	if errors.Is(err, redis.Nil) {
		return State{}, false, nil
	}
	if err != nil {
		return State{}, false, unavailable("read state", id.String(), err)
	}
	st, err = Parse(v)
	return st, err == nil, nil
}

// GetMany reads the states of many items in one pipeline, nil where Get returns none.
func (s *Store) GetMany(ctx context.Context, ids []item.ID) ([]*State, error) {
	states := make([]*State, len(ids))
	texts, err := s.readKeys(ctx, ids, s.keys.State)
	if err != nil {
		return nil, unavailable("read states", "", err)
	}
	for i, text := range texts[0] {
		if st, err := Parse(text); err == nil {
			states[i] = &st
		}
	}
	return states, nil
}

// readKeys reads keys of each item in one pipeline. It returns the values of the first key of each item, then those of the
// next; "" where a key does not exist.
func (s *Store) readKeys(ctx context.Context, ids []item.ID, keysOf ...func(item.ID) string) ([][]string, error) {
	texts := make([][]string, len(keysOf))
	for k := range texts {
		texts[k] = make([]string, len(ids))
	}
	if len(ids) == 0 {
		return texts, nil
	}
	// One MGET for each partition, because the keys of two partitions are in different slots.
	of := make([][]int, s.keys.Partitions())
	for i, id := range ids {
		p := s.keys.Partition(id)
		of[p] = append(of[p], i)
	}
	cmds := make([]*redis.SliceCmd, len(of))
	// The pipeline's error is that of its first failed command; each command has its own.
	_, _ = s.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for p, of := range of {
			if len(of) == 0 {
				continue
			}
			keys := make([]string, 0, len(keysOf)*len(of))
			for _, key := range keysOf {
				for _, i := range of {
					keys = append(keys, key(ids[i]))
				}
			}
			cmds[p] = pipe.MGet(ctx, keys...)
		}
		return nil
	})
	for p, of := range of {
		if len(of) == 0 {
			continue
		}
		values, err := cmds[p].Result()
		if err != nil {
			return nil, err
		}
		for j, v := range values {
			texts[j/len(of)][of[j%len(of)]], _ = v.(string)
		}
	}
	return texts, nil
}

// Now returns the time of the server that has a stream. The ids of the stream's entries are times of this clock.
func (s *Store) Now(ctx context.Context, key string) (time.Time, error) {
	now, err := stream.Now(ctx, s.rdb, key)
	if err != nil {
		return time.Time{}, unavailable("read", "time", err)
	}
	return now, nil
}

// unavailable wraps an error of Redis. Whatever the error is, the caller can only try again later.
func unavailable(op, subject string, err error) error {
	e := &fault.Error{Kind: fault.Unavailable, Op: op, Subject: subject, Err: err}
	if redis.HasErrorPrefix(err, "OOM") {
		e.Hint = "Redis is at its maxmemory: accepted views go on; wait until they have drained, or raise maxmemory"
	}
	return e
}

func isNoKey(err error) bool { return strings.Contains(err.Error(), "no such key") }

func formatNow() string { return event.FormatTime(time.Now()) }
