package policy

import "time"

// Item is what a decision needs to know of an item. catalog.Row.Item makes it of a row.
type Item struct {
	Level   string    // where it is now
	Count   int64     // its newest view count; one below 0, which only a row written by hand can have, is taken for 0
	Arrived time.Time // when it came to its level
	Pin     Pin
	Size    int64 // bytes; 0 where unknown
}

// Pin holds an item on a level, whatever its count. The zero value is no pin.
type Pin struct {
	Level string
	Until time.Time // when the pin ends by itself; zero: never
}

// HoldsAt tells whether there is a pin that has not ended.
func (p Pin) HoldsAt(now time.Time) bool {
	return p.Level != "" && (p.Until.IsZero() || now.Before(p.Until))
}

// Reason is the rule that a decision rests on.
type Reason string

// Reasons. A readonly or draining level is the one where the item would be if that level were active.
const (
	ByPin        Reason = "pinned"     // the item's pin
	ByReadonly   Reason = "readonly"   // a level takes nothing in
	ByDraining   Reason = "draining"   // a level gives everything away and takes nothing in
	ByCount      Reason = "count"      // the level whose range holds the count
	ByHysteresis Reason = "hysteresis" // a level above the range of the count, which keeps the item or lets it go no lower
	ByResidency  Reason = "residency"  // the item came to its level a short while ago
	ByObserve    Reason = "observe"    // nothing moves; without that, the item would
)

// Bounds are the lowest and the highest count, both inclusive, between which a decision has the same target.
type Bounds struct{ Min, Max int64 }

// Decision says where an item belongs, and why.
type Decision struct {
	Target   string // where it goes; the item's own Level where it stays
	Wanted   string // what the count alone calls for
	Reason   Reason
	ReviewAt time.Time // when the target may change without a new count; zero: never
	Until    Bounds
}

// Decide says where an item belongs at the time now. It is pure: the same arguments have the same answer, and an item on its
// target stays there. A level or a pin that the policy does not have is for the caller to see: such a pin is answered as it
// stands.
//
// Each level has a threshold for this item. For a level above the item's own it is Min. For the own level and those below it is
// Demote. The item belongs on the highest level whose threshold its count reaches, and which it may be on. So downwards it
// goes step by step, and a level keeps it whose Demote the count reaches. docs/design.md has the rules in their order.
func (p Policy) Decide(i Item, now time.Time) Decision {
	d := p.enforced(i, now)
	if !p.observes {
		return d
	}
	if d.Target != i.Level {
		d.Target, d.Reason = i.Level, ByObserve
	}
	d.ReviewAt, d.Until = time.Time{}, Bounds{0, Open}
	return d
}

// enforced decides as if nothing were only observed.
func (p Policy) enforced(i Item, now time.Time) Decision {
	count, here := max(i.Count, 0), p.index(i.Level)
	var leaves time.Time // when residency lets the item go down; zero where it does already
	if here >= 0 && p.levels[here].MinResidency > 0 {
		if at := i.Arrived.Add(p.levels[here].MinResidency); now.Before(at) {
			leaves = at
		}
	}
	resident := !leaves.IsZero()
	until := Bounds{0, Open}
	// Where the item goes, where it would go if every level were active, and the level whose range holds its count.
	target, ideal, wanted := -1, -1, -1
	for k := len(p.levels) - 1; k >= 0 && (target < 0 || wanted < 0); k-- {
		l := &p.levels[k]
		threshold := l.threshold(k > here)
		if resident && k == here {
			threshold = 0
		}
		switch reached, usable := count >= threshold, l.usable(k == here); {
		case target >= 0:
		case reached && usable:
			target, until.Min = k, threshold
		case usable:
			until.Max = min(until.Max, threshold-1)
		}
		if ideal < 0 && count >= threshold {
			ideal = k
		}
		if wanted < 0 && count >= l.Min {
			wanted = k
		}
	}
	d := Decision{Target: p.levels[target].Name, Wanted: p.levels[wanted].Name, Until: until}
	switch {
	case i.Pin.HoldsAt(now):
		d.Target, d.Reason = p.pinned(i.Pin.Level, here)
		d.ReviewAt, d.Until = i.Pin.Until, Bounds{0, Open}
	case target != ideal:
		d.Reason = p.levels[ideal].State.reason()
	case resident && target == here && count < p.levels[here].threshold(false):
		d.Reason, d.ReviewAt = ByResidency, leaves
	case target != wanted:
		d.Reason = ByHysteresis
	default:
		d.Reason = ByCount
	}
	return d
}

// index returns the index of the level of this name, or -1.
func (p Policy) index(name string) int {
	for k := range p.levels {
		if p.levels[k].Name == name {
			return k
		}
	}
	return -1
}

// threshold is the count from which on an item belongs on the level or above it. above tells whether the level is above the
// item's own. The lowest level has the threshold 0 and is active, so every item belongs somewhere.
func (l *Level) threshold(above bool) int64 {
	if l.Demote.Set && !above {
		return l.Demote.Count
	}
	return l.Min
}

// usable tells whether an item may be on the level: it may enter active levels, and stay on a readonly one.
func (l *Level) usable(own bool) bool { return l.State == Active || l.State == Readonly && own }

// pinned returns where a pin to a level sends an item. If that level takes nothing in, the item goes to the next level below
// that does. An item that is on the level already stays.
func (p Policy) pinned(level string, here int) (string, Reason) {
	pin := p.index(level)
	if pin < 0 || pin == here || p.levels[pin].usable(false) {
		return level, ByPin
	}
	k := pin
	for k > 0 && !p.levels[k].usable(k == here) {
		k--
	}
	return p.levels[k].Name, p.levels[pin].State.reason()
}

// Knows tells whether the policy has the levels that the item names: the one it is on, and its pin.
func (p Policy) Knows(i Item) bool {
	return p.index(i.Level) >= 0 && (i.Pin.Level == "" || p.index(i.Pin.Level) >= 0)
}

// Holds tells whether the level's range holds the count. It is for sets of levels that are no valid Policy, such as those
// before a change.
func (l Level) Holds(count int64) bool { return l.Min <= count && count <= l.Max }
