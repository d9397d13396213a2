package benchmarks

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
)

// buildPrevious builds the services of the commit that Options.Previous names, and returns the folder of their programs.
func (b *Bench) buildPrevious(ctx context.Context) (string, error) {
	source, programs := filepath.Join(b.Dir, "previous-source"), filepath.Join(b.Dir, "previous-programs")
	for _, dir := range []string{source, programs} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return "", err
		}
	}
	archive := source + ".tar"
	for _, args := range [][]string{
		{"git", "-C", b.Root, "archive", "--output=" + archive, b.Previous},
		{"tar", "-xf", archive, "-C", source},
	} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s: %w: %s", args[0], err, out)
		}
	}
	b.Logf("building api, relocator, committer of commit %s", b.Previous)
	return programs, stack.Build(ctx, stack.BuildOptions{Root: source, Cache: source + "-cache", Dir: programs})
}
