package benchmarks

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

var nsPerOp = regexp.MustCompile(`(?m)^Benchmark\S+\s+\d+\s+([0-9.]+) ns/op`)

// goBenchmark runs the benchmark of a package, such as "relocator/internal/mover", with variables added to the
// environment. The benchmark's loop runs n times, and goBenchmark returns the time of one. Go allows only code in the same
// service to import its internal packages, so the benchmark is there.
func (b *Bench) goBenchmark(ctx context.Context, pkg, name string, n int, environ ...string) (time.Duration, error) {
	module, inside, _ := strings.Cut(pkg, "/")
	program := filepath.Join(b.Dir, path.Base(pkg)+".test")
	if _, err := os.Stat(program); errors.Is(err, fs.ErrNotExist) {
		build := exec.CommandContext(ctx, "go", "test", "-c", "-o", program, "./"+inside)
		build.Dir = filepath.Join(b.Root, module)
		if out, err := build.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("go test -c: %w: %s", err, out)
		}
	}
	cmd := exec.CommandContext(ctx, program, "-test.run=^$", "-test.bench=^Benchmark"+name+"$", fmt.Sprintf("-test.benchtime=%dx", n))
	cmd.Dir = filepath.Join(b.Root, pkg)
	cmd.Env = append(b.Environ, environ...)
	out, err := cmd.CombinedOutput()
	found := nsPerOp.FindSubmatch(out)
	if err == nil && found == nil {
		err = errors.New("it says no time")
	}
	if err != nil {
		return 0, fmt.Errorf("Benchmark%s of %s: %w: %s", name, pkg, err, out)
	}
	ns, err := strconv.ParseFloat(string(found[1]), 64)
	return time.Duration(ns), err
}
