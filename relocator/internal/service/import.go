package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/importer"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/process"
)

// importOptions are the flags of import.
type importOptions struct {
	Level  string `required:"" help:"The level to look at. New items get this level."`
	DryRun bool   `help:"Register nothing, and print a line for each item that would be registered."`
	Map    string `type:"existingfile" help:"A CSV of cid,filename: only what it names is registered, with these cids."`
	AsUnit string `placeholder:"GLOB" help:"A folder that holds a name of this pattern is one item, such as '*.m3u8'."`
}

// importTier is the verb import: it registers what lies on a level's tier and has no row. What cannot be registered goes to
// stdout, one name a line: "refused", cid, filename, reason. With DryRun, so does what would be registered:
// "would-register", cid, filename, size. The exit code is 1 where a name was refused, and 2 where it has not looked at all.
func importTier(ctx context.Context, c Config, o importOptions, stdout, stderr io.Writer) int {
	fail := func(err error) int {
		fmt.Fprintln(stderr, "relocator: import:", err)
		return process.Settings
	}
	if o.Map != "" && o.AsUnit != "" {
		return fail(errors.New("--map names folders itself, and each is a unit: leave out --as-unit"))
	}
	level, err := levelNamed(ctx, c, o.Level)
	if err != nil {
		return fail(err)
	}
	progress := newBar(stderr)
	options := importer.Options{
		Catalog: c.catalog, FS: fsys.FS{}, Level: level, AsUnit: o.AsUnit, DryRun: o.DryRun,
		Progress: func(done, total int64) { progress.at("names on "+o.Level, done, total) },
		Report: func(l importer.Line) {
			progress.clear()
			cid := "-"
			if l.ID != 0 {
				cid = l.ID.String()
			}
			fmt.Fprintf(stdout, "%s\t%s\t%s\t%s\n", l.What, cid, strconv.Quote(l.Filename), l.Detail)
		},
	}
	if o.Map != "" {
		f, err := os.Open(o.Map)
		if err != nil {
			return fail(err)
		}
		defer f.Close()
		options.Map = f
	}
	sum, err := importer.Run(ctx, options)
	progress.clear()
	verb := "registered"
	if o.DryRun {
		verb = "would register"
	}
	fmt.Fprintf(stderr, "%s %d items of %d bytes on %s; %d names had a row already, %d were refused\n",
		verb, sum.Registered, sum.Bytes, level.Name, sum.Known, sum.Refused)
	switch {
	case ctx.Err() != nil:
		return fail(errors.New("stopped: run it again to go on"))
	case err != nil:
		return fail(err)
	case sum.Refused > 0:
		return process.Failed
	}
	return process.OK
}

// levelNamed reads a level. The error names the levels that there are.
func levelNamed(ctx context.Context, c Config, name string) (policy.Level, error) {
	p, err := c.catalog.Policy(ctx)
	if err != nil {
		return policy.Level{}, err
	}
	level, ok := p.Level(name)
	if !ok {
		var names []string
		for _, l := range p.Levels() {
			names = append(names, l.Name)
		}
		return policy.Level{}, fmt.Errorf("there is no level %q: there are %s", name, strings.Join(names, ", "))
	}
	return level, nil
}
