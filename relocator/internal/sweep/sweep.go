// Package sweep removes what crashed attempts have left in the folder .tierflow of each tier (step 9 of docs/design.md). It
// touches that folder alone, through package mover. A copy that an attempt may have published is left to the releaser:
// the sweep reports it as a stray.
package sweep

import (
	"context"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/relocator/internal/placement"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
)

// Options of New. All are required.
type Options struct {
	Store   *state.Store
	Catalog *catalog.Catalog
	Mover   *mover.Mover
	Self    state.Worker  // says which tiers are swept: those that this host reaches
	Lease   time.Duration // of locks
	Log     *zap.Logger
}

// Sweeper sweeps all tiers that this host reaches.
type Sweeper struct{ o Options }

// New makes a Sweeper.
func New(o Options) *Sweeper { return &Sweeper{o} }

// Run sweeps at once, and then every two leases, until ctx ends. It leaves alone what a lock names and what is younger than
// two leases: to remove something that is in use is safe, but costs the work of that attempt.
func (s *Sweeper) Run(ctx context.Context) {
	every := max(2*s.o.Lease, time.Second)
	for ctx.Err() == nil {
		if err := s.Once(ctx, every); err != nil && ctx.Err() == nil {
			s.o.Log.Warn("the sweep is not complete, the next one goes on", zap.Error(err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(every):
		}
	}
}

// Once removes from all tiers what is older than that. It leaves out a tier that is away.
func (s *Sweeper) Once(ctx context.Context, olderThan time.Duration) error {
	levels, err := placement.Levels(ctx, s.o.Catalog)
	if err != nil {
		return err
	}
	inUse := func(id item.ID, random string) bool {
		holder, err := s.o.Store.Holder(ctx, id)
		return err != nil || strings.HasSuffix(string(holder), " "+random)
	}
	var first error
	for _, level := range levels.Levels() {
		if !s.o.Self.Reaches(level.Name) {
			continue // a relocator that reaches it sweeps it
		}
		report, err := s.o.Mover.Sweep(ctx, level, olderThan, inUse, func(ctx context.Context, id item.ID, eventID string) error {
			return s.stray(ctx, level, id, eventID)
		})
		if report.Temporaries+report.Released > 0 {
			s.o.Log.Info("swept", zap.String("level", level.Name), zap.Int("temporaries", report.Temporaries),
				zap.Int("released", report.Released))
		}
		if err != nil && first == nil && !fault.Is(err, fault.TierRefused) {
			first = err
		}
	}
	return first
}

// stray has the releaser look for what the attempt may have published under the item's name.
func (s *Sweeper) stray(ctx context.Context, level policy.Level, id item.ID, eventID string) error {
	row, err := s.o.Catalog.Row(ctx, id)
	if fault.Is(err, fault.Unknown) {
		return nil // the item was deleted, and its files stay
	}
	if err != nil {
		return err
	}
	return s.o.Store.Stray(ctx, event.Committed{EventID: eventID, ID: id, To: level.Name, Filename: row.Filename,
		Generation: row.Generation, CommittedAt: time.Now()})
}
