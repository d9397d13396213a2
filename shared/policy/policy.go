// Package policy decides where an item belongs. It is the only place that compares a count with a range or a pin; a house
// test fails where another package does. It is pure: it imports the standard library alone and touches nothing.
package policy

import (
	"errors"
	"fmt"
	"math"
	"path"
	"slices"
	"strings"
	"time"
)

// Level is a row of the `level` table: a range of counts and the tier where its files lie.
type Level struct {
	Name   string
	Min    int64
	Max    int64  // inclusive; Open where the range has no upper end
	Path   string // absolute folder of the tier's root
	TierID string // the id that the tier's tier.json must carry; "" until init-tiers ran

	Demote       Threshold     // an item leaves the level downwards only when its count is below this one
	MinResidency time.Duration // how long an item that came to the level does not go down; 0: it may go at once
	State        State
}

// Threshold is a count that may be left out. Level.Demote is Level.Min where it is left out.
type Threshold struct {
	Count int64
	Set   bool
}

// State says what a level takes in and gives away.
type State uint8

// States.
const (
	Active   State = iota // takes items in, and gives them away
	Readonly              // takes nothing in
	Draining              // takes nothing in, and gives everything away
)

var states = [...]string{Active: "active", Readonly: "readonly", Draining: "draining"}

func (s State) String() string { return states[s] }

// reason returns the reason of a decision that another state would change.
func (s State) reason() Reason {
	if s == Draining {
		return ByDraining
	}
	return ByReadonly
}

// ParseState reads a state by its name.
func ParseState(name string) (State, error) {
	if i := slices.Index(states[:], name); i >= 0 {
		return State(i), nil
	}
	return Active, fmt.Errorf("there is no state %q; the states are %s", name, strings.Join(states[:], ", "))
}

// Open is the Max of the top level. No count is higher, so comparisons need no special case.
const Open int64 = math.MaxInt64

// Policy is a valid set of levels, ascending by Min: it covers every count once.
type Policy struct {
	levels   []Level
	observes bool
}

// Observing returns the policy with the mode observe on or off. In that mode nothing moves.
func (p Policy) Observing(on bool) Policy {
	p.observes = on
	return p
}

// Observes tells whether the policy is in the mode observe.
func (p Policy) Observes() bool { return p.observes }

// New validates levels as a whole: names, absolute and disjoint paths, one active level at 0, no gaps, no overlaps, the top
// one open, no demotion above the range. The error names every problem, one a line. The policy enforces.
func New(levels []Level) (Policy, error) {
	ls := slices.Clone(levels)
	slices.SortFunc(ls, func(a, b Level) int {
		if a.Min != b.Min {
			if a.Min < b.Min {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
	var errs []error
	problem := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(ls) == 0 {
		problem("there are no levels: at least one, starting at 0, is needed")
	}
	seen := map[string]bool{}
	for i, l := range ls {
		if !validLevelName(l.Name) {
			problem("level %q: a name has 1 to 64 letters, digits, '-', '_' or '.', and starts with a letter or digit", l.Name)
		}
		if seen[l.Name] {
			problem("level %q: the name is there twice", l.Name)
		}
		seen[l.Name] = true
		if !path.IsAbs(l.Path) || path.Clean(l.Path) != l.Path || l.Path == "/" || strings.ContainsRune(l.Path, 0) {
			problem("level %q: path %q is not a clean absolute path of a folder", l.Name, l.Path)
		}
		if l.Min < 0 {
			problem("level %q: its lowest count %d is negative", l.Name, l.Min)
		}
		if l.Max < l.Min {
			problem("level %q: its highest count %d is below its lowest %d", l.Name, l.Max, l.Min)
		}
		errs = append(errs, l.rules(i == 0)...)
		switch {
		case i == 0 && l.Min != 0:
			problem("level %q: the lowest level must start at 0, not %d", l.Name, l.Min)
		case i > 0 && ls[i-1].Max == Open:
			problem("level %q: overlaps with %q, which has no upper end", l.Name, ls[i-1].Name)
		case i > 0 && l.Min <= ls[i-1].Max:
			problem("level %q: overlaps with %q at %d", l.Name, ls[i-1].Name, l.Min)
		case i > 0 && l.Min != ls[i-1].Max+1:
			problem("level %q: counts %d to %d belong to no level", l.Name, ls[i-1].Max+1, l.Min-1)
		}
		if i == len(ls)-1 && l.Max != Open {
			problem("level %q: the top level must have no upper end", l.Name)
		}
		for _, o := range ls[:i] {
			if o.Path == l.Path || strings.HasPrefix(o.Path+"/", l.Path+"/") || strings.HasPrefix(l.Path+"/", o.Path+"/") {
				problem("levels %q and %q: one path lies within the other (%s, %s)", o.Name, l.Name, o.Path, l.Path)
			}
		}
	}
	if len(errs) > 0 {
		return Policy{}, errors.Join(errs...)
	}
	return Policy{levels: ls}, nil
}

// rules returns what is wrong with a level's rules.
func (l Level) rules(lowest bool) (errs []error) {
	problem := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("level %q: "+format, append([]any{l.Name}, args...)...))
	}
	if l.Demote.Set && l.Demote.Count < 0 {
		problem("its items are demoted below %d, which is negative", l.Demote.Count)
	}
	if l.Demote.Set && l.Demote.Count > l.Min {
		problem("its items are demoted below %d, which is above its lowest count %d", l.Demote.Count, l.Min)
	}
	if l.MinResidency < 0 || l.MinResidency > MaxResidency || l.MinResidency%time.Second != 0 {
		problem("its residency of %s is not in whole seconds from 0 to %d", l.MinResidency, int64(MaxResidency/time.Second))
	}
	if lowest && l.State != Active {
		problem("it is the lowest level, so it cannot be %s: what has no other level goes there", l.State)
	}
	return errs
}

// MaxResidency bounds Level.MinResidency: about ten years.
const MaxResidency = 3650 * 24 * time.Hour

// validLevelName keeps level names usable without quoting in URLs, JSON and the state's pattern in Redis.
func validLevelName(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '-' && c != '_' && c != '.') {
			return false
		}
	}
	return true
}

// Levels returns the levels, ascending. The caller must not change them.
func (p Policy) Levels() []Level { return p.levels }

// Lowest is the level whose range starts at 0: where an item without a count belongs. A policy from New always has one.
func (p Policy) Lowest() Level { return p.levels[0] }

// Level finds a level by name.
func (p Policy) Level(name string) (Level, bool) {
	if k := p.index(name); k >= 0 {
		return p.levels[k], true
	}
	return Level{}, false
}
