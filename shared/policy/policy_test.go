package policy_test

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tierflow/tierflow/shared/policy"
)

func level(name string, least, most int64, path string) policy.Level {
	return policy.Level{Name: name, Min: least, Max: most, Path: path}
}

// original are the levels of the first rows.
func original() []policy.Level {
	return []policy.Level{
		level("bronze", 0, 999, "/srv/tierflow/bronze"), level("silver", 1000, 1999, "/srv/tierflow/silver"),
		level("gold", 2000, policy.Open, "/srv/tierflow/gold"),
	}
}

// target is where an item of this count belongs.
func target(p policy.Policy, count int64) string {
	return p.Decide(policy.Item{Level: "bronze", Count: count}, time.Time{}).Target
}

func TestTheTargetIsTheLevelThatHoldsTheCount(t *testing.T) {
	p, err := policy.New(original())
	if err != nil {
		t.Fatal(err)
	}
	for count, want := range map[int64]string{
		0: "bronze", 1: "bronze", 998: "bronze", 999: "bronze", 1000: "silver", 1001: "silver", 1999: "silver", 2000: "gold", 2001: "gold",
		math.MaxInt64 - 1: "gold", math.MaxInt64: "gold", -1: "bronze", math.MinInt64: "bronze",
	} {
		if got := target(p, count); got != want {
			t.Errorf("%d belongs to %s, not %s", count, got, want)
		}
	}
}

func TestOneLevelIsEnough(t *testing.T) {
	p, err := policy.New([]policy.Level{level("only", 0, policy.Open, "/a")})
	if err != nil {
		t.Fatal(err)
	}
	if target(p, 0) != "only" || target(p, math.MaxInt64) != "only" {
		t.Error("a count has no level")
	}
}

func TestALevelIsFoundByName(t *testing.T) {
	p, err := policy.New(original())
	if err != nil {
		t.Fatal(err)
	}
	if l, ok := p.Level("silver"); !ok || l.Min != 1000 {
		t.Errorf("%+v, %v", l, ok)
	}
	for _, name := range []string{"", "Silver", "platinum"} {
		if l, ok := p.Level(name); ok {
			t.Errorf("%q is %+v", name, l)
		}
	}
}

func TestTheLowestLevelIsTheOneThatHoldsTheCountZero(t *testing.T) {
	levels := original()
	slices.Reverse(levels)
	p, err := policy.New(levels)
	if err != nil {
		t.Fatal(err)
	}
	if l := p.Lowest(); l.Min != 0 || l.Name != target(p, 0) {
		t.Errorf("%+v", l)
	}
}

func TestAPolicyIsACopy(t *testing.T) {
	ls := original()
	p, err := policy.New(ls)
	if err != nil {
		t.Fatal(err)
	}
	ls[0].Name = "changed"
	if target(p, 0) != "bronze" {
		t.Error("it changes with the slice it was made of")
	}
}

func TestAWrongPolicyIsRefusedWithEveryProblem(t *testing.T) {
	with := func(change func(ls []policy.Level) []policy.Level) []policy.Level { return change(original()) }
	for _, c := range []struct {
		name   string
		levels []policy.Level
		want   []string
	}{
		{"no levels", nil, []string{"no levels"}},
		{"does not start at 0", with(func(ls []policy.Level) []policy.Level { ls[0].Min = 1; return ls }), []string{"must start at 0, not 1"}},
		{"starts below 0", with(func(ls []policy.Level) []policy.Level { ls[0].Min = -5; return ls }), []string{"lowest count -5 is negative", "must start at 0, not -5"}},
		{"no top", with(func(ls []policy.Level) []policy.Level { ls[2].Max = 5000; return ls }), []string{`"gold": the top level must have no upper end`}},
		{"two tops", with(func(ls []policy.Level) []policy.Level { ls[1].Max = policy.Open; return ls }), []string{`"gold": overlaps with "silver", which has no upper end`}},
		{"a gap", with(func(ls []policy.Level) []policy.Level { ls[1].Min = 1005; return ls }), []string{`counts 1000 to 1004 belong to no level`}},
		{"an overlap", with(func(ls []policy.Level) []policy.Level { ls[1].Min = 999; return ls }), []string{`"silver": overlaps with "bronze" at 999`}},
		{"two at 0", with(func(ls []policy.Level) []policy.Level { ls[1].Min = 0; return ls }), []string{`overlaps with "bronze" at 0`}},
		{"upside down", with(func(ls []policy.Level) []policy.Level { ls[1].Max = 10; return ls }), []string{`its highest count 10 is below its lowest 1000`, "11 to 1999"}},
		{"a name twice", with(func(ls []policy.Level) []policy.Level { ls[1].Name = "gold"; return ls }), []string{`"gold": the name is there twice`}},
		{"a path twice", with(func(ls []policy.Level) []policy.Level { ls[1].Path = ls[0].Path; return ls }), []string{"one path lies within the other"}},
		{"a path within another", with(func(ls []policy.Level) []policy.Level { ls[0].Path = "/srv/tierflow"; return ls }), []string{`levels "bronze" and "silver"`, `levels "bronze" and "gold"`}},
		{"a path above another", with(func(ls []policy.Level) []policy.Level { ls[2].Path = "/srv/tierflow"; return ls }), []string{`levels "bronze" and "gold"`, `levels "silver" and "gold"`}},
		{"everything at once", []policy.Level{level("-", 5, 3, "srv"), level("a b", 3, 2, "/x/")}, []string{
			`level "-": a name has`, `level "a b": a name has`, `path "srv"`, `path "/x/"`, "highest count 3 is below its lowest 5",
			"highest count 2 is below its lowest 3", "must start at 0, not 3", "counts 3 to 4 belong", `"-": the top level`,
		}},
	} {
		t.Run(c.name, func(t *testing.T) { wantRefused(t, c.levels, c.want) })
	}
}

// wantRefused checks that the error names exactly these problems, one a line.
func wantRefused(t *testing.T, levels []policy.Level, want []string) {
	t.Helper()
	p, err := policy.New(levels)
	if err == nil {
		t.Fatalf("taken: %+v", p)
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the error does not say %q:\n%v", w, err)
		}
	}
	if n := len(strings.Split(err.Error(), "\n")); n != len(want) {
		t.Errorf("%d problems, not %d:\n%v", n, len(want), err)
	}
}

func TestNamesAndPathsOfLevels(t *testing.T) {
	for name, ok := range map[string]bool{
		"a": true, "Gold-2_x.y": true, "9": true, strings.Repeat("x", 64): true,
		"": false, "-a": false, ".a": false, "_a": false, "a b": false, "a/b": false, "a\"": false, `a\`: false, "é": false, "a,": false, "..": false,
		strings.Repeat("x", 65): false, "a\n": false,
	} {
		if _, err := policy.New([]policy.Level{level(name, 0, policy.Open, "/a")}); (err == nil) != ok {
			t.Errorf("name %q: %v", name, err)
		}
	}
	for path, ok := range map[string]bool{
		"/a": true, "/srv/tierflow/bronze": true, "/a b/é": true, "/..a": true,
		"": false, "/": false, "a": false, "./a": false, "/a/": false, "/a//b": false, "/a/../b": false, "/a/.": false, "/a\x00b": false,
	} {
		if _, err := policy.New([]policy.Level{level("a", 0, policy.Open, path)}); (err == nil) != ok {
			t.Errorf("path %q: %v", path, err)
		}
	}
	if _, err := policy.New([]policy.Level{level("a", 0, 9, "/srv/a"), level("b", 10, policy.Open, "/srv/ab")}); err != nil {
		t.Errorf("two paths of which one only begins like the other: %v", err)
	}
}
