// Command tally reads the output of `go test -json` and prints the result of each package when it ends and the whole
// output of failed tests. At the end it prints how many tests passed and failed. Subtests count as tests. A package that
// fails without a failed test (it does not compile, it panics) counts as one failure.
//
//	go test -json ./... | tally [FILE]
//
// It appends the counts to FILE as a line "passed failed". The exit code is 1 if something failed or no test ran.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/tierflow/tierflow/shared/process"
)

func main() {
	const usage = "usage: go test -json ./... | tally [FILE]"
	switch {
	case len(os.Args) == 2 && (os.Args[1] == "-h" || os.Args[1] == "--help"):
		fmt.Println(usage)
		return
	case len(os.Args) > 2 || len(os.Args) == 2 && strings.HasPrefix(os.Args[1], "-"):
		fmt.Fprintf(os.Stderr, "tally: unknown arguments %q\n%s\n", os.Args[1:], usage)
		os.Exit(process.Settings)
	}
	t, err := read(os.Stdin, os.Stdout)
	if err == nil && len(os.Args) > 1 {
		err = t.append(os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "tally:", err)
		os.Exit(process.Failed)
	}
	fmt.Println(t)
	if t.failed > 0 || t.passed == 0 {
		os.Exit(process.Failed)
	}
}

// event is a line of `go test -json`; see `go doc test2json` and, for the build's events, `go help buildjson`.
type event struct {
	Action      string
	Package     string
	ImportPath  string // of a build event, in place of Package
	Test        string // "" if the event is about the package
	Elapsed     float64
	Output      string
	FailedBuild string
}

// tally has the counts.
type tally struct{ passed, failed, skipped int }

func (t tally) String() string {
	s := fmt.Sprintf("%d passed, %d failed", t.passed, t.failed)
	if t.skipped > 0 {
		s += fmt.Sprintf(", %d skipped", t.skipped)
	}
	return s
}

func (t tally) append(file string) error {
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, t.passed, t.failed)
	return errors.Join(err, f.Close())
}

// read counts events until in ends. It prints lines that are not JSON, which go writes before it starts, unchanged.
func read(in io.Reader, out io.Writer) (tally, error) {
	var t tally
	output := map[string][]string{} // by package, or package and test; dropped on success
	failedIn := map[string]int{}    // by package
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) != nil {
				fmt.Fprint(out, line)
			} else {
				t.add(e, output, failedIn, out)
			}
		}
		if err == io.EOF {
			return t, nil
		}
		if err != nil {
			return t, err
		}
	}
}

func (t *tally) add(e event, output map[string][]string, failedIn map[string]int, out io.Writer) {
	key := e.Package + e.ImportPath + " " + e.Test
	show := func(key string) {
		for _, s := range output[key] {
			fmt.Fprint(out, s)
		}
	}
	switch e.Action {
	case "output", "build-output":
		output[key] = append(output[key], e.Output)
		return
	case "build-fail":
		show(key)
	case "pass", "fail", "skip":
		if e.Test == "" {
			t.endPackage(e, output, failedIn[e.Package], out)
			break
		}
		switch e.Action {
		case "pass":
			t.passed++
		case "skip":
			t.skipped++
			show(key)
		case "fail":
			t.failed++
			failedIn[e.Package]++
			show(key)
		}
	default:
		return // start, run, pause, cont
	}
	delete(output, key)
}

func (t *tally) endPackage(e event, output map[string][]string, failures int, out io.Writer) {
	said := output[e.Package+" "]
	if e.Action == "fail" && failures == 0 {
		t.failed++
		// A test that did not end, because of a panic or a timeout, has the reason in its output.
		for _, key := range slices.Sorted(maps.Keys(output)) {
			if strings.HasPrefix(key, e.Package+" ") && key != e.Package+" " {
				said = slices.Concat(output[key], said)
			}
		}
		for _, s := range said {
			fmt.Fprint(out, s)
		}
		return
	}
	// Of a package's own output tally uses only the result, such as "ok  	path	1.2s" or "FAIL	path	1.2s".
	at := slices.IndexFunc(said, func(s string) bool { return strings.HasPrefix(s, "ok ") || strings.HasPrefix(s, "FAIL\t") })
	if at >= 0 {
		fmt.Fprint(out, said[at])
	}
}
