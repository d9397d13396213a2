package release

import (
	"maps"
	"math"
	"sync"
	"time"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/stream"
)

// maxSeen bounds the memory of firstSeen. Where there are as many entries, others wait until one of them is settled: if
// they took its place, no entry would ever get through.
const maxSeen = 10_000

// firstSeen remembers since when the row of an entry has been as it is.
//
// The grace begins with the entry. But an entry can be late: the item was locked, or the worker paused. Meanwhile the item
// may have been back at the copy in question, and a reader may have been led there a moment ago. So the grace must have
// passed since the row's last commit as well. The time of that commit is only known by the clock of another machine, so
// the grace counts from when this worker first saw the row.
type firstSeen struct {
	mu    sync.Mutex
	rows  map[entryKey]*seenRow
	grace time.Duration
	swept time.Time
}

// entryKey is an entry of a stream: in two partitions ids may be the same.
type entryKey struct{ stream, id string }

type seenRow struct {
	level   string
	updated time.Time
	first   time.Time
	last    time.Time
}

func newFirstSeen(grace time.Duration) firstSeen {
	return firstSeen{rows: map[entryKey]*seenRow{}, grace: grace}
}

// age is for how long the row has been unchanged, as far as this worker knows. Where the entry's own commit was the last
// one, the age of the entry is enough, and the result is the longest duration.
func (s *firstSeen) age(d *stream.Delivery, c event.Committed, row catalog.Row) time.Duration {
	if c.Outcome == event.OutcomeCommitted && row.Updated.Equal(c.CommittedAt) {
		return math.MaxInt64
	}
	return s.since(d, row.Level, row.Updated)
}

// since is for how long the entry has been seen here with this level and time.
func (s *firstSeen) since(d *stream.Delivery, level string, updated time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	key, now := entryKey{d.Stream, d.ID}, time.Now()
	seen := s.rows[key]
	if seen == nil {
		if len(s.rows) >= maxSeen {
			s.sweep(now)
		}
		if len(s.rows) >= maxSeen {
			return 0
		}
		seen = &seenRow{}
		s.rows[key] = seen
	}
	if seen.first.IsZero() || seen.level != level || !seen.updated.Equal(updated) {
		seen.level, seen.updated, seen.first = level, updated, now
	}
	seen.last = now
	return now.Sub(seen.first)
}

// sweep forgets entries that were not delivered here for longer than it takes until every entry is delivered again: another
// worker has settled them.
func (s *firstSeen) sweep(now time.Time) {
	if now.Sub(s.swept) < time.Second {
		return
	}
	s.swept = now
	maps.DeleteFunc(s.rows, func(_ entryKey, seen *seenRow) bool { return now.Sub(seen.last) > 2*s.grace+15*time.Minute })
}

func (s *firstSeen) forget(d *stream.Delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.rows, entryKey{d.Stream, d.ID})
}
