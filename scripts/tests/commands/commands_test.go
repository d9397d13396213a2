// Package commands_test checks what every script and program under scripts and .ci does with arguments.
package commands_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
)

// scripts returns all executable files in scripts and .ci.
func scripts(t *testing.T, root string) (all []string) {
	t.Helper()
	for _, dir := range []string{"scripts", ".ci"} {
		entries, err := os.ReadDir(filepath.Join(root, dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			info, err := e.Info()
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
				all = append(all, filepath.Join(root, dir, e.Name()))
			}
		}
	}
	return all
}

// programs builds the programs that the scripts start.
func programs(t *testing.T, root string) (all []string) {
	t.Helper()
	cache, err := stack.DefaultCache(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, o := range []stack.BuildOptions{
		{Packages: []string{"./scripts/benchmarks/baseline", "./scripts/benchmarks/bench", "./scripts/cmd/quickstart",
			"./scripts/testenv/servers", "./scripts/testenv/tally"}},
		{Packages: []string{"."}, Module: "scripts/embedded"},
	} {
		o.Root, o.Cache, o.Dir = root, cache, dir
		if err := stack.Build(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	all, err = filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(all) != 6 {
		t.Fatalf("the programs are %q: %v", all, err)
	}
	return all
}

func TestEveryCommandRefusesAnUnknownArgument(t *testing.T) {
	for _, command := range commands(t) {
		for _, argument := range []string{"--nonsense", "--down"} {
			out, code := runCommand(t, command, argument)
			if code != 2 || !strings.Contains(out, strings.TrimLeft(argument, "-")) {
				t.Errorf("%s %s: exit code %d, want 2 and an error that names the argument:\n%s", filepath.Base(command), argument, code, out)
			}
		}
	}
}

func TestEveryCommandHasHelp(t *testing.T) {
	for _, command := range commands(t) {
		out, code := runCommand(t, command, "--help")
		if code != 0 || !strings.Contains(out, filepath.Base(command)) {
			t.Errorf("%s --help: exit code %d, want 0 and how to call it:\n%s", filepath.Base(command), code, out)
		}
	}
}

func commands(t *testing.T) []string {
	t.Helper()
	root, err := stack.Root()
	if err != nil {
		t.Fatal(err)
	}
	// scripts/bench installs what it compares with before its program reads the arguments.
	all := slices.DeleteFunc(scripts(t, root), func(path string) bool { return filepath.Base(path) == "bench" })
	return append(all, programs(t, root)...)
}

// runCommand returns what the command wrote, and its exit code.
func runCommand(t *testing.T, command string, args ...string) (string, int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), command, args...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}
