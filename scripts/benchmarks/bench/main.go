// Command bench compares Tierflow with what a user could take instead of it, and prints a table of ratios.
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

// arguments are the flags, as kong fills them. No environment variable sets one.
type arguments struct {
	Parts    []string `arg:"" optional:"" help:"Parts to run: see above; default: all."`
	Quick    bool     `help:"A short run that shows that everything works: its figures say little."`
	Rounds   int      `placeholder:"N" help:"How often each case is measured. Default: 5, with --quick 1."`
	Dir      string   `type:"existingdir" default:"." help:"A folder on the disk to measure: what is made in it is removed."`
	JSON     string   `name:"json" placeholder:"FILE" help:"Write all values to a file."`
	Plots    string   `name:"plots" type:"existingdir" placeholder:"FOLDER" help:"Write plots over time into a folder, as SVG."`
	Previous string   `name:"previous" placeholder:"COMMIT" help:"A commit of this clone: ingest measures its services as well."`
}

func main() {
	var a arguments
	about := "Measures Tierflow against what could be taken instead of it, each pair in turn, checks every result, and prints a table of ratios. Parts:"
	for _, p := range benchmarks.Parts() {
		about += "\n\n  " + p.Name + ": " + p.About
	}
	_, err := settings.Parse("bench", about, &a, os.Args[1:])
	var o benchmarks.Options
	var file *os.File
	if err == nil {
		o, file, err = a.options()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(process.Settings)
	}
	os.Exit(process.Run(func(ctx context.Context) int {
		if err := run(ctx, o, file, a.Plots); err != nil {
			fmt.Fprintf(os.Stderr, "\nbench: %v\n", err)
			return process.Failed
		}
		return process.OK
	}))
}

// options returns what the flags mean, and the file for the JSON, nil for none. It checks all flags before anything is
// measured.
func (a arguments) options() (benchmarks.Options, *os.File, error) {
	parts, err := benchmarks.Choose(a.Parts)
	if a.Rounds < 0 {
		err = errors.Join(err, fmt.Errorf("--rounds must be at least 1, not %d", a.Rounds))
	}
	rounds := 5
	if a.Quick {
		rounds = 1
	}
	if a.Rounds > 0 {
		rounds = a.Rounds
	}
	o := benchmarks.Options{Parts: parts, Quick: a.Quick, Rounds: rounds, Dir: a.Dir, Previous: a.Previous,
		Environ: os.Environ(), Log: os.Stderr}
	if err != nil || a.JSON == "" {
		return o, nil, err
	}
	file, err := os.Create(a.JSON)
	return o, file, err
}

func run(ctx context.Context, o benchmarks.Options, file *os.File, plots string) error {
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
	if plots != "" {
		err = errors.Join(err, report.WritePlots(plots))
	}
	if file == nil {
		return err
	}
	encoder := json.NewEncoder(file)
	encoder.SetIndent("", "  ")
	return errors.Join(err, encoder.Encode(report), file.Close())
}
