// Command counter counts views from a web server's log and tells the api: hot contents promote themselves by being
// watched. It is a client of the HTTP API only.
package main

import (
	"context"
	"os"

	"github.com/tierflow/tierflow/shared/process"
)

func main() {
	os.Exit(process.Run(func(ctx context.Context) int { return run(ctx, os.Args[1:], os.Stdout, os.Stderr) }))
}
