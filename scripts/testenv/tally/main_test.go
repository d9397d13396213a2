package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// runTests makes a module of the packages' test files, runs its tests and returns what tally makes of them.
func runTests(t *testing.T, tests map[string]string) (tally, string) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("go.mod", "module m\n\ngo 1.26\n")
	for name, text := range tests {
		write(name+"/x_test.go", "package x\n\nimport (\n\"os\"\n\"testing\"\n\"time\"\n)\n\n"+
			"var _, _, _ = os.Exit, time.Sleep, testing.Short\n\n"+text)
	}
	cmd := exec.Command("go", "test", "-json", "-timeout=5s", "./...")
	cmd.Dir = dir
	cmd.Env = append(cmd.Environ(), "GOWORK=off")
	events, _ := cmd.Output() // it returns an error when a test fails
	var out strings.Builder
	counted, err := read(strings.NewReader(string(events)), &out)
	if err != nil {
		t.Fatal(err)
	}
	return counted, out.String()
}

func TestTheCountsAreThoseOfTheRun(t *testing.T) {
	const (
		good    = `func TestGood(t *testing.T) { t.Log("nobody wants to know"); t.Run("part", func(*testing.T) {}) }`
		bad     = `func TestBad(t *testing.T) { t.Error("this is wrong") }`
		skipped = `func TestSkipped(t *testing.T) { t.Skip("no disk here") }`
	)
	for name, c := range map[string]struct {
		tests map[string]string
		want  tally
		says  string
	}{
		"subtests count":                  {map[string]string{"a": good}, tally{passed: 2}, "ok "},
		"a failure shows its output":      {map[string]string{"a": good + "\n" + bad}, tally{passed: 2, failed: 1}, "this is wrong"},
		"a skip shows its reason":         {map[string]string{"a": skipped}, tally{skipped: 1}, "no disk here"},
		"a build error is one failure":    {map[string]string{"a": good, "b": "nonsense"}, tally{passed: 2, failed: 1}, "found nonsense"},
		"a panic is a failure":            {map[string]string{"a": `func TestP(*testing.T) { panic("ouch") }`}, tally{failed: 1}, "ouch"},
		"a hanging test is a failure":     {map[string]string{"a": `func TestH(*testing.T) { time.Sleep(time.Hour) }`}, tally{failed: 1}, "timed out"},
		"an exit in between is a failure": {map[string]string{"a": "func TestE(*testing.T) { os.Exit(3) }"}, tally{failed: 1}, "FAIL\tm/a"},
		"two packages fail one by one":    {map[string]string{"a": bad, "b": bad}, tally{failed: 2}, "FAIL\tm/b"},
		"no test at all is not a success": {map[string]string{"a": ""}, tally{}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, out := runTests(t, c.tests)
			if got != c.want {
				t.Errorf("counted %+v, want %+v", got, c.want)
			}
			if !strings.Contains(out, c.says) {
				t.Errorf("the output lacks %q:\n%s", c.says, out)
			}
			if strings.Contains(out, "nobody wants to know") {
				t.Errorf("the output has what a successful test said:\n%s", out)
			}
		})
	}
}
