package policy_test

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tierflow/tierflow/shared/policy"
)

// ruled are the levels of the first rows after a change to each.
func ruled(t *testing.T, change func(bronze, silver, gold *policy.Level)) policy.Policy {
	t.Helper()
	ls := original()
	change(&ls[0], &ls[1], &ls[2])
	p, err := policy.New(ls)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func below(count int64) policy.Threshold { return policy.Threshold{Count: count, Set: true} }

// example is one item and what is decided of it at the time start.
type example struct {
	level  string
	count  int64
	ago    time.Duration // since it arrived
	target string
	reason policy.Reason
	review time.Duration // from start; 0: never
	until  policy.Bounds
}

func check(t *testing.T, p policy.Policy, examples []example) {
	t.Helper()
	for _, e := range examples {
		got := p.Decide(policy.Item{Level: e.level, Count: e.count, Arrived: start.Add(-e.ago)}, start)
		want := policy.Decision{Target: e.target, Wanted: got.Wanted, Reason: e.reason, Until: e.until}
		if e.review != 0 {
			want.ReviewAt = start.Add(e.review)
		}
		if got != want {
			t.Errorf("%d on %s: %+v, not %+v", e.count, e.level, got, want)
		}
	}
}

func TestHysteresisKeepsAnItemAndLetsItGoStepByStep(t *testing.T) {
	p := ruled(t, func(_, silver, gold *policy.Level) { silver.Demote, gold.Demote = below(800), below(1600) })
	check(t, p, []example{
		{"gold", 2000, 0, "gold", policy.ByCount, 0, policy.Bounds{Min: 1600, Max: policy.Open}},
		{"gold", 1999, 0, "gold", policy.ByHysteresis, 0, policy.Bounds{Min: 1600, Max: policy.Open}},
		{"gold", 1600, 0, "gold", policy.ByHysteresis, 0, policy.Bounds{Min: 1600, Max: policy.Open}},
		{"gold", 1599, 0, "silver", policy.ByCount, 0, policy.Bounds{Min: 800, Max: 1599}},
		{"gold", 999, 0, "silver", policy.ByHysteresis, 0, policy.Bounds{Min: 800, Max: 1599}}, // silver keeps it on its way down
		{"gold", 800, 0, "silver", policy.ByHysteresis, 0, policy.Bounds{Min: 800, Max: 1599}},
		{"gold", 799, 0, "bronze", policy.ByCount, 0, policy.Bounds{Min: 0, Max: 799}},
		{"silver", 2000, 0, "gold", policy.ByCount, 0, policy.Bounds{Min: 2000, Max: policy.Open}},
		{"silver", 1999, 0, "silver", policy.ByCount, 0, policy.Bounds{Min: 800, Max: 1999}},
		{"silver", 800, 0, "silver", policy.ByHysteresis, 0, policy.Bounds{Min: 800, Max: 1999}},
		{"silver", 799, 0, "bronze", policy.ByCount, 0, policy.Bounds{Min: 0, Max: 799}},
		{"bronze", 999, 0, "bronze", policy.ByCount, 0, policy.Bounds{Min: 0, Max: 999}}, // upwards the ranges hold
		{"bronze", 1000, 0, "silver", policy.ByCount, 0, policy.Bounds{Min: 1000, Max: 1999}},
	})
	p = ruled(t, func(_, silver, gold *policy.Level) { silver.Demote, gold.Demote = below(800), below(500) })
	check(t, p, []example{
		{"gold", 500, 0, "gold", policy.ByHysteresis, 0, policy.Bounds{Min: 500, Max: policy.Open}},
		{"gold", 499, 0, "bronze", policy.ByCount, 0, policy.Bounds{Min: 0, Max: 499}}, // silver would not keep it
	})
}

func TestResidencyHoldsAnItemThatHasJustArrivedFromGoingDownAlone(t *testing.T) {
	p := ruled(t, func(_, silver, gold *policy.Level) {
		silver.MinResidency, gold.MinResidency, gold.Demote = time.Hour, 24*time.Hour, below(1600)
	})
	check(t, p, []example{
		{"gold", 0, 0, "gold", policy.ByResidency, 24 * time.Hour, every},
		{"gold", 0, 24*time.Hour - 1, "gold", policy.ByResidency, 1, every},
		{"gold", 0, 24 * time.Hour, "bronze", policy.ByCount, 0, policy.Bounds{Min: 0, Max: 999}},
		{"gold", 1700, time.Hour, "gold", policy.ByHysteresis, 0, every},           // it stays without it, and no review is due
		{"gold", 0, -time.Hour, "gold", policy.ByResidency, 25 * time.Hour, every}, // a clock that was set back
		{"silver", 0, time.Minute, "silver", policy.ByResidency, 59 * time.Minute, policy.Bounds{Min: 0, Max: 1999}},
		{"silver", 2000, time.Minute, "gold", policy.ByCount, 0, policy.Bounds{Min: 2000, Max: policy.Open}}, // up at once
		{"bronze", 1000, 0, "silver", policy.ByCount, 0, policy.Bounds{Min: 1000, Max: 1999}},
	})
}

func TestAReadonlyLevelTakesNothingInAndKeepsWhatItHas(t *testing.T) {
	p := ruled(t, func(_, _, gold *policy.Level) { gold.State = policy.Readonly })
	check(t, p, []example{
		{"bronze", 5000, 0, "silver", policy.ByReadonly, 0, policy.Bounds{Min: 1000, Max: policy.Open}},
		{"silver", 5000, 0, "silver", policy.ByReadonly, 0, policy.Bounds{Min: 1000, Max: policy.Open}},
		{"gold", 5000, 0, "gold", policy.ByCount, 0, policy.Bounds{Min: 2000, Max: policy.Open}},
		{"gold", 1500, 0, "silver", policy.ByCount, 0, policy.Bounds{Min: 1000, Max: 1999}},
	})
	p = ruled(t, func(_, silver, _ *policy.Level) { silver.State = policy.Readonly })
	check(t, p, []example{
		{"bronze", 1500, 0, "bronze", policy.ByReadonly, 0, policy.Bounds{Min: 0, Max: 1999}},
		{"gold", 1500, 0, "bronze", policy.ByReadonly, 0, policy.Bounds{Min: 0, Max: 1999}},
		{"bronze", 2000, 0, "gold", policy.ByCount, 0, policy.Bounds{Min: 2000, Max: policy.Open}},
	})
}

func TestADrainingLevelGivesEverythingToTheNextLevelBelowThatTakesItIn(t *testing.T) {
	p := ruled(t, func(_, silver, gold *policy.Level) {
		gold.State, gold.Demote, gold.MinResidency = policy.Draining, below(1600), time.Hour
		silver.Demote = below(800)
	})
	check(t, p, []example{
		{"gold", 5000, time.Minute, "silver", policy.ByDraining, 0, policy.Bounds{Min: 800, Max: policy.Open}}, // residency is weaker
		{"gold", 1700, time.Minute, "silver", policy.ByDraining, 0, policy.Bounds{Min: 800, Max: policy.Open}}, // so is hysteresis
		{"gold", 900, 2 * time.Hour, "silver", policy.ByHysteresis, 0, policy.Bounds{Min: 800, Max: policy.Open}},
		{"gold", 0, 2 * time.Hour, "bronze", policy.ByCount, 0, policy.Bounds{Min: 0, Max: 799}},
		{"silver", 5000, 0, "silver", policy.ByDraining, 0, policy.Bounds{Min: 800, Max: policy.Open}},
		{"bronze", 5000, 0, "silver", policy.ByDraining, 0, policy.Bounds{Min: 1000, Max: policy.Open}},
	})
	p = ruled(t, func(_, silver, gold *policy.Level) { silver.State, gold.State = policy.Draining, policy.Draining })
	check(t, p, []example{
		{"gold", 5000, 0, "bronze", policy.ByDraining, 0, every},
		{"silver", 1500, 0, "bronze", policy.ByDraining, 0, every},
		{"bronze", 5000, 0, "bronze", policy.ByDraining, 0, every},
	})
}

func TestAPinToALevelThatTakesNothingInLeadsToTheNextLevelBelow(t *testing.T) {
	for state, reason := range map[policy.State]policy.Reason{policy.Readonly: policy.ByReadonly, policy.Draining: policy.ByDraining} {
		p := ruled(t, func(_, _, gold *policy.Level) { gold.State = state })
		for level, want := range map[string]policy.Decision{
			"bronze": {Target: "silver", Wanted: "bronze", Reason: reason, Until: every},
			"silver": {Target: "silver", Wanted: "bronze", Reason: reason, Until: every},
			"gold":   {Target: "gold", Wanted: "bronze", Reason: policy.ByPin, Until: every}, // a pinned item stays
		} {
			if got := p.Decide(policy.Item{Level: level, Pin: policy.Pin{Level: "gold"}}, start); got != want {
				t.Errorf("%s, gold is %s: %+v, not %+v", level, state, got, want)
			}
		}
	}
}

func TestWhileAPolicyOnlyObservesNothingMoves(t *testing.T) {
	p := ruled(t, func(_, _, gold *policy.Level) { gold.MinResidency = time.Hour }).Observing(true)
	if !p.Observes() || p.Observing(false).Observes() {
		t.Error("the mode is not as it was set")
	}
	check(t, p, []example{
		{"bronze", 5000, 0, "bronze", policy.ByObserve, 0, every},
		{"bronze", 5, 0, "bronze", policy.ByCount, 0, every},
		{"gold", 5, 0, "gold", policy.ByResidency, 0, every},
		{"gold", 5, time.Hour, "gold", policy.ByObserve, 0, every},
	})
	pinned := policy.Item{Level: "bronze", Pin: policy.Pin{Level: "gold"}}
	if d := p.Decide(pinned, start); d.Target != "bronze" || d.Reason != policy.ByObserve {
		t.Errorf("%+v", d)
	}
	if d := p.Observing(false).Decide(pinned, start); d.Target != "gold" {
		t.Errorf("%+v", d)
	}
}

func TestTheBoundsOfHysteresisHoldForEveryOrderOfPosts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := anyPolicy(t)
		i := policy.Item{Level: rapid.SampledFrom(p.Levels()).Draw(t, "level").Name}
		now := start.Add(1000 * time.Hour) // no residency is left
		for range rapid.IntRange(1, 30).Draw(t, "posts") {
			i.Count = anyCount(t, p)
			d := p.Decide(i, now)
			from, _ := p.Level(i.Level)
			to, _ := p.Level(d.Target)
			min := from.Min
			if from.Demote.Set {
				min = from.Demote.Count
			}
			switch down, up := place(p, to.Name) < place(p, from.Name), place(p, to.Name) > place(p, from.Name); {
			case down && from.State != policy.Draining && i.Count >= min:
				t.Fatalf("%d leaves %+v downwards: %+v", i.Count, from, d)
			case up && i.Count < to.Min:
				t.Fatalf("%d goes up to %+v: %+v", i.Count, to, d)
			case !down && !up && from.State == policy.Active && i.Count < min && from.Min > 0:
				t.Fatalf("%d stays on %+v: %+v", i.Count, from, d)
			}
			i.Level = d.Target
		}
	})
}

func TestWrongRulesAreRefusedWithEveryProblem(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(ls []policy.Level)
		want   []string
	}{
		{"demoted above its range", func(ls []policy.Level) { ls[1].Demote = below(1001) }, []string{"demoted below 1001, which is above its lowest count 1000"}},
		{"demoted below nothing", func(ls []policy.Level) { ls[1].Demote = below(-1) }, []string{"demoted below -1, which is negative"}},
		{"residency below 0", func(ls []policy.Level) { ls[1].MinResidency = -time.Second }, []string{"its residency of -1s"}},
		{"residency of half a second", func(ls []policy.Level) { ls[1].MinResidency = time.Second / 2 }, []string{"its residency of 500ms"}},
		{"residency without end", func(ls []policy.Level) { ls[1].MinResidency = math.MaxInt64 / 1000 * 1000 }, []string{"its residency of"}},
		{"the lowest drains", func(ls []policy.Level) { ls[0].State = policy.Draining }, []string{`"bronze": it is the lowest level, so it cannot be draining`}},
		{"the lowest is readonly", func(ls []policy.Level) { ls[0].State = policy.Readonly }, []string{"so it cannot be readonly"}},
		{"several", func(ls []policy.Level) { ls[0].State, ls[2].Demote, ls[2].Max = policy.Draining, below(5000), 9000 },
			[]string{"cannot be draining", "demoted below 5000", `"gold": the top level must have no upper end`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ls := original()
			c.change(ls)
			wantRefused(t, ls, c.want)
		})
	}
	if _, err := policy.New(ruled(t, func(bronze, silver, gold *policy.Level) {
		bronze.Demote, silver.Demote, gold.Demote = below(0), below(0), below(2000)
		silver.MinResidency, silver.State, gold.State = policy.MaxResidency, policy.Readonly, policy.Draining
	}).Levels()); err != nil {
		t.Error(err)
	}
}

func TestAStateIsReadByItsName(t *testing.T) {
	for _, s := range []policy.State{policy.Active, policy.Readonly, policy.Draining} {
		if got, err := policy.ParseState(s.String()); got != s || err != nil {
			t.Errorf("%s: %s, %v", s, got, err)
		}
	}
	for _, name := range []string{"", "Active", "drained"} {
		if s, err := policy.ParseState(name); err == nil {
			t.Errorf("%q is %s", name, s)
		}
	}
}
