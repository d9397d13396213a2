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
)

// Level is a row of the `level` table: a range of counts and the tier where its files lie.
type Level struct {
	Name   string
	Min    int64
	Max    int64  // inclusive; Open where the range has no upper end
	Path   string // absolute folder of the tier's root
	TierID string // the id that the tier's tier.json must carry; "" until init-tiers ran
}

// Open is the Max of the top level. No count is higher, so comparisons need no special case.
const Open int64 = math.MaxInt64

// Policy is a valid set of levels, ascending by Min: it covers every count once.
type Policy struct{ levels []Level }

// New validates levels as a whole: names, absolute and disjoint paths, one level at 0, no gaps, no overlaps, the top one
// open. The error names every problem, one a line.
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
	return Policy{ls}, nil
}

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
	for _, l := range p.levels {
		if l.Name == name {
			return l, true
		}
	}
	return Level{}, false
}
