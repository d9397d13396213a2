// Command committer reads the stream `relocated`. It writes each move to MySQL, and then appends it to `committed`.
package main

import (
	"context"
	"os"

	"github.com/tierflow/tierflow/committer/internal/service"
	"github.com/tierflow/tierflow/shared/process"
)

func main() {
	os.Exit(process.Run(func(ctx context.Context) int { return service.Main(ctx, os.Args[1:], os.Stdout, os.Stderr) }))
}
