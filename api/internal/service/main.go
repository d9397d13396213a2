package service

import (
	"context"
	"fmt"
	"io"
	"net"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/api/internal/apikeys"
	"github.com/tierflow/tierflow/shared/admin"
	"github.com/tierflow/tierflow/shared/logging"
	"github.com/tierflow/tierflow/shared/process"
	"github.com/tierflow/tierflow/shared/settings"
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
	fail := func(code int, err error) int {
		fmt.Fprintln(stderr, "api:", err)
		return code
	}
	var c cli
	verb, err := settings.Parse("api", "The HTTP service of Tierflow.", &c, args)
	if err != nil {
		return fail(process.Settings, err)
	}
	switch verb {
	case "version":
		fmt.Fprintln(stdout, process.VersionText("api"))
		return process.OK
	case "healthcheck":
		if err := admin.Probe(ctx, c.Listen); err != nil {
			return fail(process.Failed, err)
		}
		return process.OK
	case "new-key":
		if err := c.NewKey.run(stdout); err != nil {
			return fail(process.Settings, err)
		}
		return process.OK
	}
	config, err := c.Settings.Check()
	if err != nil {
		return fail(process.Settings, err)
	}
	process.CollectLate(ctx)
	log := logging.New("api", config.LogLevel, config.LogFormat)
	if err := Run(ctx, config, log, func(net.Addr) {}); err != nil {
		log.Error("stopped", zap.Error(err))
		return process.Failed
	}
	return process.OK
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
