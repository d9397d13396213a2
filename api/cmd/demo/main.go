// Command demo fills Tierflow with sample contents and lets visitors come, so that somebody can see contents move. It is
// a client of the HTTP API only; but the samples' files it writes onto the lowest tier, as whoever fills a tier does.
package main

import (
	"context"
	"os"

	"github.com/tierflow/tierflow/shared/process"
)

func main() {
	os.Exit(process.Run(func(ctx context.Context) int { return run(ctx, os.Args[1:], os.Stdout, os.Stderr) }))
}
