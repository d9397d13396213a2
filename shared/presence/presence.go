// Package presence lets a program report itself to Redis, so that one look shows which programs live and what each of them
// misses.
package presence

import (
	"context"
	"maps"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/admin"
	"github.com/tierflow/tierflow/shared/state"
)

const (
	// look is how often a program checks whether its state has changed.
	look = time.Second
	// callTime bounds one report.
	callTime = 2 * time.Second
)

// Run reports the program until ctx ends, and then removes its report. self has what ready does not know. While Redis is away
// it cannot report, and its own /readyz says so.
func Run(ctx context.Context, store *state.Store, ready *admin.Ready, self state.Service, log *zap.Logger) {
	self.StartedAt = time.Now().UTC()
	tick := time.NewTicker(look)
	defer tick.Stop()
	var reported time.Time
	for n := 0; ctx.Err() == nil; n++ {
		missing, warnings := ready.Missing(), ready.Warnings()
		same := maps.Equal(missing, self.Missing) && maps.Equal(warnings, self.Warnings)
		// Before its first answers a check counts as missing: that is no news.
		if n > 0 && (!same || time.Since(reported) >= state.ReportEvery) {
			self.Missing, self.Warnings, reported = missing, warnings, time.Now()
			call(ctx, log, func(ctx context.Context) error { return store.Report(ctx, self) })
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	call(context.WithoutCancel(ctx), log, func(ctx context.Context) error { return store.Ended(ctx, self) })
}

func call(ctx context.Context, log *zap.Logger, do func(context.Context) error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if err := do(ctx); err != nil {
		log.Debug("this program cannot report itself", zap.Error(err))
	}
}
