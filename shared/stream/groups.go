package stream

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/entryid"
)

// unconsumedAfter is how long a group may settle nothing while newer entries are there. It is long for a program that is
// started again, and short beside the time that it takes to fill a Redis.
const unconsumedAfter = time.Minute

// maxNamed is how many groups CheckConsumed names.
const maxNamed = 5

// Group is a consumer group of a stream.
type Group struct{ Stream, Name string }

// otherGroups are those of a stream, as they were at the last looks. They notice one that nobody consumes. Only the time
// counts in which Redis was seen to answer, so a Redis that was away, or a process that was paused, makes no group look idle.
type otherGroups struct {
	after  time.Duration
	looked time.Time
	idle   map[string]idleGroup
}

// idleGroup is a group as it was at the last looks.
type idleGroup struct {
	delivered string
	pending   int64
	idle      time.Duration // for which it has been so, with newer entries in the stream
}

// look compares the groups with the last look. newest is the id of the stream's last entry. every is the time from one look to
// the next; a longer one counts as that.
func (s *otherGroups) look(all []redis.XInfoGroup, own, newest string, now time.Time, every time.Duration) {
	passed := min(now.Sub(s.looked), every)
	before := s.idle
	s.looked, s.idle = now, map[string]idleGroup{}
	for _, g := range all {
		if g.Name == own || !entryid.Newer(newest, g.LastDeliveredID) {
			continue
		}
		is := idleGroup{delivered: g.LastDeliveredID, pending: g.Pending}
		if was, ok := before[g.Name]; ok && was.delivered == is.delivered && was.pending == is.pending {
			is.idle = was.idle + passed
		}
		s.idle[g.Name] = is
	}
}

// unconsumed names the groups that nobody consumes, sorted.
func (s *otherGroups) unconsumed() (names []string) {
	for name, g := range s.idle {
		if g.idle >= s.after {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Unconsumed lists the other groups of the stream that have read and settled nothing for a minute, although the stream has newer
// entries. Such a group keeps the stream from being trimmed. Nothing is known of them where this consumer has retired.
func (c *Consumer) Unconsumed() []Group {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.retired {
		return nil
	}
	var all []Group
	for _, name := range c.others.unconsumed() {
		all = append(all, Group{c.o.Stream, name})
	}
	return all
}

// CheckConsumed is an error where there are groups that nobody consumes. It names them and says what to do, in the same words
// whoever finds them.
func CheckConsumed(groups []Group) error {
	if len(groups) == 0 {
		return nil
	}
	groups = slices.Clone(groups)
	slices.SortFunc(groups, func(a, b Group) int { return strings.Compare(a.Stream+" "+a.Name, b.Stream+" "+b.Name) })
	var commands []string
	for _, g := range groups[:min(len(groups), maxNamed)] {
		commands = append(commands, "XGROUP DESTROY "+quoted(g.Stream)+" "+quoted(g.Name))
	}
	more := ""
	if n := len(groups) - maxNamed; n > 0 {
		more = fmt.Sprintf(" (and %d more groups)", n)
	}
	return errors.New("a consumer group that nobody consumes keeps its stream from being trimmed, and Redis fills up: consume it, or remove it with " +
		strings.Join(commands, ", ") + more)
}

var plain = regexp.MustCompile(`^[A-Za-z0-9:._{}-]+$`)

// quoted is a name as redis-cli reads it.
func quoted(name string) string {
	if plain.MatchString(name) {
		return name
	}
	return strconv.QuoteToASCII(name)
}
