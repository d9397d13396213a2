// Command bench measures Tierflow against what could be taken instead of it, and prints a table of ratios.
// ./scripts/bench installs what it compares with, builds and starts it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/tierflow/tierflow/scripts/benchmarks"
	"github.com/tierflow/tierflow/shared/process"
	"github.com/tierflow/tierflow/shared/settings"
)

// arguments are the flags, as kong fills them. There are no variables.
type arguments struct {
	Parts  []string `arg:"" optional:"" help:"Parts to run: see above; default: all."`
	Quick  bool     `help:"A short run that shows that everything works: its figures say little."`
	Rounds int      `help:"How often each case is measured. Default: 5, with --quick 1."`
	Dir    string   `type:"existingdir" default:"." help:"A folder on the disk to measure: what is made in it is removed."`
	JSON   string   `name:"json" placeholder:"FILE" help:"Write all values to a file."`
}

func main() {
	var a arguments
	about := "Measures Tierflow against what could be taken instead of it, each pair in turn, checks every result, and prints a table of ratios. Parts:"
	for _, p := range benchmarks.Parts() {
		about += "\n\n  " + p.Name + ": " + p.About
	}
	if _, err := settings.Parse("bench", about, &a, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(process.Settings)
	}
	os.Exit(process.Run(func(ctx context.Context) int {
		if err := run(ctx, a, os.Environ()); err != nil {
			fmt.Fprintf(os.Stderr, "\nbench: %v\n", err)
			return process.Failed
		}
		return process.OK
	}))
}

func run(ctx context.Context, a arguments, environ []string) error {
	o := benchmarks.Options{
		Parts: a.Parts, Quick: a.Quick, Rounds: 5, Dir: a.Dir, Environ: environ, Log: os.Stderr,
	}
	if a.Quick {
		o.Rounds = 1
	}
	if a.Rounds > 0 {
		o.Rounds = a.Rounds
	}
	report, err := benchmarks.Run(ctx, o)
	if report == nil {
		return err
	}
	if err != nil {
		report.Errors = strings.Split(err.Error(), "\n")
	}
	if len(report.Rows) > 0 {
		fmt.Println()
		err = errors.Join(err, report.WriteTable(os.Stdout))
	}
	if a.JSON == "" {
		return err
	}
	b, jerr := json.MarshalIndent(report, "", "  ")
	if jerr == nil {
		jerr = os.WriteFile(a.JSON, append(b, '\n'), 0o644)
	}
	return errors.Join(err, jerr)
}
