package state

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/stream"
)

const (
	// MaxWaiting is how many entries a worker lists in Redis, those that have waited longest. It bounds memory.
	MaxWaiting = 500
	// maxWords bounds the words of one error, in bytes.
	maxWords = 300
	// maxWaitingRead: once Waiting has read so many entries, it reads no further workers. It reads 20 workers at a time.
	maxWaitingRead = 10_000
	// WaitingGrace is the reason of releases that wait as long as they are meant to. They are counted and not listed: at any moment
	// that is most of the releases.
	WaitingGrace = "grace"
	// waitingCounts is the field with the number of all entries that wait, by reason.
	waitingCounts = "counts"
	// waitingOldest is the field with the entry that has waited longest: its field and its value.
	waitingOldest = "oldest"
)

// Waiting is an entry that waits at a worker.
type Waiting struct {
	Stream   string // views, relocated or committed
	Entry    Ref
	CID      string // as the entry has it
	Worker   string
	Reason   string // one word
	Error    string // the last one; may be ""
	Since    time.Time
	Attempts int64     // those that have failed
	Next     time.Time // of the next try; zero: when what it waits for is there
}

// WaitingReport is what a worker tells of its entries that wait.
type WaitingReport struct {
	Counts map[string]int // of all that wait, by reason
	Listed []Waiting      // the longest first; the first MaxWaiting count
}

// WaitingAt remembers what Redis knows of the entries that wait at a worker, so that only changes are written. It is not safe
// for concurrent use.
type WaitingAt struct {
	s      *Store
	key    string
	keep   time.Duration
	fields map[string]string // as Redis has them; nil: unknown
}

// WaitingAt makes a WaitingAt for a worker of a group. What it writes expires after keep without a report.
func (s *Store) WaitingAt(group, worker string, keep time.Duration) *WaitingAt {
	return &WaitingAt{s: s, key: s.keys.Waiting(group, worker), keep: keep, fields: map[string]string{}}
}

// waitingScript changes the fields of a hash and lets it expire later. It runs at maxmemory as well: an operator must see there
// why entries wait, and what it takes is bounded.
//
//	KEYS  waiting:{group}:{worker}
//	ARGV  ms until it expires, 1 where the hash must be there, number of fields to remove, these fields, then fields and values
//	->    1 done, 0 the hash is not there
var waitingScript = stream.Script(`
if ARGV[2] == '1' and redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local first = 4 + ARGV[3]
for i = 4, first - 1 do redis.call('HDEL', KEYS[1], ARGV[i]) end
for i = first, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i+1]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1`)

// Report writes what has changed since the last report, in one call. Where nothing waited then or waits now, it writes nothing.
// After an error the next report writes everything. No entry depends on it.
func (w *WaitingAt) Report(ctx context.Context, r WaitingReport) error {
	fields := map[string]string{}
	for i, one := range r.Listed[:min(len(r.Listed), MaxWaiting)] {
		name, value := one.Stream+" "+one.Entry.Text(w.s.keys), one.text()
		fields[name] = value
		if i == 0 {
			fields[waitingOldest] = name + " " + value
		}
	}
	if len(r.Counts) > 0 {
		fields[waitingCounts] = countsText(r.Counts)
	}
	if len(fields) == 0 && w.fields != nil && len(w.fields) == 0 {
		return nil
	}
	if len(fields) == 0 {
		return w.Clear(ctx)
	}
	before, there := w.fields, 0
	if len(before) > 0 {
		there = 1
	}
	for {
		done, err := w.write(ctx, before, fields, there)
		if err != nil {
			w.fields = nil
			return unavailable("write", w.key, err)
		}
		if done {
			w.fields = fields
			return nil
		}
		before, there = nil, 0 // it has expired, or Redis was wiped
	}
}

func (w *WaitingAt) write(ctx context.Context, before, fields map[string]string, there int) (bool, error) {
	var removed, changed []any
	for name := range before {
		if _, ok := fields[name]; !ok {
			removed = append(removed, name)
		}
	}
	for name, value := range fields {
		if before[name] != value {
			changed = append(changed, name, value)
		}
	}
	args := slices.Concat([]any{w.keep.Milliseconds(), there, len(removed)}, removed, changed)
	n, err := waitingScript.Run(ctx, w.s.rdb, []string{w.key}, args...).Int()
	return n == 1, err
}

// Clear removes what was reported: nothing waits here any more.
func (w *WaitingAt) Clear(ctx context.Context) error {
	if w.fields != nil && len(w.fields) == 0 {
		return nil
	}
	w.fields = nil
	if err := w.s.rdb.Del(ctx, w.key).Err(); err != nil {
		return unavailable("delete", w.key, err)
	}
	w.fields = map[string]string{}
	return nil
}

// text is the value in Redis: the reason, then name=value with blanks between, and the error's words at the end.
func (w Waiting) text() string {
	next := "-"
	if !w.Next.IsZero() {
		next = event.FormatTime(w.Next)
	}
	return fmt.Sprintf("%s cid=%s attempts=%d since=%s next=%s error=%s", w.Reason, strings.Join(strings.Fields(w.CID), ""), w.Attempts,
		event.FormatTime(w.Since), next, words(w.Error))
}

// words is a text on one line, and not too long.
func words(text string) string {
	line := strings.Join(strings.Fields(strings.ToValidUTF8(text, "?")), " ")
	if len(line) > maxWords {
		line = strings.ToValidUTF8(line[:maxWords], "") + "…"
	}
	return line
}

// parseWaiting reads what text writes. ok is false where somebody else has written it.
func (s *Store) parseWaiting(field, value string) (w Waiting, ok bool) {
	name, ref, _ := strings.Cut(field, " ")
	entry, err := ParseRef(s.keys, ref)
	parts := strings.SplitN(value, " ", 6)
	if err != nil || len(parts) != 6 {
		return Waiting{}, false
	}
	for i, prefix := range []string{"", "cid=", "attempts=", "since=", "next=", "error="} {
		if parts[i], ok = strings.CutPrefix(parts[i], prefix); !ok {
			return Waiting{}, false
		}
	}
	w = Waiting{Stream: name, Entry: entry, Reason: parts[0], CID: parts[1], Error: parts[5]}
	var bad [3]error
	w.Attempts, bad[0] = strconv.ParseInt(parts[2], 10, 64)
	w.Since, bad[1] = time.Parse(time.RFC3339Nano, parts[3])
	if parts[4] != "-" {
		w.Next, bad[2] = time.Parse(time.RFC3339Nano, parts[4])
	}
	_, known := s.waitingStream(w)
	return w, errors.Join(bad[:]...) == nil && known
}

// waitingStream is the stream of an entry, and its group.
func (s *Store) waitingStream(w Waiting) (streamGroup, bool) {
	k := s.keys.In(w.Entry.Partition)
	found, ok := map[string]streamGroup{
		"views": {k.Views(), GroupRelocator}, "relocated": {k.Relocated(), GroupCommitter}, "committed": {k.Committed(), GroupReleaser},
	}[w.Stream]
	return found, ok
}

// countsText is the value of the field counts: reason=number, with blanks between.
func countsText(counts map[string]int) string {
	var all []string
	for _, reason := range slices.Sorted(maps.Keys(counts)) {
		all = append(all, fmt.Sprintf("%s=%d", reason, counts[reason]))
	}
	return strings.Join(all, " ")
}

// Waiting returns how many entries wait at living workers, by reason, as these have reported it. It lists up to limit of those
// that have waited for longer than a few seconds, the longest first, of one item where cid is not "". An entry that
// was settled, or that another worker has by now, is left out. Where very many wait, it looks at some workers only.
func (s *Store) Waiting(ctx context.Context, cid string, limit int) (list []Waiting, counts map[string]int64, err error) {
	keys, err := s.waitingKeys(ctx)
	if err != nil {
		return nil, nil, err
	}
	counts = map[string]int64{}
	if keys, err = s.countWaiting(ctx, keys, counts); err != nil {
		return nil, nil, err
	}
	for part := range slices.Chunk(keys, 20) {
		read, err := s.readWaiting(ctx, part)
		if err != nil {
			return nil, nil, err
		}
		list = append(list, read...)
		if len(list) >= maxWaitingRead {
			break
		}
	}
	if cid != "" {
		list = slices.DeleteFunc(list, func(w Waiting) bool { return w.CID != cid })
	}
	slices.SortFunc(list, Waiting.compare)
	list, err = s.stillWaiting(ctx, list[:min(len(list), limit)])
	return list, counts, err
}

// WaitingSummary returns how many entries wait at living workers, by reason, and the one that has waited longest; nil where none has
// for more than a few seconds. It costs the same however much waits.
func (s *Store) WaitingSummary(ctx context.Context) (counts map[string]int64, oldest *Waiting, err error) {
	keys, err := s.waitingKeys(ctx)
	if err != nil {
		return nil, nil, err
	}
	counts = map[string]int64{}
	found, err := s.countWaiting(ctx, keys, counts)
	if err != nil {
		return nil, nil, err
	}
	var list []Waiting
	for _, k := range found {
		part := strings.SplitN(k.oldest, " ", 3)
		if len(part) < 3 {
			continue
		}
		if w, ok := s.parseWaiting(part[0]+" "+part[1], part[2]); ok {
			w.Worker = k.worker
			list = append(list, w)
		}
	}
	if list, err = s.stillWaiting(ctx, list); err != nil || len(list) == 0 {
		return counts, nil, err
	}
	longest := slices.MinFunc(list, Waiting.compare)
	return counts, &longest, nil
}

// compare orders waiting entries, the longest wait first.
func (w Waiting) compare(o Waiting) int {
	if c := w.Since.Compare(o.Since); c != 0 {
		return c
	}
	return w.Entry.Compare(o.Entry)
}

// waitingKey is a worker's hash.
type waitingKey struct {
	key, worker string
	oldest      string // the field waitingOldest, once it was read
}

func (s *Store) waitingKeys(ctx context.Context) ([]waitingKey, error) {
	var keys []waitingKey
	for _, group := range []string{GroupRelocator, GroupCommitter} {
		workers, err := s.rdb.HGetAll(ctx, s.keys.Workers(group)).Result()
		if err != nil {
			return nil, unavailable("read", s.keys.Workers(group), err)
		}
		for _, id := range slices.Sorted(maps.Keys(workers)) {
			keys = append(keys, waitingKey{key: s.keys.Waiting(group, id), worker: id})
		}
	}
	return keys, nil
}

// countWaiting adds to counts what the hashes have, and returns those that there are.
func (s *Store) countWaiting(ctx context.Context, keys []waitingKey, counts map[string]int64) (there []waitingKey, err error) {
	if len(keys) == 0 {
		return nil, nil
	}
	texts, longest := make([]*redis.StringCmd, len(keys)), make([]*redis.StringCmd, len(keys))
	// The pipeline's error is that of its first failed command; each command has its own.
	_, _ = s.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, k := range keys {
			texts[i], longest[i] = pipe.HGet(ctx, k.key, waitingCounts), pipe.HGet(ctx, k.key, waitingOldest)
		}
		return nil
	})
	for i, k := range keys {
		text, err := texts[i].Result()
		if errors.Is(err, redis.Nil) {
			continue
		}
		if err != nil {
			return nil, unavailable("read", k.key, err)
		}
		k.oldest = longest[i].Val() // without it the longest wait is unknown, as with workers of an older version
		there = append(there, k)
		for _, one := range strings.Fields(text) {
			reason, n, _ := strings.Cut(one, "=")
			if n, err := strconv.ParseInt(n, 10, 64); err == nil {
				counts[reason] += n
			}
		}
	}
	return there, nil
}

func (s *Store) readWaiting(ctx context.Context, keys []waitingKey) (list []Waiting, err error) {
	hashes := make([]*redis.MapStringStringCmd, len(keys))
	_, _ = s.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, k := range keys {
			hashes[i] = pipe.HGetAll(ctx, k.key)
		}
		return nil
	})
	for i, k := range keys {
		fields, err := hashes[i].Result()
		if err != nil {
			return nil, unavailable("read", k.key, err)
		}
		for name, value := range fields {
			if w, ok := s.parseWaiting(name, value); ok {
				w.Worker = k.worker
				list = append(list, w)
			}
		}
	}
	return list, nil
}

// stillWaiting returns the entries that are pending with their workers.
func (s *Store) stillWaiting(ctx context.Context, list []Waiting) ([]Waiting, error) {
	if len(list) == 0 {
		return nil, nil
	}
	pending := make([]*redis.XPendingExtCmd, len(list))
	_, _ = s.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, w := range list {
			of, _ := s.waitingStream(w)
			pending[i] = pipe.XPendingExt(ctx, &redis.XPendingExtArgs{Stream: of.stream, Group: of.group, Start: w.Entry.ID,
				End: w.Entry.ID, Count: 1, Consumer: w.Worker})
		}
		return nil
	})
	var still []Waiting
	for i, w := range list {
		p, err := pending[i].Result()
		if err != nil && !redis.HasErrorPrefix(err, "NOGROUP") {
			return nil, unavailable("read pending entries of", w.Stream, err)
		}
		if len(p) > 0 {
			still = append(still, w)
		}
	}
	return still, nil
}
