package service

import (
	"context"
	"fmt"
	"io"
	"net"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/api/internal/apikeys"
	"github.com/tierflow/tierflow/shared/admin"
	"github.com/tierflow/tierflow/shared/process"
)

type cli struct {
	Settings

	Serve       struct{} `cmd:"" default:"1" help:"Serve HTTP (the default)."`
	Healthcheck struct{} `cmd:"" help:"Ask a running api whether it is ready; exit code 0 or 1."`
	Version     struct{} `cmd:"" help:"Print the version."`
	NewKey      newKey   `cmd:"" help:"Make an API key: print it, and its line for the file of keys."`
}

type newKey struct {
	Name   string `required:"" help:"Name of the key, for the log and for those who read the file."`
	Scopes string `required:"" help:"What it may do: some of views, read, operate, with commas between."`
	File   string `help:"Append the line to this file, and print the key alone."`
}

// Main is the program api: it parses the command line, runs the verb, and returns the exit code.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var c cli
	check := func() (process.Checked, error) {
		config, err := c.Settings.Check()
		return process.Checked{
			CommonValues: config.CommonValues, AdminListen: c.Listen,
			Serve: func(ctx context.Context, log *zap.Logger) error { return Run(ctx, config, log, func(net.Addr) {}) },
		}, err
	}
	exit := func(code int, err error) int {
		if err == nil {
			return process.OK
		}
		fmt.Fprintln(stderr, "api:", err)
		return code
	}
	return process.Service{Name: "api", Purpose: "The HTTP service of Tierflow.", CommandLine: &c, Check: check,
		Verbs: map[string]process.Verb{
			"healthcheck": func() int { return exit(process.Failed, admin.Probe(ctx, c.Listen)) },
			"new-key":     func() int { return exit(process.Settings, c.NewKey.run(stdout)) },
		}}.Main(ctx, args, stdout, stderr)
}

// run makes a key and prints it to stdout. Tierflow stores only the key's digest and never shows the key again.
func (n newKey) run(stdout io.Writer) error {
	scopes, err := apikeys.ParseScopes(n.Scopes)
	if err != nil {
		return err
	}
	secret, line, err := apikeys.Generate(n.Name, scopes)
	if err != nil {
		return err
	}
	if n.File == "" {
		_, err = fmt.Fprintf(stdout, "%s\n%s\n", secret, line)
		return err
	}
	if err := apikeys.Append(n.File, line); err != nil {
		return err
	}
	_, err = fmt.Fprintln(stdout, secret)
	return err
}
