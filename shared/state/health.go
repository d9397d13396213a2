package state

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
)

// CheckMemory is nil where every Redis has memory for new views. Redis at its maxmemory refuses new views; whatever settles
// accepted ones goes on. A Redis that cannot be asked, or does not tell, is no error here.
func (s *Store) CheckMemory(ctx context.Context) error {
	return s.eachInfo(ctx, "memory", func(info map[string]string) error {
		used, err := strconv.ParseUint(info["used_memory"], 10, 64)
		limit, lerr := strconv.ParseUint(info["maxmemory"], 10, 64)
		if err != nil || lerr != nil || limit == 0 || used < limit {
			return nil
		}
		return fmt.Errorf("Redis is at its maxmemory of %d bytes: new views are refused, accepted ones go on (wait until they have "+
			"drained, drop dead letters, or raise maxmemory)", limit)
	})
}

// CheckDurability is nil where Redis keeps what it has accepted: it evicts no keys, and has an append-only file. Source: Redis'
// documentation of key eviction and of persistence.
func (s *Store) CheckDurability(ctx context.Context) error {
	evicts := s.eachInfo(ctx, "memory", func(info map[string]string) error {
		switch policy := info["maxmemory_policy"]; {
		case policy == "" || policy == "noeviction" || info["maxmemory"] == "0":
			return nil
		default:
			return fmt.Errorf("Redis may evict keys (maxmemory-policy %s): accepted views and locks can vanish (set it to noeviction)", policy)
		}
	})
	forgets := s.eachInfo(ctx, "persistence", func(info map[string]string) error {
		if info["aof_enabled"] != "0" {
			return nil
		}
		return errors.New("Redis has no append-only file: a restart loses the views that were accepted since its last snapshot, if it " +
			"makes any (set appendonly yes)")
	})
	return errors.Join(evicts, forgets)
}

// eachInfo gives a section of INFO of every master to check, and joins what it finds, each finding once.
func (s *Store) eachInfo(ctx context.Context, section string, check func(map[string]string) error) error {
	var mu sync.Mutex
	found := map[string]error{}
	ask := func(ctx context.Context, node *redis.Client) error {
		text, err := node.Info(ctx, section).Result()
		if err != nil {
			return nil // whether Redis answers, Agree tells
		}
		if err := check(parseInfo(text)); err != nil {
			mu.Lock()
			defer mu.Unlock()
			found[err.Error()] = err
		}
		return nil
	}
	switch rdb := s.rdb.(type) {
	case *redis.ClusterClient:
		_ = rdb.ForEachMaster(ctx, ask) // its error is one of reaching a node
	case *redis.Client:
		_ = ask(ctx, rdb)
	}
	var all []error
	for _, err := range found {
		all = append(all, err)
	}
	return errors.Join(all...)
}

// parseInfo reads the lines "name:value" of INFO.
func parseInfo(text string) map[string]string {
	info := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			info[name] = value
		}
	}
	return info
}
