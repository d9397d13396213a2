package house_test

import (
	"go/ast"
	"strings"
	"testing"
)

// A loop that logs a failure itself logs each of its tries, or forgets to say that it is over. Package outage does neither.
func TestNoLoopLogsItsFailuresItself(t *testing.T) {
	for _, p := range packages(t) {
		for file, syntax := range p.syntax(t) {
			if strings.HasPrefix(file, "scripts/") || strings.HasSuffix(file, "_test.go") {
				continue
			}
			ast.Inspect(syntax, func(n ast.Node) bool {
				loop, ok := n.(*ast.ForStmt)
				if !ok {
					return true
				}
				ast.Inspect(loop.Body, func(n ast.Node) bool {
					if call, ok := n.(*ast.CallExpr); ok && logsFailure(call) {
						t.Errorf("%s: a loop logs %s itself: use package outage", file, call.Args[0].(*ast.BasicLit).Value)
					}
					return true
				})
				return false
			})
		}
	}
}

// logsFailure reports whether a call is one of a logger with a message, at a level that people look at.
func logsFailure(call *ast.CallExpr) bool {
	method, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || method.Sel.Name != "Warn" && method.Sel.Name != "Error" || len(call.Args) < 2 {
		return false
	}
	_, message := call.Args[0].(*ast.BasicLit)
	return message
}
