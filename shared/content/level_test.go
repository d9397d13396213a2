package content_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/tierflow/tierflow/shared/content"
)

func level(name string, least, most content.Count, path string) content.Level {
	return content.Level{Name: name, Min: least, Max: most, Path: path}
}

// original are the levels of the first rows.
func original() []content.Level {
	return []content.Level{
		level("bronze", 0, 999, "/srv/tierflow/bronze"), level("silver", 1000, 1999, "/srv/tierflow/silver"),
		level("gold", 2000, content.Open, "/srv/tierflow/gold"),
	}
}

func TestTheTargetIsTheLevelThatHoldsTheCount(t *testing.T) {
	p, err := content.NewPolicy(original())
	if err != nil {
		t.Fatal(err)
	}
	for count, want := range map[content.Count]string{
		0: "bronze", 1: "bronze", 998: "bronze", 999: "bronze", 1000: "silver", 1001: "silver", 1999: "silver", 2000: "gold", 2001: "gold",
		math.MaxInt64 - 1: "gold", math.MaxInt64: "gold", -1: "bronze", math.MinInt64: "bronze",
	} {
		if got := p.Target(count).Name; got != want {
			t.Errorf("%d belongs to %s, not %s", count, got, want)
		}
	}
}

func TestAnyPolicyGivesEveryCountTheOneLevelThatHoldsIt(t *testing.T) {
	for range 200 {
		bounds := []content.Count{0}
		for range rand.N(8) {
			bounds = append(bounds, content.Count(rand.Int64N(1<<rand.N(62)+1)))
		}
		slices.Sort(bounds)
		bounds = slices.Compact(bounds)
		var ls []content.Level
		for i, b := range bounds {
			most := content.Open
			if i+1 < len(bounds) {
				most = bounds[i+1] - 1
			}
			name := string(rune('a' + i))
			ls = append(ls, level(name, b, most, "/"+name))
		}
		shuffled := slices.Clone(ls)
		rand.Shuffle(len(ls), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		p, err := content.NewPolicy(shuffled)
		if err != nil {
			t.Fatalf("%v: %v", ls, err)
		}
		if !slices.Equal(p.Levels(), ls) {
			t.Fatalf("levels %v, not %v", p.Levels(), ls)
		}
		for _, b := range bounds {
			for _, c := range []content.Count{b - 1, b, b + 1, content.Count(rand.Int64())} {
				if c < 0 {
					continue
				}
				if l := p.Target(c); c < l.Min || c > l.Max {
					t.Fatalf("%d is given to %+v", c, l)
				}
			}
		}
	}
}

func TestOneLevelIsEnough(t *testing.T) {
	p, err := content.NewPolicy([]content.Level{level("only", 0, content.Open, "/a")})
	if err != nil {
		t.Fatal(err)
	}
	if p.Target(0).Name != "only" || p.Target(math.MaxInt64).Name != "only" {
		t.Error("a count has no level")
	}
}

func TestALevelIsFoundByName(t *testing.T) {
	p, err := content.NewPolicy(original())
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

func TestAPolicyIsACopy(t *testing.T) {
	ls := original()
	p, err := content.NewPolicy(ls)
	if err != nil {
		t.Fatal(err)
	}
	ls[0].Name = "changed"
	if p.Target(0).Name != "bronze" {
		t.Error("it changes with the slice it was made of")
	}
}

func TestAWrongPolicyIsRefusedWithEveryProblem(t *testing.T) {
	with := func(change func(ls []content.Level) []content.Level) []content.Level { return change(original()) }
	for _, c := range []struct {
		name   string
		levels []content.Level
		want   []string
	}{
		{"no levels", nil, []string{"no levels"}},
		{"does not start at 0", with(func(ls []content.Level) []content.Level { ls[0].Min = 1; return ls }), []string{"must start at 0, not 1"}},
		{"starts below 0", with(func(ls []content.Level) []content.Level { ls[0].Min = -5; return ls }), []string{"must start at 0, not -5"}},
		{"no top", with(func(ls []content.Level) []content.Level { ls[2].Max = 5000; return ls }), []string{`"gold": the top level must have no upper end`}},
		{"two tops", with(func(ls []content.Level) []content.Level { ls[1].Max = content.Open; return ls }), []string{`"gold": overlaps with "silver", which has no upper end`}},
		{"a gap", with(func(ls []content.Level) []content.Level { ls[1].Min = 1005; return ls }), []string{`counts 1000 to 1004 belong to no level`}},
		{"an overlap", with(func(ls []content.Level) []content.Level { ls[1].Min = 999; return ls }), []string{`"silver": overlaps with "bronze" at 999`}},
		{"two at 0", with(func(ls []content.Level) []content.Level { ls[1].Min = 0; return ls }), []string{`overlaps with "bronze" at 0`}},
		{"upside down", with(func(ls []content.Level) []content.Level { ls[1].Max = 10; return ls }), []string{`its highest count 10 is below its lowest 1000`, "11 to 1999"}},
		{"a name twice", with(func(ls []content.Level) []content.Level { ls[1].Name = "gold"; return ls }), []string{`"gold": the name is there twice`}},
		{"a path twice", with(func(ls []content.Level) []content.Level { ls[1].Path = ls[0].Path; return ls }), []string{"one path lies within the other"}},
		{"a path within another", with(func(ls []content.Level) []content.Level { ls[0].Path = "/srv/tierflow"; return ls }), []string{`levels "bronze" and "silver"`, `levels "bronze" and "gold"`}},
		{"a path above another", with(func(ls []content.Level) []content.Level { ls[2].Path = "/srv/tierflow"; return ls }), []string{`levels "bronze" and "gold"`, `levels "silver" and "gold"`}},
		{"everything at once", []content.Level{level("-", 5, 3, "srv"), level("a b", 3, 2, "/x/")}, []string{
			`level "-": a name has`, `level "a b": a name has`, `path "srv"`, `path "/x/"`, "highest count 3 is below its lowest 5",
			"highest count 2 is below its lowest 3", "must start at 0, not 3", "counts 3 to 4 belong", `"-": the top level`,
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := content.NewPolicy(c.levels)
			if err == nil {
				t.Fatalf("taken: %+v", p)
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("the error does not say %q:\n%v", w, err)
				}
			}
			if n := len(strings.Split(err.Error(), "\n")); n != len(c.want) {
				t.Errorf("%d problems, not %d:\n%v", n, len(c.want), err)
			}
		})
	}
}

func TestNamesAndPathsOfLevels(t *testing.T) {
	for name, ok := range map[string]bool{
		"a": true, "Gold-2_x.y": true, "9": true, strings.Repeat("x", 64): true,
		"": false, "-a": false, ".a": false, "_a": false, "a b": false, "a/b": false, "a\"": false, `a\`: false, "é": false, "a,": false, "..": false,
		strings.Repeat("x", 65): false, "a\n": false,
	} {
		if _, err := content.NewPolicy([]content.Level{level(name, 0, content.Open, "/a")}); (err == nil) != ok {
			t.Errorf("name %q: %v", name, err)
		}
	}
	for path, ok := range map[string]bool{
		"/a": true, "/srv/tierflow/bronze": true, "/a b/é": true, "/..a": true,
		"": false, "/": false, "a": false, "./a": false, "/a/": false, "/a//b": false, "/a/../b": false, "/a/.": false, "/a\x00b": false,
	} {
		if _, err := content.NewPolicy([]content.Level{level("a", 0, content.Open, path)}); (err == nil) != ok {
			t.Errorf("path %q: %v", path, err)
		}
	}
	if _, err := content.NewPolicy([]content.Level{level("a", 0, 9, "/srv/a"), level("b", 10, content.Open, "/srv/ab")}); err != nil {
		t.Errorf("two paths of which one only begins like the other: %v", err)
	}
}
