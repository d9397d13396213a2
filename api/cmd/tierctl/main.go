// Command tierctl shows and does on the command line what the dashboard does in a browser. It is a client of the HTTP API only.
package main

import (
	"context"
	"os"

	"github.com/tierflow/tierflow/shared/process"
)

func main() {
	os.Exit(process.Run(func(ctx context.Context) int { return run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr) }))
}
