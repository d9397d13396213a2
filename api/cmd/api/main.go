// Command api is the HTTP service of Tierflow. It appends the view counts that clients post to the stream `views`, and
// shows items, moves and levels.
package main

import (
	"context"
	"os"

	"github.com/tierflow/tierflow/api/internal/service"
	"github.com/tierflow/tierflow/shared/process"
)

func main() {
	os.Exit(process.Run(func(ctx context.Context) int { return service.Main(ctx, os.Args[1:], os.Stdout, os.Stderr) }))
}
