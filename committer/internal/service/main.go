// Package service is the committer as a whole: its settings (config.go), how its parts are put together (run.go), and the
// verbs of its command line. Only cmd/committer imports it.
package service

import (
	"context"
	"io"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/process"
)

// program is the command line: settings and verbs, as kong fills them.
type program struct {
	Settings

	Serve struct {
		Migrate bool `help:"Migrate the schema as soon as MySQL is there."`
	} `cmd:"" default:"withargs" help:"Commit until SIGTERM (the default)."`
	Migrate     struct{} `cmd:"" help:"Apply the migrations that are missing and print their names. Safe to run from several places at once."`
	Healthcheck struct{} `cmd:"" help:"Exit 0 if the committer that runs here is ready."`
	Version     struct{} `cmd:"" help:"Print the version."`
}

// Main is the program: it runs the verb that the arguments name, and returns the exit code.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var p program
	check := func() (process.Checked, error) {
		config, err := p.Check()
		if err != nil {
			return process.Checked{}, err
		}
		config.migrate = p.Serve.Migrate
		return process.Checked{
			CommonValues: config.CommonValues, AdminListen: config.adminListen, WorkerID: config.workerID, Close: config.close,
			Verbs: map[string]process.Verb{"migrate": func() int { return migrate(ctx, config.catalog, stdout, stderr) }},
			Serve: func(ctx context.Context, log *zap.Logger) error { return Run(ctx, config, log) },
		}, nil
	}
	return process.Service{Name: "committer", Purpose: "Writes relocations to MySQL.", CommandLine: &p, Check: check}.
		Main(ctx, args, stdout, stderr)
}
