// Command relocator moves contents between tiers and clears old copies.
package main

import (
	"context"
	"os"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/shared/process"
)

func main() {
	os.Exit(process.Run(func(ctx context.Context) int { return run(ctx, os.Args[1:], os.Stdout, os.Stderr, fsys.FS{}) }))
}
