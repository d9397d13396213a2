package benchmarks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
)

// Part is a set of benchmarks that the user runs by its name.
type Part struct {
	Name  string
	About string
	// Run measures with b.Compare and b.Observe. An error means that a check of the results has failed, or that a
	// measurement was impossible. The report still has all that was measured before it.
	Run func(ctx context.Context, b *Bench) error
}

// Parts are all parts, in the order in which they run.
func Parts() []Part { return []Part{ingest, moves, commit, pipeline, idle, scale} }

// Options of Run. All are required.
type Options struct {
	Parts    []Part    // see Choose
	Previous string    // a commit of this clone that ingest also measures; "": none
	Quick    bool      // a short run that shows that everything works; its figures say little
	Rounds   int       // how often each case is measured
	Dir      string    // an existing folder on the disk to measure; Run makes a folder in it, and removes that
	Environ  []string  // os.Environ(), which only main may ask
	Log      io.Writer // progress messages
}

// Bench is a running part. When the part ends, Bench stops all servers that it has started and removes its folders.
type Bench struct {
	Options
	Root     string // folder of go.work
	Programs string // folder with the services' programs
	part     string
	report   *Report
	undo     []func() error
}

// Run runs the parts one after another. The report has all that was measured, also after an error. The error joins those
// of all parts.
func Run(ctx context.Context, o Options) (*Report, error) {
	dir, err := os.MkdirTemp(o.Dir, "tierflow-bench-")
	if err != nil {
		return nil, err
	}
	o.Dir = dir
	report, err := run(ctx, o)
	return report, errors.Join(err, os.RemoveAll(dir))
}

// Choose returns the parts with these names in the order in which they run. Without names it returns all parts.
func Choose(names []string) ([]Part, error) {
	all := Parts()
	var known []string
	for _, p := range all {
		known = append(known, p.Name)
	}
	for _, name := range names {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("there is no part %q: the parts are %s", name, strings.Join(known, ", "))
		}
	}
	if len(names) == 0 {
		return all, nil
	}
	return slices.DeleteFunc(all, func(p Part) bool { return !slices.Contains(names, p.Name) }), nil
}

func run(ctx context.Context, o Options) (*Report, error) {
	root, err := stack.Root()
	if err != nil {
		return nil, err
	}
	cache, err := stack.DefaultCache(ctx, root)
	if err != nil {
		return nil, err
	}
	programs := filepath.Join(o.Dir, "programs")
	if err := os.Mkdir(programs, 0o755); err != nil {
		return nil, err
	}
	fmt.Fprintln(o.Log, "building api, relocator, committer")
	if err := stack.Build(ctx, stack.BuildOptions{Root: root, Cache: cache, Dir: programs}); err != nil {
		return nil, err
	}
	report := &Report{Machine: thisMachine(o.Dir), Quick: o.Quick, StartedAt: time.Now().UTC().Truncate(time.Second)}
	var errs []error
	for _, p := range o.Parts {
		b := &Bench{Options: o, Root: root, Programs: programs, part: p.Name, report: report}
		b.Dir = filepath.Join(o.Dir, p.Name)
		if err := os.Mkdir(b.Dir, 0o755); err != nil {
			return report, err
		}
		fmt.Fprintf(o.Log, "%s: %s\n", p.Name, p.About)
		err := p.Run(ctx, b)
		if err != nil {
			err = fmt.Errorf("%s: %w", p.Name, err)
		}
		errs = append(errs, err, b.close(), os.RemoveAll(b.Dir))
		if ctx.Err() != nil {
			break
		}
	}
	return report, errors.Join(errs...)
}

// Cleanup registers f to be called when the part has ended, the last one first.
func (b *Bench) Cleanup(f func() error) { b.undo = append(b.undo, f) }

func (b *Bench) close() error {
	var errs []error
	for _, f := range slices.Backward(b.undo) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// Logf writes a progress message to Options.Log.
func (b *Bench) Logf(format string, args ...any) {
	fmt.Fprintf(b.Log, "  "+format+"\n", args...)
}

// Figure is one thing that is measured, and the wanted value. The report shows the wanted value, and does not fail when a
// figure misses it: a slow machine is no error.
type Figure struct {
	Name string
	Unit string  // such as posts/s, ms, MiB
	Min  float64 // the wanted value; 0: none
	Max  float64
}

// Subject is one of the ways that a case compares.
type Subject struct {
	Name string
	// Measure measures once, checks the result, and returns the figure in the case's unit. An error ends the part.
	Measure func(ctx context.Context) (float64, error)
	// Min is the wanted ratio of the case's first subject to this one; 0: none.
	Min float64
}

// Case compares ways to do the same. The figure is that of Ours, and a higher one is better.
type Case struct {
	Figure
	Ours    Subject
	Against []Subject // may be empty
	Rounds  int       // 0: those of Options
}

// Compare measures all subjects of a case in turn, A B C A B C, and records their figures. Taking turns spreads a
// disturbance of the machine over all subjects.
func (b *Bench) Compare(ctx context.Context, c Case) error {
	row := b.report.row(b.part, c.Figure)
	subjects := append([]Subject{c.Ours}, c.Against...)
	for _, s := range c.Against {
		row.Against = append(row.Against, Against{Name: s.Name, Min: s.Min})
	}
	rounds := b.Rounds
	if c.Rounds > 0 {
		rounds = c.Rounds
	}
	for round := range rounds {
		said := make([]string, 0, len(subjects))
		values := make([]float64, 0, len(subjects))
		for _, s := range subjects {
			if err := ctx.Err(); err != nil {
				return err
			}
			var v float64
			err := b.patiently(func() (err error) {
				v, err = s.Measure(ctx)
				return err
			})
			if err != nil {
				return fmt.Errorf("%s: %s: %w", c.Name, s.Name, err)
			}
			values = append(values, v)
			said = append(said, s.Name+" "+number(v))
		}
		row.Values = append(row.Values, values[0])
		for i, v := range values[1:] {
			row.Against[i].Values = append(row.Against[i].Values, v)
		}
		b.Logf("%s, round %d of %d, %s: %s", c.Name, round+1, rounds, c.Unit, strings.Join(said, ", "))
	}
	return nil
}

// errRefused is the error of a measurement in which the api has refused a post. The api does so when Redis has not
// answered for seconds.
var errRefused = errors.New("refused")

// patiently measures up to three times, as long as the error is errRefused. A disk that stalls for a moment spoils one
// measurement; an api with a fault refuses every time.
func (b *Bench) patiently(measure func() error) error {
	for try := 1; ; try++ {
		err := measure()
		if try == 3 || !errors.Is(err, errRefused) {
			return err
		}
		b.Logf("once more: %v", err)
	}
}

// Observe records a figure that a measurement gives besides its own, such as the memory used, and the same figure of
// others in that round. Every call for a figure must have the same others.
func (b *Bench) Observe(f Figure, value float64, others ...Other) {
	row := b.report.row(b.part, f)
	row.Values = append(row.Values, value)
	for i, o := range others {
		if i == len(row.Against) {
			row.Against = append(row.Against, Against{Name: o.Name, Min: o.Min, Max: o.Max})
		}
		row.Against[i].Values = append(row.Against[i].Values, o.Value)
	}
}

// Other is the same figure of another subject.
type Other struct {
	Name  string
	Value float64
	Min   float64 // the wanted ratio of ours to it; 0: none
	Max   float64
}

// seconds returns how long a measurement of latencies takes.
func (b *Bench) seconds() time.Duration {
	if b.Quick {
		return time.Second
	}
	return 5 * time.Second
}
