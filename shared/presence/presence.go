// Package presence lets a program report itself to Redis, so that one look shows which programs live and what each of them
// misses.
package presence

import (
	"context"
	"maps"
	"slices"
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

// Parts of a report that not every program has. Each may be nil.
type Parts struct {
	Tiers  func() []state.TierReport // as a relocator sees them now; must not wait for a tier
	Totals func() map[string]int64   // what was counted since the start, by the names of state.Service.Rates
}

// Run reports the program until ctx ends, and then removes its report. self has what ready and parts do not know. A change of what
// is missing, of a warning or of the state of a tier is reported at once, figures and rates every few seconds. While Redis is away
// the program cannot report, and its own /readyz says so.
func Run(ctx context.Context, store *state.Store, ready *admin.Ready, self state.Service, parts Parts, log *zap.Logger) {
	self.StartedAt = time.Now().UTC()
	tick := time.NewTicker(look)
	defer tick.Stop()
	var reported time.Time
	var counted rates
	for n := 0; ctx.Err() == nil; n++ {
		now := self
		now.Missing, now.Warnings = ready.Missing(), ready.Warnings()
		if parts.Tiers != nil {
			now.Tiers = parts.Tiers()
		}
		if parts.Totals != nil {
			now.Rates = counted.add(time.Now(), parts.Totals())
		}
		// Before its first answers a check counts as missing: that is no news.
		if n > 0 && (changed(self, now) || time.Since(reported) >= state.ReportEvery) {
			self, reported = now, time.Now()
			call(ctx, log, func(ctx context.Context) error { return store.Report(ctx, self) })
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	call(context.WithoutCancel(ctx), log, func(ctx context.Context) error { return store.Ended(ctx, self) })
}

// changed reports whether a report says something else than the last one, apart from figures.
func changed(last, now state.Service) bool {
	sameTiers := slices.EqualFunc(last.Tiers, now.Tiers, func(a, b state.TierReport) bool {
		return a.Level == b.Level && a.State == b.State
	})
	return !sameTiers || !maps.Equal(last.Missing, now.Missing) || !maps.Equal(last.Warnings, now.Warnings)
}

func call(ctx context.Context, log *zap.Logger, do func(context.Context) error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if err := do(ctx); err != nil {
		log.Debug("this program cannot report itself", zap.Error(err))
	}
}
