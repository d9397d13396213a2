// Command api is the HTTP service of Tierflow: it takes view counts and shows what becomes of them.
package main

import (
	"context"
	"fmt"
	"net"
	"os"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/api/internal/service"
	"github.com/tierflow/tierflow/shared/admin"
	"github.com/tierflow/tierflow/shared/logging"
	"github.com/tierflow/tierflow/shared/process"
	"github.com/tierflow/tierflow/shared/settings"
)

type cli struct {
	service.Settings

	Serve       struct{} `cmd:"" default:"1" help:"Serve HTTP (the default)."`
	Healthcheck struct{} `cmd:"" help:"Ask a running api whether it is ready; exit code 0 or 1."`
	Version     struct{} `cmd:"" help:"Print the version."`
}

func main() { os.Exit(process.Run(run)) }

func run(ctx context.Context) int {
	var c cli
	verb, err := settings.Parse("api", "The HTTP service of Tierflow.", &c, os.Args[1:])
	if err != nil {
		return fail(process.Settings, err)
	}
	switch verb {
	case "version":
		fmt.Println(process.VersionText("api"))
		return process.OK
	case "healthcheck":
		if err := admin.Probe(ctx, c.Listen); err != nil {
			return fail(process.Failed, err)
		}
		return process.OK
	}
	config, err := c.Settings.Check()
	if err != nil {
		return fail(process.Settings, err)
	}
	log := logging.New("api", config.LogLevel, config.LogFormat)
	if err := service.Run(ctx, config, log, func(net.Addr) {}); err != nil {
		log.Error("stopped", zap.Error(err))
		return process.Failed
	}
	return process.OK
}

func fail(code int, err error) int {
	fmt.Fprintln(os.Stderr, "api:", err)
	return code
}
