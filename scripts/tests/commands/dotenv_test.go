package commands_test

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
)

// dotenvFiles are files of settings, and how ./scripts/up reads them. The tests of docker-compose.yml compare the values with
// those of Compose.
func dotenvFiles(t *testing.T) (all []struct {
	What        string
	File        string
	Environment map[string]string
	Values      map[string]string
	Refused     string // what the error says, where the file is refused
}) {
	t.Helper()
	b, err := os.ReadFile("testdata/dotenv.json")
	if err == nil {
		err = json.Unmarshal(b, &all)
	}
	if err != nil || len(all) == 0 {
		t.Fatalf("%d files: %v", len(all), err)
	}
	return all
}

// bare is the environment without settings.
func bare() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "STACK_") || strings.HasPrefix(v, "TIERFLOW_") || strings.HasPrefix(v, "COMPOSE_")
	})
}

func TestSettingsAreReadAsTheTableSays(t *testing.T) {
	root, err := stack.Root()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range dotenvFiles(t) {
		t.Run(f.What, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), ".env")
			if err := os.WriteFile(path, []byte(f.File), 0o600); err != nil {
				t.Fatal(err)
			}
			names := slices.Sorted(maps.Keys(f.Values))
			cmd := exec.CommandContext(t.Context(), "bash", append([]string{"-euo", "pipefail", "-c",
				`. "$1"; read_dotenv "$2"; shift 2; for name; do setting "$name"; done`, "up",
				filepath.Join(root, "scripts/lib/dotenv.sh"), path}, names...)...)
			cmd.Env = bare()
			for k, v := range f.Environment {
				cmd.Env = append(cmd.Env, k+"="+v)
			}
			out, err := cmd.CombinedOutput()
			if f.Refused != "" {
				if err == nil || !strings.Contains(string(out), "up: "+path+", "+f.Refused) {
					t.Errorf("%v: %s\nwant %q", err, out, f.Refused)
				}
				return
			}
			want := ""
			for _, name := range names {
				want += f.Values[name] + "\n"
			}
			if err != nil || string(out) != want {
				t.Errorf("%v: %q, want %q", err, out, want)
			}
		})
	}
}

// clone makes a folder with ./scripts/up and this .env. Its docker has Compose and nothing else.
func clone(t *testing.T, env string) (dir string, up *exec.Cmd) {
	t.Helper()
	root, err := stack.Root()
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	write := func(name string, text []byte, mode os.FileMode) {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, text, mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"scripts/up", "scripts/lib/arguments.sh", "scripts/lib/dotenv.sh"} {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		write(name, b, 0o755)
	}
	write(".env", []byte(env), 0o600)
	write("compose/redis/users", nil, 0o644)
	write("bin/docker", []byte("#!/bin/sh\n[ \"$*\" = 'compose version' ]\n"), 0o755)
	up = exec.CommandContext(t.Context(), filepath.Join(dir, "scripts/up"))
	up.Env = append(bare(), "PATH="+filepath.Join(dir, "bin")+":"+os.Getenv("PATH"))
	return dir, up
}

func TestUpReadsQuotedSettingsAndWritesItsOwnBesideThem(t *testing.T) {
	dir, up := clone(t, "# mine\nexport STACK_REDIS=\"cluster\" # six nodes\nSTACK_SECRETS = './my secrets'\n export STACK_VERSION = \"old\"\nCOMPOSE_PROFILES='edge' # mine")
	if out, err := up.CombinedOutput(); err == nil {
		t.Fatalf("it went on without an engine: %s", out)
	}
	if _, err := os.Stat(filepath.Join(dir, "my secrets/mysql-root")); err != nil {
		t.Error(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, ".env"))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"# mine", `export STACK_REDIS="cluster" # six nodes`, "COMPOSE_PROFILES=edge,cluster", "TIERFLOW_PARTITIONS=16"} {
		if !slices.Contains(strings.Split(string(b), "\n"), line) {
			t.Errorf("no line %q in %q", line, b)
		}
	}
	if n := strings.Count(string(b), "STACK_VERSION"); n != 1 {
		t.Errorf("%d lines of STACK_VERSION in %q", n, b)
	}
}

func TestUpNamesTheLineThatItCannotReadAndChangesNothing(t *testing.T) {
	const env = "STACK_REDIS=redis\nSTACK_SECRETS=\"./secrets\n\"\n"
	dir, up := clone(t, env)
	out, err := up.CombinedOutput()
	if err == nil || !strings.Contains(string(out), `up: .env, line 2 cannot be read as Compose reads it: end the value with " on this line`) {
		t.Errorf("%v: %s", err, out)
	}
	if b, err := os.ReadFile(filepath.Join(dir, ".env")); err != nil || string(b) != env {
		t.Errorf("%v: %q", err, b)
	}
	if _, err := os.Stat(filepath.Join(dir, "secrets")); err == nil {
		t.Error("secrets were made")
	}
}

func TestUpRefusesAnEnvironmentInWhichComposeReadsOtherSettings(t *testing.T) {
	for _, c := range []struct{ variable, want string }{
		{"COMPOSE_ENV_FILES=other.env", "COMPOSE_ENV_FILES is set"},
		{"COMPOSE_DISABLE_ENV_FILE=1", "COMPOSE_DISABLE_ENV_FILE is set"},
		{"COMPOSE_PROFILES=edge", "COMPOSE_PROFILES of the environment lacks cluster"},
	} {
		_, up := clone(t, "STACK_REDIS=cluster\n")
		up.Env = append(up.Env, c.variable)
		if out, err := up.CombinedOutput(); err == nil || !strings.Contains(string(out), c.want) {
			t.Errorf("%s: %v: %s", c.variable, err, out)
		}
	}
}
