// Command counter counts views from the log of a web server and posts the counts to the api, so that items are promoted
// because people watch them. It is a client of the HTTP API only.
package main

import (
	"context"
	"os"

	"github.com/tierflow/tierflow/shared/process"
)

func main() {
	os.Exit(process.Run(func(ctx context.Context) int { return run(ctx, os.Args[1:], os.Stdout, os.Stderr) }))
}
