package policy

import (
	"slices"
	"time"
)

// Item is what a decision needs to know of an item. catalog.Row.Item makes it of a row.
type Item struct {
	Level string // where it is now
	Count int64  // its newest view count; one below 0, which only a row written by hand can have, is taken for 0
	Pin   string // the level that holds it, whatever its count; "" for none
}

// Reason is the rule that a decision rests on.
type Reason string

// Reasons, in the order in which their rules apply.
const (
	ByPin   Reason = "pinned" // the item's pin
	ByCount Reason = "count"  // the level whose range holds the count
)

// Bounds are the lowest and the highest count, both inclusive, between which a decision stays the same.
type Bounds struct{ Min, Max int64 }

// Decision says where an item belongs, and why.
type Decision struct {
	Target string // where it goes; the item's own Level where it stays
	Wanted string // what the count alone calls for
	Reason Reason
	Until  Bounds
}

// Decide says where an item belongs at the time now. It is pure: the same arguments have the same answer, and an item on
// its target stays there. A pin is answered as it stands: whether its level exists is for the caller to see. No rule of
// today depends on the time.
func (p Policy) Decide(i Item, _ time.Time) Decision {
	wanted := p.holding(max(i.Count, 0))
	if i.Pin != "" {
		return Decision{Target: i.Pin, Wanted: wanted.Name, Reason: ByPin, Until: Bounds{0, Open}}
	}
	return Decision{Target: wanted.Name, Wanted: wanted.Name, Reason: ByCount, Until: Bounds{wanted.Min, wanted.Max}}
}

// holding returns the level whose range holds a count of 0 or more.
func (p Policy) holding(count int64) Level {
	i, _ := slices.BinarySearchFunc(p.levels, count, func(l Level, count int64) int {
		switch {
		case l.Max < count:
			return -1
		case l.Min > count:
			return 1
		}
		return 0
	})
	return p.levels[i]
}

// Knows tells whether the policy has the levels that the item names: the one it is on, and its pin.
func (p Policy) Knows(i Item) bool {
	_, on := p.Level(i.Level)
	_, pinned := p.Level(i.Pin)
	return on && (pinned || i.Pin == "")
}

// Holds tells whether the level's range holds the count. It is for sets of levels that are no valid Policy, such as those
// before a change.
func (l Level) Holds(count int64) bool { return l.Min <= count && count <= l.Max }
