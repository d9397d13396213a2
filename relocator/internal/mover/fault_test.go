package mover_test

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/shared/fault"
)

// TestAFailedOperationOfAMoveLosesNothingAndShowsNothingPartial fails every single operation of a move in turn: once that
// operation alone, and once all operations from it on, as when the disk or the process dies.
func TestAFailedOperationOfAMoveLosesNothingAndShowsNothingPartial(t *testing.T) {
	// Both file systems are in memory: there are thousands of fsyncs, which cost nothing there.
	other := mount(t, "-t", "tmpfs", "-o", "size=256m", "none")
	elsewhere := func(t testing.TB) string {
		dir, err := os.MkdirTemp(other, "")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		return dir
	}
	for _, r := range []route{
		{"on one file system", inMemory, nil, mover.Linked},
		{"across file systems", inMemory, elsewhere, mover.Copied},
	} {
		for _, kind := range []string{"file", "directory"} {
			for _, dies := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, %s, for good %v", kind, r.name, dies), func(t *testing.T) {
					steps := map[fsys.Step]bool{}
					for n := 0; breakOperation(t, r, kind, n, dies, steps); n++ {
						if t.Failed() {
							return
						}
					}
					if len(steps) < 14 {
						t.Errorf("only %d steps were broken: %v", len(steps), steps)
					}
				})
			}
		}
	}
}

// breakOperation moves a file or directory while the n-th operation fails. false: the move has fewer operations.
func breakOperation(t *testing.T, r route, kind string, n int, dies bool, steps map[fsys.Step]bool) bool {
	from, to := r.tiers(t)
	const name = "a/b/x"
	if kind == "file" {
		write(t, from.Path+"/"+name, random(5000))
	} else {
		write(t, from.Path+"/"+name+"/sub/1", random(10))
		write(t, from.Path+"/"+name+"/2", random(5000))
	}
	// The move must clear what a releaser has left.
	write(t, to.Path+"/.tierflow/released/7.old/copy", nil)
	source := tree(t, from.Path)
	count, broken := 0, fsys.Step("")
	m := mover.New(mover.Options{FS: fsys.FS{Hook: func(s fsys.Step, _ string) error {
		count++
		if count-1 == n || dies && count-1 > n {
			if broken == "" {
				broken = s
				steps[s] = true
			}
			return unix.EIO
		}
		return nil
	}}})
	made, err := m.Make(context.Background(), request(from, to, name))
	if broken == "" {
		if err != nil {
			t.Fatal(err)
		}
		return false
	}
	what := fmt.Sprintf("operation %d, %s, failed", n, broken)
	equalTrees(t, what+": source", tree(t, from.Path), source)
	seen := tree(t, to.Path+"/"+name)
	if len(seen) > 0 {
		equalTrees(t, what+": target", seen, tree(t, from.Path+"/"+name))
		if made == nil {
			t.Errorf("%s: the copy is visible and was not reported: %v", what, err)
		}
	}
	if err == nil && (made == nil || len(seen) == 0) {
		t.Errorf("%s: the move succeeded without a copy", what)
	}
	if err != nil && !fault.Is(err, fault.Suspect) {
		t.Errorf("%s: %q: %v", what, fault.KindOf(err), err)
	}
	records := 0
	for _, left := range scratch(t, to) {
		if strings.HasPrefix(left, "tmp/") {
			records++
		}
	}
	if len(seen) > 0 && records == 0 {
		t.Errorf("%s: the copy is visible and not recorded", what)
	}
	if made == nil && records > 0 && !dies && broken != fsys.RemoveTemp {
		t.Errorf("%s: the temporary was left", what)
	}
	sound := mover.New(mover.Options{})
	mustMake(t, sound, request(from, to, name))
	equalTrees(t, what+": target", tree(t, to.Path+"/"+name), tree(t, from.Path+"/"+name))
	sweepAll(t, sound, to)
	wantClean(t, from, to)
	if err := errors.Join(os.RemoveAll(from.Path), os.RemoveAll(to.Path)); err != nil {
		t.Fatal(err)
	}
	return true
}

func TestAFailedDiscardLeavesTheRecordForTheSweep(t *testing.T) {
	from, to := routes[0].tiers(t)
	write(t, from.Path+"/x", []byte("x"))
	made, err := mover.New(mover.Options{FS: failing(fsys.RemoveTemp, unix.EIO)}).Make(context.Background(), request(from, to, "x"))
	if err != nil {
		t.Fatal(err)
	}
	wantKind(t, made.Discard(), fault.Suspect)
	if report := sweepAll(t, mover.New(mover.Options{}), to); report.Temporaries != 1 {
		t.Errorf("report %+v", report)
	}
}

// TestTheStepTableNamesEveryStep compares the constants of package fsys with the package comment of mover.
func TestTheStepTableNamesEveryStep(t *testing.T) {
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	f, err := parser.ParseFile(gotoken.NewFileSet(), "../fsys/step.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	ast.Inspect(f, func(node ast.Node) bool {
		lit, ok := node.(*ast.BasicLit)
		if !ok || lit.Kind != gotoken.STRING {
			return true
		}
		step := strings.Trim(lit.Value, `"`)
		elsewhere := strings.Contains(step, "tier") && step != "recheck-tier" || strings.Contains(step, "identity") ||
			strings.HasPrefix(step, "probe-") || step == "read-digest"
		if !elsewhere {
			n++
			if !strings.Contains(string(doc), "//\t"+step+" ") {
				t.Errorf("doc.go does not have the step %s", step)
			}
		}
		return true
	})
	if n < 30 {
		t.Errorf("found %d steps", n)
	}
}

func TestKernelErrorsGetTheirKind(t *testing.T) {
	for err, kind := range map[error]fault.Kind{
		unix.EIO: fault.Suspect, unix.EROFS: fault.Suspect, unix.EUCLEAN: fault.Suspect,
		unix.ENOSPC: fault.NoSpace, unix.EDQUOT: fault.NoSpace,
		unix.EACCES: fault.Suspect, errors.New("odd"): fault.Internal,
	} {
		from, to := routes[1].tiers(t)
		write(t, from.Path+"/x", []byte("x"))
		_, got := mover.New(mover.Options{FS: failing(fsys.WriteTemp, err)}).Make(context.Background(), request(from, to, "x"))
		wantKind(t, got, kind, "7 (x) from bronze to gold", "write-temp")
		var e *fault.Error
		if kind != fault.Internal && (!errors.As(got, &e) || e.Level != "gold") {
			t.Errorf("%v: the error names level %q", err, e.Level)
		}
		if !errors.Is(got, err) {
			t.Errorf("%v does not wrap %v", got, err)
		}
	}
}
