package house_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// One place decides where an item belongs: shared/policy.
func TestOnlyThePolicyComparesACountWithARangeOrAPin(t *testing.T) {
	exempt := []string{
		"shared/policy",
		"scripts/benchmarks/baseline", // the original system, which benchmarks run beside Tierflow
	}
	looked := 0
	for _, p := range packages(t) {
		if slices.Contains(exempt, p.path()) {
			continue
		}
		for file, syntax := range p.syntax(t) {
			looked++
			for _, found := range decisions(syntax) {
				t.Errorf("%s decides by itself (%s): ask policy.Policy.Decide", filepath.Base(file), found)
			}
		}
	}
	if looked < 100 {
		t.Fatalf("only %d files were checked", looked)
	}
}

func TestTheCheckForDecisionsFindsThem(t *testing.T) {
	for code, want := range map[string]bool{
		`x := l.Min <= count && count <= top`: true, `x := count > level.Max`: true, `x := row.MinCounts < n`: true,
		`x := row.Pinned != ""`: true, `x := "" == i.Pin`: true, `x := row.Pinned == target`: true,
		"q := \"SELECT 1 FROM `level` WHERE min_counts <= ?\"":                       true,
		`q := "SELECT 1 FROM level WHERE ? BETWEEN min_counts AND max_counts"`:       true,
		`q := "SELECT cid FROM contents WHERE view_count >= 5"`:                      true,
		`x := was.Pinned != is.Pinned`:                                               false, // has the row changed?
		`x := l.Max != policy.Open`:                                                  false, // how it is shown
		`x := l.Min`:                                                                 false,
		`q := "SELECT min_counts, max_counts FROM level ORDER BY min_counts, level"`: false,
	} {
		f, err := parser.ParseFile(token.NewFileSet(), "x.go", "package x\nfunc f() { "+code+" }", parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		if found := decisions(f); (len(found) > 0) != want {
			t.Errorf("%s: found %q", code, found)
		}
	}
}

var (
	ends         = []string{"Min", "Max", "MinCount", "MaxCount", "MinCounts", "MaxCounts"}
	pins         = []string{"Pin", "Pinned", "PinnedLevel"}
	sqlDecisions = regexp.MustCompile(`(?i)\b(min_counts|max_counts|view_count)\s*[<>]|[<>]=?\s*(min_counts|max_counts|view_count)\b|\bBETWEEN\s+min_counts\b`)
)

// decisions finds comparisons of a range's end by order, of a pin with anything but a pin, and of both in SQL.
func decisions(f *ast.File) (found []string) {
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.BinaryExpr:
			left, right := selected(n.X), selected(n.Y)
			switch n.Op {
			case token.LSS, token.LEQ, token.GTR, token.GEQ:
				if slices.Contains(ends, left) || slices.Contains(ends, right) {
					found = append(found, fmt.Sprintf("%s %s %s", left, n.Op, right))
				}
			case token.EQL, token.NEQ:
				if slices.Contains(pins, left) != slices.Contains(pins, right) {
					found = append(found, fmt.Sprintf("%s %s %s", left, n.Op, right))
				}
			}
		case *ast.BasicLit:
			if n.Kind == token.STRING && sqlDecisions.MatchString(n.Value) {
				found = append(found, strings.TrimSpace(n.Value))
			}
		}
		return true
	})
	return found
}

// selected returns the name of the field that an expression selects, or "" for any other expression.
func selected(e ast.Expr) string {
	if s, ok := e.(*ast.SelectorExpr); ok {
		return s.Sel.Name
	}
	return ""
}
