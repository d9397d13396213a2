// Command relocator moves items between tiers. It reads the stream `views`, makes a copy of each item that belongs on
// another tier, and appends the copy to `relocated`. It also reads `committed`: once MySQL names the new copy, it removes
// the old one.
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
