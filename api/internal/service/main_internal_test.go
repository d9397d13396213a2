package service

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tierflow/tierflow/api/internal/apikeys"
)

func TestNewKeyPrintsTheKeyAndItsLineOrAppendsTheLine(t *testing.T) {
	var out bytes.Buffer
	if err := (newKey{Name: "player", Scopes: "views,read"}).run(&out); err != nil {
		t.Fatal(err)
	}
	secret, line, _ := strings.Cut(strings.TrimSuffix(out.String(), "\n"), "\n")
	if ks, err := apikeys.Parse([]byte(line)); err != nil || len(ks) != 1 || ks[0].Name != "player" || ks[0].Scopes != apikeys.Views|apikeys.Read || strings.Contains(line, secret) {
		t.Fatalf("%q: %v", out.String(), err)
	}

	file := filepath.Join(t.TempDir(), "keys")
	out.Reset()
	if err := (newKey{Name: "player", Scopes: "views", File: file}).run(&out); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(out.String(), "tierflow_") || strings.Count(out.String(), "\n") != 1 {
		t.Fatalf("%q is not a key alone", out.String())
	}
	f, err := apikeys.Open(file)
	if err != nil || len(f.Keys()) != 1 {
		t.Fatal(err)
	}
	before, _ := os.ReadFile(file)
	for what, wrong := range map[string]newKey{
		"a scope that is none": {Name: "x", Scopes: "views,root", File: file}, "no name": {Name: "", Scopes: "views", File: file},
		"a name that is taken": {Name: "player", Scopes: "views", File: file}, "no scope": {Name: "x", File: file},
	} {
		out.Reset()
		if err := wrong.run(&out); err == nil || out.Len() > 0 {
			t.Errorf("%s: %q %v", what, out.String(), err)
		}
	}
	if after, _ := os.ReadFile(file); !bytes.Equal(before, after) {
		t.Errorf("the file was %q and is %q", before, after)
	}
}
