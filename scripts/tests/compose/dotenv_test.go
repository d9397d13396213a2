package compose_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
)

func TestComposeReadsEnvFilesAsTheTableOfUpSays(t *testing.T) {
	root := must[string](t)(stack.Root())
	var files []struct {
		What, File, Refused string
		Environment, Values map[string]string
	}
	ok(t, json.Unmarshal(must[[]byte](t)(os.ReadFile(filepath.Join(root, "scripts/tests/commands/testdata/dotenv.json"))), &files))
	for _, f := range files {
		if f.Refused != "" {
			continue
		}
		t.Run(f.What, func(t *testing.T) {
			dir := t.TempDir()
			ok(t, os.WriteFile(filepath.Join(dir, ".env"), []byte(f.File), 0o600))
			var yaml strings.Builder
			yaml.WriteString("services:\n  s:\n    image: none\n    environment:\n")
			for _, name := range slices.Sorted(maps.Keys(f.Values)) {
				fmt.Fprintf(&yaml, "      %s: ${%s}\n", name, name)
			}
			ok(t, os.WriteFile(filepath.Join(dir, "compose.yml"), []byte(yaml.String()), 0o600))
			env := []string{"COMPOSE_FILE=" + filepath.Join(dir, "compose.yml")}
			for k, v := range f.Environment {
				env = append(env, k+"="+v)
			}
			out := must[string](t)(w.commandWith(env, "docker", "compose", "--project-directory", dir, "config", "--format", "json", "--output", filepath.Join(dir, "out")))
			var config struct {
				Services map[string]struct{ Environment map[string]string }
			}
			if err := json.Unmarshal(must[[]byte](t)(os.ReadFile(filepath.Join(dir, "out"))), &config); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			for name, want := range f.Values {
				// config writes $$ for a dollar sign, so that its output can be read again.
				if got := strings.ReplaceAll(config.Services["s"].Environment[name], "$$", "$"); got != want {
					t.Errorf("%s is %q for Compose, and %q for ./scripts/up", name, got, want)
				}
			}
		})
	}
}
