package house_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"testing"
)

// fault.Kind is a closed list. Code that turns kinds into a status or a dead letter must be able to see all of them.
func TestOnlyFaultDeclaresKinds(t *testing.T) {
	declared := 0
	for _, p := range packages(t) {
		for file, syntax := range p.syntax(t) {
			kinds := declaredKinds(syntax, "fault")
			if p.path() == "shared/fault" {
				declared += len(declaredKinds(syntax, ""))
				continue
			}
			for _, name := range kinds {
				t.Errorf("%s declares the kind %s: kinds belong into shared/fault", file, name)
			}
		}
	}
	if declared < 20 {
		t.Errorf("shared/fault declares only %d kinds: the check does not find them", declared)
	}
}

func TestTheCheckForKindsFindsThem(t *testing.T) {
	for code, want := range map[string][]string{
		`const a fault.Kind = "x"`:                    {"a"},
		`const a = fault.Kind("x")`:                   {"a"},
		"const (\n a = 1\n b, c fault.Kind = k, k\n)": {"b", "c"},
		`var a fault.Kind = "x"`:                      {"a"},
		`const a = "x"`:                               nil,
		`var a = map[fault.Kind]int{}`:                nil,
		`var last fault.Kind`:                         nil, // a variable that holds a kind
	} {
		f, err := parser.ParseFile(token.NewFileSet(), "x.go", "package x\n"+code, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		if got := declaredKinds(f, "fault"); !slices.Equal(got, want) {
			t.Errorf("%s: found %q, want %q", code, got, want)
		}
	}
}

// declaredKinds returns the names that a file declares at its top level, with a value, as a Kind of the package fault. The
// file imports that package under the name pkg, or is part of it where pkg is "".
func declaredKinds(f *ast.File, pkg string) (names []string) {
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST && g.Tok != token.VAR {
			continue
		}
		for _, s := range g.Specs {
			v := s.(*ast.ValueSpec)
			kind := isKind(v.Type, pkg) && len(v.Values) > 0
			for _, value := range v.Values {
				call, ok := value.(*ast.CallExpr)
				kind = kind || ok && isKind(call.Fun, pkg)
			}
			if kind {
				for _, n := range v.Names {
					names = append(names, n.Name)
				}
			}
		}
	}
	return names
}

func isKind(e ast.Expr, pkg string) bool {
	switch e := e.(type) {
	case *ast.SelectorExpr:
		x, ok := e.X.(*ast.Ident)
		return ok && x.Name == pkg && e.Sel.Name == "Kind"
	case *ast.Ident:
		return pkg == "" && e.Name == "Kind"
	}
	return false
}
