package policy_test

import (
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tierflow/tierflow/shared/policy"
)

func TestARuleDecidesWithItsReasonAndItsBounds(t *testing.T) {
	p, err := policy.New(original())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		item policy.Item
		want policy.Decision
	}{
		"in range, where it is": {policy.Item{Level: "bronze", Count: 999},
			policy.Decision{Target: "bronze", Wanted: "bronze", Reason: policy.ByCount, Until: policy.Bounds{Min: 0, Max: 999}}},
		"promoted": {policy.Item{Level: "bronze", Count: 1000},
			policy.Decision{Target: "silver", Wanted: "silver", Reason: policy.ByCount, Until: policy.Bounds{Min: 1000, Max: 1999}}},
		"promoted past a level": {policy.Item{Level: "bronze", Count: 5000},
			policy.Decision{Target: "gold", Wanted: "gold", Reason: policy.ByCount, Until: policy.Bounds{Min: 2000, Max: policy.Open}}},
		"demoted": {policy.Item{Level: "gold", Count: 0, Arrived: now},
			policy.Decision{Target: "bronze", Wanted: "bronze", Reason: policy.ByCount, Until: policy.Bounds{Min: 0, Max: 999}}},
		"a count below 0 is 0": {policy.Item{Level: "gold", Count: math.MinInt64},
			policy.Decision{Target: "bronze", Wanted: "bronze", Reason: policy.ByCount, Until: policy.Bounds{Min: 0, Max: 999}}},
		"on a level that there is not": {policy.Item{Level: "tin", Count: 1500},
			policy.Decision{Target: "silver", Wanted: "silver", Reason: policy.ByCount, Until: policy.Bounds{Min: 1000, Max: 1999}}},
		"pinned below its count": {policy.Item{Level: "gold", Count: 5000, Pin: policy.Pin{Level: "bronze"}},
			policy.Decision{Target: "bronze", Wanted: "gold", Reason: policy.ByPin, Until: every}},
		"pinned where its count wants it": {policy.Item{Level: "bronze", Count: 1500, Pin: policy.Pin{Level: "silver"}},
			policy.Decision{Target: "silver", Wanted: "silver", Reason: policy.ByPin, Until: every}},
		"pinned to a level that there is not": {policy.Item{Level: "bronze", Count: 1500, Pin: policy.Pin{Level: "tin"}},
			policy.Decision{Target: "tin", Wanted: "silver", Reason: policy.ByPin, Until: every}},
		"pinned until later": {policy.Item{Level: "gold", Count: 5, Pin: policy.Pin{Level: "silver", Until: now.Add(1)}},
			policy.Decision{Target: "silver", Wanted: "bronze", Reason: policy.ByPin, ReviewAt: now.Add(1), Until: every}},
		"pinned until now": {policy.Item{Level: "gold", Count: 5, Pin: policy.Pin{Level: "silver", Until: now}},
			policy.Decision{Target: "bronze", Wanted: "bronze", Reason: policy.ByCount, Until: policy.Bounds{Min: 0, Max: 999}}},
	} {
		if got := p.Decide(c.item, now); got != c.want {
			t.Errorf("%s: %+v is decided as %+v, not %+v", name, c.item, got, c.want)
		}
	}
}

var every = policy.Bounds{Min: 0, Max: policy.Open}

// start is near the times of all drawn items.
var start = time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)

// anyPolicy draws a valid policy of one to nine levels, in any order, with any rules.
func anyPolicy(t *rapid.T) policy.Policy {
	starts := rapid.SliceOfNDistinct(rapid.Int64Range(1, math.MaxInt64), 0, 8, rapid.ID).Draw(t, "starts")
	starts = append([]int64{0}, starts...)
	slices.Sort(starts)
	levels := make([]policy.Level, len(starts))
	for i, start := range starts {
		end := policy.Open
		if i+1 < len(starts) {
			end = starts[i+1] - 1
		}
		name := string(rune('a' + i))
		levels[i] = level(name, start, end, "/"+name)
		if rapid.Bool().Draw(t, "demotes") {
			levels[i].Demote = policy.Threshold{Count: rapid.OneOf(rapid.Just(start), rapid.Int64Range(0, start)).Draw(t, "demote"), Set: true}
		}
		if i > 0 {
			levels[i].State = rapid.SampledFrom([]policy.State{policy.Active, policy.Readonly, policy.Draining}).Draw(t, "state")
		}
		levels[i].MinResidency = time.Duration(rapid.IntRange(0, 3).Draw(t, "residency")) * time.Hour
	}
	p, err := policy.New(rapid.Permutation(levels).Draw(t, "order"))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(p.Levels(), levels) {
		t.Fatalf("the levels are %v, not %v", p.Levels(), levels)
	}
	return p
}

// anyCount draws counts at and beside the thresholds as often as others.
func anyCount(t *rapid.T, p policy.Policy) int64 {
	l := rapid.SampledFrom(p.Levels()).Draw(t, "near")
	return max(0, rapid.OneOf(rapid.SampledFrom([]int64{l.Min - 1, l.Min, l.Max, l.Demote.Count, l.Demote.Count - 1, 0, math.MaxInt64}),
		rapid.Int64Min(0)).Draw(t, "count"))
}

func anyTime(t *rapid.T, label string) time.Time {
	return start.Add(time.Duration(rapid.IntRange(-5, 5).Draw(t, label)) * 30 * time.Minute)
}

func anyItem(t *rapid.T, p policy.Policy) policy.Item {
	i := policy.Item{Level: rapid.SampledFrom(p.Levels()).Draw(t, "level").Name, Count: anyCount(t, p), Arrived: anyTime(t, "arrived")}
	if rapid.Bool().Draw(t, "pinned") {
		i.Pin.Level = rapid.SampledFrom(p.Levels()).Draw(t, "pin").Name
		if rapid.Bool().Draw(t, "ends") {
			i.Pin.Until = anyTime(t, "until")
		}
	}
	return i
}

// place is the index of a level: higher is higher.
func place(p policy.Policy, name string) int {
	return slices.IndexFunc(p.Levels(), func(l policy.Level) bool { return l.Name == name })
}

func TestDecideIsPureAndItsOwnTargetStays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := anyPolicy(t).Observing(rapid.Bool().Draw(t, "observe"))
		i := anyItem(t, p)
		before, now := slices.Clone(p.Levels()), anyTime(t, "now")
		d := p.Decide(i, now)
		if again := p.Decide(i, now); again != d || !slices.Equal(p.Levels(), before) {
			t.Fatalf("%+v is decided as %+v, then as %+v", i, d, again)
		}
		i.Level = d.Target
		if again := p.Decide(i, now); again.Target != d.Target {
			t.Fatalf("on its target of %+v it is decided as %+v", d, again)
		}
		i.Arrived = now
		if again := p.Decide(i, now); again.Target != d.Target {
			t.Fatalf("just arrived on its target of %+v it is decided as %+v", d, again)
		}
	})
}

func TestWithoutNewCountsAnItemSettlesAfterOneMoveForEachLevel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := anyPolicy(t)
		i := anyItem(t, p)
		now, moves := anyTime(t, "now"), 0
		for range 50 { // times go past every residency and every pin
			d := p.Decide(i, now)
			if d.Target != i.Level {
				i.Level, i.Arrived = d.Target, now
				moves++
			}
			now = now.Add(30 * time.Minute)
		}
		if moves > len(p.Levels()) {
			t.Fatalf("%d moves: %+v", moves, i)
		}
		if d := p.Decide(i, now); d.Target != i.Level || !d.ReviewAt.IsZero() && i.Pin.Until.IsZero() {
			t.Fatalf("it is not settled: %+v, %+v", i, d)
		}
	})
}

func TestTheAnswerChangesWithTimeOnlyWhenTheDecisionSaysSo(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := anyPolicy(t).Observing(rapid.Bool().Draw(t, "observe"))
		i := anyItem(t, p)
		now := anyTime(t, "now")
		d := p.Decide(i, now)
		if !d.ReviewAt.IsZero() && !d.ReviewAt.After(now) {
			t.Fatalf("at %s the review of %+v is in the past: %+v", now, i, d)
		}
		later := now.Add(time.Duration(rapid.IntRange(1, 20).Draw(t, "later")) * 15 * time.Minute)
		if !d.ReviewAt.IsZero() && !later.Before(d.ReviewAt) {
			later = d.ReviewAt.Add(-1)
		}
		if then := p.Decide(i, later); then.Target != d.Target {
			t.Fatalf("%+v is decided as %+v, and at %s as %+v", i, d, later, then)
		}
	})
}

func TestEveryCountCallsForTheOneLevelWhoseRangeHoldsIt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := anyPolicy(t)
		i := anyItem(t, p)
		d := p.Decide(i, anyTime(t, "now"))
		for _, l := range p.Levels() {
			if l.Holds(i.Count) != (l.Name == d.Wanted) {
				t.Fatalf("count %d: wanted is %s, and %s holds the count: %v", i.Count, d.Wanted, l.Name, l.Holds(i.Count))
			}
		}
	})
}

func TestAPinnedItemStaysAndOneThatIsElsewhereComesWhereThePinsLevelTakesItIn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := anyPolicy(t)
		i := anyItem(t, p)
		now := anyTime(t, "now")
		d := p.Decide(i, now)
		l, ok := p.Level(i.Pin.Level)
		switch held := i.Pin.HoldsAt(now); {
		case !held && d.Reason == policy.ByPin:
			t.Fatalf("no pin holds: %+v, %+v", i, d)
		case held && ok && (l.State == policy.Active || i.Level == l.Name) && (d.Target != l.Name || d.Reason != policy.ByPin):
			t.Fatalf("%+v is decided as %+v", i, d)
		case held && place(p, d.Target) > place(p, l.Name):
			t.Fatalf("%+v goes above its pin: %+v", i, d)
		}
	})
}

func TestNoRuleLetsAnItemGoToALevelThatTakesNothingIn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := anyPolicy(t)
		i := anyItem(t, p)
		now := anyTime(t, "now")
		d := p.Decide(i, now)
		to, _ := p.Level(d.Target)
		if d.Target != i.Level && to.State != policy.Active {
			t.Fatalf("%+v goes to a level that is %s: %+v", i, to.State, d)
		}
		if d.Target == i.Level && to.State == policy.Draining && d.Reason != policy.ByPin {
			t.Fatalf("%+v stays on a level that drains: %+v", i, d)
		}
	})
}

func TestAHigherCountNeverLowersTheTarget(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := anyPolicy(t)
		i := anyItem(t, p)
		now := anyTime(t, "now")
		low, high := i, i
		high.Count = max(i.Count, anyCount(t, p))
		if place(p, p.Decide(high, now).Target) < place(p, p.Decide(low, now).Target) {
			t.Fatalf("%+v belongs below %+v", high, low)
		}
	})
}

func TestTheBoundsOfADecisionAreExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := anyPolicy(t).Observing(rapid.Bool().Draw(t, "observe"))
		i := anyItem(t, p)
		now := anyTime(t, "now")
		d := p.Decide(i, now)
		if i.Count < d.Until.Min || i.Count > d.Until.Max {
			t.Fatalf("%+v is outside of its own bounds: %+v", i, d)
		}
		other := i
		other.Count = rapid.OneOf(rapid.Just(anyCount(t, p)), rapid.SampledFrom([]int64{d.Until.Min, max(d.Until.Min-1, 0), d.Until.Max,
			max(d.Until.Max, d.Until.Max+1)})).Draw(t, "other")
		within := other.Count >= d.Until.Min && other.Count <= d.Until.Max
		if same := p.Decide(other, now).Target == d.Target; same != within {
			t.Fatalf("%+v: with the count %d the target is the same: %v", d, other.Count, same)
		}
	})
}

func TestAPolicyKnowsTheItemsWhoseLevelsItHas(t *testing.T) {
	p, err := policy.New(original())
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range map[policy.Item]bool{
		{Level: "gold"}: true, {Level: "gold", Pin: policy.Pin{Level: "silver"}}: true, {Level: "platinum"}: false, {Level: "gold", Pin: policy.Pin{Level: "platinum"}}: false, {}: false,
	} {
		if got := p.Knows(i); got != want {
			t.Errorf("%+v: %v", i, got)
		}
	}
}

func BenchmarkDecide(b *testing.B) {
	p, err := policy.New(original())
	if err != nil {
		b.Fatal(err)
	}
	now := time.Now()
	b.ReportAllocs()
	for n := range b.N {
		p.Decide(policy.Item{Level: "gold", Count: int64(n % 3000), Arrived: now}, now)
	}
}
