// Package presence lets a program report itself to Redis, so that one look shows which programs live and what each of them
// misses. A program notices there that another process uses its id.
package presence

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/admin"
	"github.com/tierflow/tierflow/shared/outage"
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

// Reporter reports a program.
type Reporter struct {
	store *state.Store
	self  state.Service
	hint  string
	calls *outage.Outage

	mu     sync.Mutex
	shared sharedID
}

// New makes a Reporter of a program. self has what the readiness checks and the parts do not know. hint says what to do where two processes
// have the same id.
func New(store *state.Store, self state.Service, hint string, log *zap.Logger) *Reporter {
	self.StartedAt, self.Instance = time.Now().UTC().Truncate(time.Microsecond), rand.Text()
	return &Reporter{store: store, self: self, hint: hint, calls: outage.New("reports of this program", log)}
}

// Run reports the program until ctx ends, and then removes its report. ready has the readiness checks. A change of what is
// missing, of a warning or of the state of a tier is reported at once, figures and rates every few seconds. While Redis is away
// the program cannot report, and its own /readyz says so.
func (r *Reporter) Run(ctx context.Context, ready *admin.Ready, parts Parts) {
	self := r.self
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
			r.report(ctx, self)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTime)
	defer cancel()
	_ = r.store.Ended(ctx, self) // else it counts as lost for an hour
}

// changed reports whether a report says something else than the last one, apart from figures.
func changed(last, now state.Service) bool {
	sameTiers := slices.EqualFunc(last.Tiers, now.Tiers, func(a, b state.TierReport) bool {
		return a.Level == b.Level && a.State == b.State
	})
	return !sameTiers || !maps.Equal(last.Missing, now.Missing) || !maps.Equal(last.Warnings, now.Warnings)
}

func (r *Reporter) report(ctx context.Context, self state.Service) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	another, err := r.store.Report(ctx, self)
	r.calls.Note(err)
	if err == nil {
		r.mu.Lock()
		r.shared.reported(another, time.Now())
		r.mu.Unlock()
	}
}

// CheckAlone is a readiness check that warns: another process has the same id.
func (r *Reporter) CheckAlone(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.shared.is {
		return nil
	}
	return fmt.Errorf("another %s has the id %s as well, so each takes the work and the reports of the other for its own (%s)",
		r.self.Program, r.self.ID, r.hint)
}
