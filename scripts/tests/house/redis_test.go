package house_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"slices"
	"strings"
	"testing"
)

const goRedis = "github.com/redis/go-redis/v9"

// Only few packages send commands to Redis, so a change of a key concerns only them. Other packages may hold a connection
// and pass it on. For that they may name one type of go-redis.
func TestOnlyThesePackagesSendCommandsToRedis(t *testing.T) {
	senders := []string{"shared/state", "shared/stream", "shared/assignment"}
	holders := map[string]string{ // the beginning of a path, and why that code needs the connection
		"api/internal/service":       "connects and makes the stores",
		"committer/internal/service": "connects and makes the store",
		"committer/internal/commit":  "passes the connection to stream.New",
		"relocator/internal/service": "connects and makes the store",
		forTests:                     "looks at the product from outside",
		"scripts":                    "benchmarks and checks look at the product from outside",
		"shared/testenv":             "starts servers for tests",
	}
	imports := 0
	for _, p := range packages(t) {
		if slices.Contains(senders, p.path()) || !slices.Contains(p.Imports, goRedis) {
			continue
		}
		imports++
		holds := func(path string) bool { return strings.HasPrefix(p.path()+"/", path+"/") }
		if !slices.ContainsFunc(slices.Collect(maps.Keys(holders)), holds) {
			t.Errorf("%s imports go-redis: ask a method of state.Store, or add one", p.path())
		}
		if holds(forTests) || holds("scripts") || holds("shared/testenv") {
			continue
		}
		for file, syntax := range p.syntax(t) {
			for _, name := range redisNames(syntax) {
				if name != "UniversalClient" {
					t.Errorf("%s uses redis.%s: ask a method of state.Store, or add one", file, name)
				}
			}
		}
	}
	if imports < 4 {
		t.Fatalf("only %d packages import go-redis: is the check right?", imports)
	}
}

// redisNames returns the exported names of go-redis that a file uses.
func redisNames(f *ast.File) (names []string) {
	local := ""
	for _, i := range f.Imports {
		if strings.Trim(i.Path.Value, `"`) == goRedis {
			local = "redis"
			if i.Name != nil {
				local = i.Name.Name
			}
		}
	}
	if local == "" {
		return nil
	}
	ast.Inspect(f, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := s.X.(*ast.Ident); ok && x.Name == local {
				names = append(names, s.Sel.Name)
			}
		}
		return true
	})
	return names
}

func TestTheCheckForRedisFindsCommands(t *testing.T) {
	const file = "package x\nimport r \"" + goRedis + "\"\nvar c r.UniversalClient\nvar s = r.NewScript(``)"
	f, err := parser.ParseFile(token.NewFileSet(), "x.go", file, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	if names := redisNames(f); !slices.Equal(names, []string{"UniversalClient", "NewScript"}) {
		t.Errorf("%q", names)
	}
}
