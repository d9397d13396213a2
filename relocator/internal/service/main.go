// Package service is the relocator as a whole: its settings (config.go), how its parts are put together (run.go), and the
// verbs of its command line, a file each. Only cmd/relocator imports it.
package service

import (
	"context"
	"io"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/shared/process"
)

// program is the command line: settings and verbs, as kong fills them.
type program struct {
	Settings

	Serve       struct{}      `cmd:"" default:"1" help:"Relocate until SIGTERM (the default)."`
	Healthcheck struct{}      `cmd:"" help:"Exit 0 if the relocator that runs here is ready."`
	Version     struct{}      `cmd:"" help:"Print the version."`
	InitTiers   struct{}      `cmd:"" help:"Make the tiers' roots and identities; changes nothing the second time. Exit 1 where another identity is found."`
	ImportTier  importOptions `cmd:"" name:"import" help:"Register what lies on a tier and has no row. Moves nothing. Exit 0 all registered, 1 names were refused, 2 could not look at all."`
	VerifyTiers verifyOptions `cmd:"" name:"verify" help:"Compare MySQL with all tiers. Exit 0 clean, 1 findings, 2 could not compare, 3 no findings but a tier was not looked at."`
}

// Main is the program: it runs the verb that the arguments name, and returns the exit code. fs is the zero value but in
// tests.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer, fs fsys.FS) int {
	var p program
	check := func() (process.Checked, error) {
		config, err := p.Check()
		if err != nil {
			return process.Checked{}, err
		}
		return process.Checked{
			CommonValues: config.CommonValues, AdminListen: config.adminListen, WorkerID: config.workerID, Close: config.close,
			Verbs: map[string]process.Verb{
				"init-tiers": func() int { return initTiers(ctx, config, stdout, stderr) },
				"import": func() int {
					return importTier(ctx, config, p.ImportTier, stdout, stderr)
				},
				"verify": func() int {
					return verifyTiers(ctx, config, p.VerifyTiers, stdout, stderr)
				},
			},
			Serve: func(ctx context.Context, log *zap.Logger) error { return Run(ctx, config, fs, log) },
		}, nil
	}
	return process.Service{Name: "relocator", Purpose: "Moves items between tiers and removes old copies.", CommandLine: &p, Check: check}.
		Main(ctx, args, stdout, stderr)
}
