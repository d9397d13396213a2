package service

import (
	"context"
	"fmt"
	"io"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/outage"
	"github.com/tierflow/tierflow/shared/process"
)

// migrateAgain is the time between two tries: the server may still be starting.
const migrateAgain = time.Second

// migrate is the verb. It does not wait for a server that is away.
func migrate(ctx context.Context, c *catalog.Catalog, stdout, stderr io.Writer) int {
	applied, err := c.Migrate(ctx)
	for _, name := range applied {
		fmt.Fprintln(stdout, "applied", name)
	}
	if err != nil {
		fmt.Fprintln(stderr, "committer: migrate:", err)
		return process.Failed
	}
	if len(applied) == 0 {
		fmt.Fprintln(stdout, "nothing to apply: the schema is up to date")
	}
	return process.OK
}

// keepMigrating tries until one migration has succeeded, and then calls migrated.
func keepMigrating(ctx context.Context, c *catalog.Catalog, migrated func(), log *zap.Logger) {
	tries := outage.New("migrations", log)
	for {
		applied, err := c.Migrate(ctx)
		if len(applied) > 0 {
			log.Info("migrated", zap.Strings("applied", applied))
		}
		if ctx.Err() == nil {
			tries.Note(err)
		}
		if err == nil {
			migrated()
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(migrateAgain):
		}
	}
}
