package service

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestImportPrintsWhatItRefusesAndSaysHowManyItHasRegistered(t *testing.T) {
	cat, root := environment(t)
	migrate(t, cat, root)
	if code, _, errs := call(t.Context(), "init-tiers"); code != 0 {
		t.Fatal(errs)
	}
	file := func(name, text string) string {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	file("bronze/a.mp4", "a")
	file("bronze/show/list.m3u8", "b")
	file("bronze/space ", "c")
	good := file("good.csv", "7,a.mp4\n")
	for _, c := range []struct {
		args []string
		code int
		out  string
		errs string
	}{
		{[]string{}, 2, "", "--level"},
		{[]string{"--level", "iron"}, 2, "", `there is no level "iron": there are bronze, silver, gold`},
		{[]string{"--level", "bronze", "--as-unit", "[x"}, 2, "", "syntax error in pattern"},
		{[]string{"--level", "bronze", "--map", good, "--as-unit", "*"}, 2, "", "leave out --as-unit"},
		{[]string{"--level", "bronze", "--map", filepath.Join(root, "none.csv")}, 2, "", "none.csv"},
		{[]string{"--level", "bronze", "--map", good, "--dry-run"}, 0, "would-register\t7\t\"a.mp4\"\t0 bytes\n", "would register 1 items"},
		{[]string{"--level", "bronze", "--map", good}, 0, "", "registered 1 items"},
		{[]string{"--level", "bronze", "--as-unit", "*.m3u8"}, 1, "refused\t-\t\"space \"\tfilename ends with a space, which SQL comparisons ignore\n",
			"registered 1 items of 1 bytes on bronze; 1 names had a row already, 1 were refused"},
		{[]string{"--level", "silver"}, 0, "", "registered 0 items"},
	} {
		code, out, errs := call(t.Context(), append([]string{"import"}, c.args...)...)
		if code != c.code || out != c.out || !strings.Contains(errs, c.errs) {
			t.Errorf("import %q: exit code %d, %q, %q", c.args, code, out, errs)
		}
	}
}
