package state

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/entryid"
)

const (
	// newBlock is how long one ReadNew waits in Redis. A stop takes as long, because nothing interrupts a blocked read.
	newBlock = time.Second
	// newPause is how long ReadNew waits where it read several partitions and none had a new entry.
	newPause = 100 * time.Millisecond
	// newLimit is how many entries one ReadNew takes from a stream.
	newLimit = 1000
)

// Entry is an entry of a stream.
type Entry struct {
	ID     string
	Fields map[string]string
}

// LastIDs reads the id of the newest entry of each stream, "0-0" where a stream has none. ("$" would mean another id at each
// read.) One pipeline reads all. An id is "" where its partition did not answer. err is then the first such error.
func (s *Store) LastIDs(ctx context.Context, streams []string) (ids []string, err error) {
	newest := make([]*redis.XMessageSliceCmd, len(streams))
	// The pipeline's error is that of its first failed command; each command has its own.
	_, _ = s.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, key := range streams {
			newest[i] = pipe.XRevRangeN(ctx, key, "+", "-", 1)
		}
		return nil
	})
	ids = make([]string, len(streams))
	for i, key := range streams {
		ms, cause := newest[i].Result()
		switch {
		case cause != nil:
			err = cmp.Or(err, unavailable("read", key, cause))
		case len(ms) == 0:
			ids[i] = "0-0"
		default:
			ids[i] = ms[0].ID
		}
	}
	return ids, err
}

// Trimmed reports whether a stream may have lost entries that came after its id, because they were trimmed. It does not look at
// dead, whose entries disappear one by one: somebody retries or drops them, or a newer one replaces them.
func (s *Store) Trimmed(ctx context.Context, streams, after []string) (bool, error) {
	infos := make([]*redis.XInfoStreamCmd, len(streams))
	// The pipeline's error is that of its first failed command; each command has its own.
	_, _ = s.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, key := range streams {
			if name, _, ok := s.keys.StreamName(key); ok && name != "dead" {
				infos[i] = pipe.XInfoStream(ctx, key)
			}
		}
		return nil
	})
	trimmed := false
	for i, key := range streams {
		if infos[i] == nil {
			continue
		}
		info, err := infos[i].Result()
		if err != nil && isNoKey(err) {
			continue
		}
		if err != nil {
			return false, unavailable("read", key, err)
		}
		if info.EntriesAdded > info.Length && entryid.Newer(cmp.Or(info.FirstEntry.ID, info.LastGeneratedID), after[i]) {
			trimmed = true
		}
	}
	return trimmed, nil
}

// EntriesAfter reads up to limit entries of a stream that come after an id.
func (s *Store) EntriesAfter(ctx context.Context, stream, id string, limit int) ([]Entry, error) {
	ms, err := s.rdb.XRangeN(ctx, stream, "("+id, "+", int64(limit)).Result()
	if err != nil {
		return nil, unavailable("read", stream, err)
	}
	entries := make([]Entry, len(ms))
	for i, m := range ms {
		entries[i] = Entry{m.ID, texts(m.Values)}
	}
	return entries, nil
}

// ReadNew reads once the entries after the ids, calls take for each, and sets the ids to the last ones. The streams of a
// partition must stand together. A stream whose id is "" is left out.
//
// ReadNew waits up to a second for an entry of a single partition. It polls several partitions, because one command cannot
// wait for streams in different slots, and each partition would need a connection. The error is that of the first partition
// that did not answer; ReadNew has read the others.
func (s *Store) ReadNew(ctx context.Context, streams, after []string, take func(i int, e Entry)) error {
	groups := s.byPartition(streams, after)
	if len(groups) == 0 {
		return nil
	}
	wait := newBlock
	if s.keys.Partitions() > 1 {
		wait = -1
	}
	cmds := make([]*redis.XStreamSliceCmd, len(groups))
	send := func(rdb redis.Cmdable) {
		for n, group := range groups {
			args := make([]string, 0, 2*len(group))
			for _, i := range group {
				args = append(args, streams[i])
			}
			for _, i := range group {
				args = append(args, after[i])
			}
			cmds[n] = rdb.XRead(ctx, &redis.XReadArgs{Streams: args, Count: newLimit, Block: wait})
		}
	}
	if len(groups) == 1 {
		send(s.rdb)
	} else {
		// The pipeline's error is that of its first failed command; each command has its own.
		_, _ = s.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
			send(pipe)
			return nil
		})
	}
	var first error
	none := true
	for n, group := range groups {
		found, err := cmds[n].Result()
		if err == redis.Nil {
			continue
		}
		if err != nil {
			first = cmp.Or(first, unavailable("read", streams[group[0]], err))
			continue
		}
		for _, f := range found {
			i := group[slices.IndexFunc(group, func(i int) bool { return streams[i] == f.Stream })]
			for _, m := range f.Messages {
				after[i] = m.ID
				take(i, Entry{m.ID, texts(m.Values)})
			}
			none = none && len(f.Messages) == 0
		}
	}
	if wait < 0 && none && first == nil {
		select {
		case <-ctx.Done():
		case <-time.After(newPause):
		}
	}
	return first
}

// byPartition groups the indices of the streams that have an id by partition: their hash tag.
func (s *Store) byPartition(streams, after []string) (groups [][]int) {
	last := ""
	for i, key := range streams {
		if after[i] == "" {
			continue
		}
		tag := hashTag(key)
		if len(groups) == 0 || tag != last {
			groups, last = append(groups, nil), tag
		}
		groups[len(groups)-1] = append(groups[len(groups)-1], i)
	}
	return groups
}

// hashTag is the part of a key that decides its slot in a cluster, "" where the key has none.
func hashTag(key string) string {
	_, rest, _ := strings.Cut(key, "{")
	tag, _, _ := strings.Cut(rest, "}")
	return tag
}

// texts returns an entry's fields as package event takes them.
func texts(values map[string]any) map[string]string {
	fields := make(map[string]string, len(values))
	for k, v := range values {
		fields[k], _ = v.(string)
	}
	return fields
}
