package state

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/stream"
)

// pauseScript pauses moves: an operator must be able to where Redis is full.
//
//	KEYS  paused
//	ARGV  who pauses
//	->    OK
var pauseScript = stream.Script(`return redis.call('SET', KEYS[1], ARGV[1])`)

// Pause returns what SetPaused was given, "" where relocations are not paused.
func (s *Store) Pause(ctx context.Context) (string, error) {
	by, err := s.rdb.Get(ctx, s.keys.Paused()).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return "", unavailable("read", s.keys.Paused(), err)
	}
	if err == nil && by == "" {
		by = "unknown" // somebody has set the key by hand
	}
	return by, nil
}

// Paused reports whether relocations are paused.
func (s *Store) Paused(ctx context.Context) (bool, error) {
	by, err := s.Pause(ctx)
	return by != "", err
}

// SetPaused pauses or resumes relocations. by says who did it, for readers of the key, and is different for each pause:
// relocators answer with it.
func (s *Store) SetPaused(ctx context.Context, paused bool, by string) error {
	var err error
	if paused {
		err = pauseScript.Run(ctx, s.rdb, []string{s.keys.Paused()}, by).Err()
	} else {
		err = errors.Join(s.rdb.Del(ctx, s.keys.Paused()).Err(), s.rdb.Del(ctx, s.keys.Holding()).Err())
	}
	if err != nil {
		return unavailable("write", s.keys.Paused(), err)
	}
	return nil
}

// Hold records that a relocator begins no more moves, because of this pause.
func (s *Store) Hold(ctx context.Context, worker, pause string) error {
	if err := s.rdb.HSet(ctx, s.keys.Holding(), worker, pause).Err(); err != nil {
		return unavailable("write", s.keys.Holding(), err)
	}
	return nil
}

// NotHolding returns the living relocators, by id, that have not said that they begin no more moves because of this pause.
// Living are those with a heartbeat within the given time.
func (s *Store) NotHolding(ctx context.Context, pause string, within time.Duration) ([]string, error) {
	living, err := s.living(ctx, GroupRelocator, within)
	if err != nil {
		return nil, err
	}
	holding, err := s.rdb.HGetAll(ctx, s.keys.Holding()).Result()
	if err != nil {
		return nil, unavailable("read", s.keys.Holding(), err)
	}
	missing := []string{}
	for _, id := range living {
		if holding[id] != pause {
			missing = append(missing, id)
		}
	}
	slices.Sort(missing)
	return missing, nil
}
