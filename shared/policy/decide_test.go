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
		"demoted": {policy.Item{Level: "gold", Count: 0},
			policy.Decision{Target: "bronze", Wanted: "bronze", Reason: policy.ByCount, Until: policy.Bounds{Min: 0, Max: 999}}},
		"a count below 0 is 0": {policy.Item{Level: "gold", Count: math.MinInt64},
			policy.Decision{Target: "bronze", Wanted: "bronze", Reason: policy.ByCount, Until: policy.Bounds{Min: 0, Max: 999}}},
		"pinned below its count": {policy.Item{Level: "gold", Count: 5000, Pin: "bronze"},
			policy.Decision{Target: "bronze", Wanted: "gold", Reason: policy.ByPin, Until: policy.Bounds{Min: 0, Max: policy.Open}}},
		"pinned where its count wants it": {policy.Item{Level: "bronze", Count: 1500, Pin: "silver"},
			policy.Decision{Target: "silver", Wanted: "silver", Reason: policy.ByPin, Until: policy.Bounds{Min: 0, Max: policy.Open}}},
	} {
		if got := p.Decide(c.item, time.Now()); got != c.want {
			t.Errorf("%s: %+v is decided as %+v, not %+v", name, c.item, got, c.want)
		}
	}
}

// anyPolicy draws a valid policy of one to nine levels, in any order.
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

// anyCount draws counts at and beside the ends of ranges as often as others.
func anyCount(t *rapid.T, p policy.Policy) int64 {
	l := rapid.SampledFrom(p.Levels()).Draw(t, "near")
	return max(0, rapid.OneOf(rapid.SampledFrom([]int64{l.Min - 1, l.Min, l.Max, 0, math.MaxInt64}), rapid.Int64Min(0)).Draw(t, "count"))
}

func anyItem(t *rapid.T, p policy.Policy) policy.Item {
	i := policy.Item{Level: rapid.SampledFrom(p.Levels()).Draw(t, "level").Name, Count: anyCount(t, p)}
	if rapid.Bool().Draw(t, "pinned") {
		i.Pin = rapid.SampledFrom(p.Levels()).Draw(t, "pin").Name
	}
	return i
}

func TestDecideIsPureAndItsOwnTargetStays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := anyPolicy(t)
		i := anyItem(t, p)
		d := p.Decide(i, time.Now())
		if again := p.Decide(i, time.Now()); again != d {
			t.Fatalf("%+v is decided as %+v, then as %+v", i, d, again)
		}
		i.Level = d.Target
		if again := p.Decide(i, time.Now()); again != d {
			t.Fatalf("on its target %+v is decided as %+v, not %+v", i, again, d)
		}
	})
}

func TestEveryCountBelongsToTheOneLevelWhoseRangeHoldsIt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := anyPolicy(t)
		i := anyItem(t, p)
		d := p.Decide(i, time.Now())
		for _, l := range p.Levels() {
			if l.Holds(i.Count) != (l.Name == d.Wanted) {
				t.Fatalf("count %d: wanted is %s, and %s holds the count: %v", i.Count, d.Wanted, l.Name, l.Holds(i.Count))
			}
		}
	})
}

func TestAPinIsStrongerThanEveryCount(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := anyPolicy(t)
		i := anyItem(t, p)
		d := p.Decide(i, time.Now())
		if pinned := i.Pin != ""; pinned != (d.Reason == policy.ByPin) || pinned && d.Target != i.Pin || !pinned && d.Target != d.Wanted {
			t.Fatalf("%+v is decided as %+v", i, d)
		}
	})
}

func TestAHigherCountNeverLowersTheTarget(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := anyPolicy(t)
		i := anyItem(t, p)
		low, high := i, i
		high.Count = max(i.Count, anyCount(t, p))
		at := func(i policy.Item) int64 {
			l, _ := p.Level(p.Decide(i, time.Now()).Target)
			return l.Min
		}
		if at(high) < at(low) {
			t.Fatalf("%+v belongs below %+v", high, low)
		}
	})
}

func TestADecisionStaysTheSameWithinItsBoundsAndChangesOutside(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := anyPolicy(t)
		i := anyItem(t, p)
		d := p.Decide(i, time.Now())
		if i.Count < d.Until.Min || i.Count > d.Until.Max {
			t.Fatalf("%+v is outside of its own bounds: %+v", i, d)
		}
		other := i
		other.Count = anyCount(t, p)
		within := other.Count >= d.Until.Min && other.Count <= d.Until.Max
		if same := p.Decide(other, time.Now()).Target == d.Target; same != within {
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
		{Level: "gold"}: true, {Level: "gold", Pin: "silver"}: true, {Level: "platinum"}: false, {Level: "gold", Pin: "platinum"}: false, {}: false,
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
		p.Decide(policy.Item{Level: "bronze", Count: int64(n % 3000)}, now)
	}
}
