// Package service is the committer as a whole: its settings (config.go), how its parts are put together (run.go), and the
// verbs of its command line. Only cmd/committer imports it.
package service

import (
	"context"
	"fmt"
	"io"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/admin"
	"github.com/tierflow/tierflow/shared/logging"
	"github.com/tierflow/tierflow/shared/process"
	"github.com/tierflow/tierflow/shared/settings"
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
	verb, err := settings.Parse("committer", "Writes relocations to MySQL.", &p, args)
	if err != nil {
		fmt.Fprintln(stderr, "committer:", err)
		return process.Settings
	}
	if verb == "version" {
		fmt.Fprintln(stdout, process.VersionText("committer"))
		return process.OK
	}
	config, err := p.Check()
	if err != nil {
		fmt.Fprintln(stderr, "committer:", err)
		return process.Settings
	}
	defer config.close()
	switch verb {
	case "healthcheck":
		if err := admin.Probe(ctx, config.adminListen); err != nil {
			fmt.Fprintln(stderr, "committer:", err)
			return process.Failed
		}
		return process.OK
	case "migrate":
		return migrate(ctx, config.catalog, stdout, stderr)
	}
	config.migrate = p.Serve.Migrate
	process.CollectLate(ctx)
	log := logging.New("committer", config.LogLevel, config.LogFormat).With(zap.String("worker_id", config.workerID))
	defer func() { _ = log.Sync() }()
	if err := Run(ctx, config, log); err != nil {
		log.Error("cannot start", zap.Error(err))
		return process.Failed
	}
	return process.OK
}
