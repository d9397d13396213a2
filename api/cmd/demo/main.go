// Command demo registers sample items and simulates visitors, so that one can watch items move. It is a client of the HTTP
// API. It also writes the files of the samples onto the lowest tier, as everyone who fills a tier does.
package main

import (
	"context"
	"os"

	"github.com/tierflow/tierflow/shared/process"
)

func main() {
	os.Exit(process.Run(func(ctx context.Context) int { return run(ctx, os.Args[1:], os.Stdout, os.Stderr) }))
}
