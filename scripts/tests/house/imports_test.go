package house_test

import (
	"go/ast"
	"path"
	"slices"
	"strings"
	"testing"
)

// rules say what packages may not import. A name that ends with "/..." includes all packages below it; "std" is the
// standard library.
var rules = []struct {
	name   string
	of     []string // packages that the rule is about
	except []string // packages that the rule is not about
	never  []string // these must not be imported
	but    []string // except these, which may be
	deep   bool     // also through other packages
}{
	{name: "a service never imports another service, nor what people start",
		of: []string{"api/..."}, never: []string{"relocator/...", "committer/...", "scripts/..."}},
	{name: "a service never imports another service, nor what people start",
		of: []string{"relocator/..."}, never: []string{"api/...", "committer/...", "scripts/..."}},
	{name: "a service never imports another service, nor what people start",
		of: []string{"committer/..."}, never: []string{"api/...", "relocator/...", "scripts/..."}},
	// api/client is public: a program outside of this repository would use it too. Scripts must not call the code of a
	// service in their own process.
	{name: "scripts run services as processes, and call them by their public client",
		of: []string{"scripts/..."}, never: []string{"api/...", "relocator/...", "committer/..."}, but: []string{"api/client"}},
	{name: "the client of the api is for every program: it pulls in no server and no driver",
		of: []string{"api/client"}, never: []string{"..."}, but: []string{"std", "api/client", "shared/item", "shared/fault"}, deep: true},
	{name: "shared is imported and imports nobody",
		of: []string{"shared/..."}, never: []string{"api/...", "relocator/...", "committer/...", "scripts/..."}},
	{name: "domain values know only the standard library and one another",
		of: []string{"shared/item", "shared/event", "shared/fault", "shared/entryid"}, never: []string{"..."},
		but: []string{"std", "shared/item", "shared/fault", "shared/entryid"}, deep: true},
	{name: "the policy is pure",
		of: []string{"shared/policy"}, never: []string{"..."}, but: []string{"std"}},
	{name: "state knows the domain, Redis, and how calls share a round trip",
		of: []string{"shared/state"}, never: []string{module + "..."},
		but: []string{"shared/batch", "shared/entryid", "shared/item", "shared/event", "shared/fault", "shared/stream"}},
	{name: "batch knows nothing of what it batches",
		of: []string{"shared/batch"}, never: []string{"..."}, but: []string{"std"}},
	{name: "stream knows no domain",
		of: []string{"shared/stream"}, never: []string{module + "..."}, but: []string{"shared/batch", "shared/entryid", "shared/outage"}},
	{name: "these know no domain",
		of:    []string{"shared/admin", "shared/outage", "shared/testenv/child", "shared/testenv/localserver", "shared/logging", "shared/process", "shared/settings"},
		never: []string{"shared/item", "shared/event", "shared/state", "shared/stream", "shared/catalog"}, deep: true},
	{name: "the cores know neither Redis nor HTTP nor logs",
		of:    []string{"relocator/internal/mover", "relocator/internal/tier", "relocator/internal/fsys", "committer/internal/apply"},
		never: []string{"github.com/redis/...", "github.com/labstack/...", "go.uber.org/zap/...", "net/http"}, deep: true},
	{name: "locks, rows and what is known of tiers are no work on tiers",
		of:    []string{"relocator/internal/lease", "relocator/internal/placement", "relocator/internal/reach", "relocator/internal/tierhealth"},
		never: []string{"relocator/internal/mover", "relocator/internal/tier", "relocator/internal/fsys"}, deep: true},
	{name: "the gate counts slots and knows no work",
		of: []string{"relocator/internal/gate"}, never: []string{"..."}, but: []string{"std", "shared/fault"}},
	{name: "an import reads tiers and writes rows: it has no part in the protocol",
		of: []string{"relocator/internal/importer"}, never: []string{"shared/state", "shared/stream", "relocator/internal/relocate", "relocator/internal/release"}},
	{name: "only shared/process handles signals",
		of: []string{module + "..."}, except: []string{"shared/process"}, never: []string{"os/signal"}},
	{name: "real servers for tests are for tests",
		of: []string{module + "..."}, except: []string{forTests},
		never: []string{"shared/testenv/testserver", forTests}},
}

// forTests is set-up code that tests of several packages share. It plays the api and the committer.
const forTests = "relocator/internal/relocatortest"

func TestNobodyImportsWhatTheRulesForbid(t *testing.T) {
	for _, r := range rules {
		concerned := 0
		for _, p := range packages(t) {
			if !matchesAny(p.ImportPath, r.of) || slices.Contains(r.except, p.path()) {
				continue
			}
			concerned++
			imports := p.Imports
			if r.deep {
				imports = p.Deps
			}
			for _, i := range imports {
				if matchesAny(i, r.never) && !matchesAny(i, r.but) {
					t.Errorf("%s imports %s: %s", p.path(), strings.TrimPrefix(i, module), r.name)
				}
			}
		}
		if concerned < len(r.of) {
			t.Errorf("the rule %q is about %v: not all of them exist", r.name, r.of)
		}
	}
}

func matchesAny(importPath string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		if pattern == "std" {
			first, _, _ := strings.Cut(importPath, "/")
			return !strings.Contains(first, ".")
		}
		prefix, all := strings.CutSuffix(pattern, "...")
		if first, _, _ := strings.Cut(prefix, "/"); slices.Contains([]string{"api", "relocator", "committer", "scripts", "shared"}, first) {
			prefix = module + prefix
		}
		if all {
			return strings.HasPrefix(importPath+"/", prefix)
		}
		return importPath == prefix
	})
}

func TestAPackageIsNamedAfterWhatItProvides(t *testing.T) {
	nothing := []string{"base", "common", "helper", "helpers", "lib", "misc", "model", "models", "pkg", "types", "util", "utils"}
	for _, p := range packages(t) {
		if slices.Contains(nothing, p.Name) || slices.Contains(nothing, path.Base(p.ImportPath)) {
			t.Errorf("%s: the name says nothing, so anything would fit in", p.path())
		}
		if p.path() == "shared" {
			t.Error("shared has a package at its root")
		}
	}
}

func TestOnlyMainReadsTheEnvironment(t *testing.T) {
	// settings reads the environment through kong, for main. testserver and testdisk are for tests only.
	may := []string{"shared/settings", "shared/testenv/testserver", "shared/testenv/namespace"}
	readers := []string{"Getenv", "LookupEnv", "Environ", "ExpandEnv"}
	for _, p := range packages(t) {
		for file, syntax := range p.syntax(t) {
			if p.Name == "main" && path.Base(file) == "main.go" || slices.Contains(may, p.path()) {
				continue
			}
			ast.Inspect(syntax, func(n ast.Node) bool {
				s, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				if x, ok := s.X.(*ast.Ident); ok && (x.Name == "os" || x.Name == "syscall") && slices.Contains(readers, s.Sel.Name) {
					t.Errorf("%s reads the environment with %s.%s: only main.go may", file, x.Name, s.Sel.Name)
				}
				return true
			})
		}
	}
}

func TestASharedPackageIsUsedByMoreThanOneProgram(t *testing.T) {
	users := map[string]map[string]bool{} // by shared package: the modules that use it, directly or through others
	for _, p := range packages(t) {
		if strings.HasPrefix(p.path(), "shared/") {
			users[p.path()] = map[string]bool{}
		}
	}
	for _, p := range packages(t) {
		user, _, _ := strings.Cut(p.path(), "/")
		for _, i := range slices.Concat(p.Deps, p.TestImports, p.XTestImports) {
			if by, ok := users[strings.TrimPrefix(i, module)]; ok && user != "shared" {
				by[user] = true
			}
		}
	}
	for name, by := range users {
		if len(by) < 2 && !by["scripts"] { // scripts has several programs
			t.Errorf("%s is used by %v only: it belongs there", name, by)
		}
	}
}
