// Command relocator moves items between tiers and removes old copies.
package main

import (
	"context"
	"os"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/service"
	"github.com/tierflow/tierflow/shared/process"
)

func main() {
	os.Exit(process.Run(func(ctx context.Context) int { return service.Main(ctx, os.Args[1:], os.Stdout, os.Stderr, fsys.FS{}) }))
}
