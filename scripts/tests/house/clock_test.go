package house_test

import (
	"go/ast"
	"strings"
	"testing"
)

// Durations are differences of two values of time.Now, which have a monotonic reading. The numbers of Unix and its like have none:
// their difference is wrong when the clock of the machine is set.
func TestNoDurationIsMeasuredWithTheWallClock(t *testing.T) {
	for _, p := range packages(t) {
		for file, syntax := range p.syntax(t) {
			ast.Inspect(syntax, func(n ast.Node) bool {
				method, ok := n.(*ast.SelectorExpr)
				if !ok || !strings.HasPrefix(method.Sel.Name, "Unix") {
					return true
				}
				if call, ok := method.X.(*ast.CallExpr); ok && isTimeNow(call.Fun) && !strings.HasPrefix(file, "scripts/") {
					t.Errorf("%s: time.Now().%s: subtract two times of time.Now instead", file, method.Sel.Name)
				}
				return true
			})
		}
	}
}

func isTimeNow(e ast.Expr) bool {
	now, ok := e.(*ast.SelectorExpr)
	if !ok || now.Sel.Name != "Now" {
		return false
	}
	pkg, ok := now.X.(*ast.Ident)
	return ok && pkg.Name == "time"
}
