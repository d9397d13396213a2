package worker

import (
	"context"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
)

// Sweeper clears what crashed attempts have left in .tierflow/ (step 9).
type Sweeper struct{ o Options }

// NewSweeper makes a Sweeper.
func NewSweeper(o Options) *Sweeper { return &Sweeper{o} }

// Run sweeps at once and then now and then, until ctx ends. Taking what is in use by mistake is safe, but undoes work,
// so it leaves alone what a lock names and what is younger than two leases.
func (s *Sweeper) Run(ctx context.Context) {
	every := max(2*s.o.Lease, time.Second)
	for ctx.Err() == nil {
		if err := s.Once(ctx, every); err != nil && ctx.Err() == nil {
			s.o.Log.Warn("sweep is not complete, the next one goes on", zap.Error(err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(every):
		}
	}
}

// Once sweeps all tiers of what is older than that. A tier that is away is left out.
func (s *Sweeper) Once(ctx context.Context, olderThan time.Duration) error {
	levels, err := readPolicy(ctx, s.o.Catalog)
	if err != nil {
		return err
	}
	var first error
	for _, level := range levels.Levels() {
		if s.o.Reach.check(level.Name) != nil {
			continue // those who reach it sweep it
		}
		inUse := func(id item.ID, random string) bool {
			holder, err := s.o.Store.Holder(ctx, id)
			return err != nil || strings.HasSuffix(string(holder), " "+random)
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

// stray has the releaser look at what the attempt may have published under the content's name.
func (s *Sweeper) stray(ctx context.Context, level policy.Level, id item.ID, eventID string) error {
	row, err := s.o.Catalog.Content(ctx, id)
	if fault.Is(err, fault.Unknown) {
		return nil // forgotten: its files stay
	}
	if err != nil {
		return err
	}
	return s.o.Store.Stray(ctx, event.Committed{EventID: eventID, ID: id, To: level.Name, Filename: row.Filename,
		Generation: row.Generation, CommittedAt: time.Now()})
}
