package house_test

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// module is the beginning of the import path of each of our packages.
const module = "github.com/tierflow/tierflow/"

// root returns the folder of go.work.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "go.work")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// goPackage is what `go list -json` says about a package.
type goPackage struct {
	Dir          string
	ImportPath   string
	Name         string
	GoFiles      []string
	Imports      []string
	Deps         []string // Imports and all that they import in turn
	TestImports  []string
	XTestImports []string
}

// path returns the import path without the common beginning, such as shared/state.
func (p goPackage) path() string { return strings.TrimPrefix(p.ImportPath, module) }

var listed = sync.OnceValues(func() ([]byte, error) {
	cmd := exec.Command("go", "list", "-json=Dir,ImportPath,Name,GoFiles,Imports,Deps,TestImports,XTestImports", "work")
	cmd.Dir = "../../.."
	cmd.Env = append(cmd.Environ(), "GOWORK=") // the clone's go.work, also where the tests run with GOWORK=off
	cmd.Stderr = os.Stderr
	return cmd.Output()
})

// packages returns the packages of all modules of go.work.
func packages(t *testing.T) []goPackage {
	t.Helper()
	out, err := listed()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []goPackage
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := d.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 20 {
		t.Fatalf("go list names only %d packages: is this the whole tree?", len(all))
	}
	return all
}

// syntax parses the files of a package that are not tests.
func (p goPackage) syntax(t *testing.T) map[string]*ast.File {
	t.Helper()
	files := map[string]*ast.File{}
	for _, name := range p.GoFiles {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files[p.path()+"/"+name] = f
	}
	return files
}

// textFiles returns the paths, relative to root, of the repository's files for which keep returns true.
func textFiles(t *testing.T, root string, keep func(path string) bool) []string {
	t.Helper()
	var paths []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && slices.Contains([]string{".git", "bin", "testdata"}, name) {
			return fs.SkipDir
		}
		path, err = filepath.Rel(root, path)
		if err == nil && d.Type().IsRegular() && keep(path) {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}
