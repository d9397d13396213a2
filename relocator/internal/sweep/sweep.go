// Package sweep removes what crashed attempts have left in the folder .tierflow of each tier (step 9 of docs/design.md). It
// touches that folder alone, through package mover. A copy that an attempt may have published is left to the releaser:
// the sweep reports it as a stray.
package sweep

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/relocator/internal/placement"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/outage"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
)

// Options of New. All but Rests are required.
type Options struct {
	Store   *state.Store
	Catalog *catalog.Catalog
	Mover   *mover.Mover
	Self    state.Worker             // says which tiers are swept: those that this host reaches
	Rests   func(policy.Level) error // not nil while a level's tier rests; it is not swept then. May be nil
	Lease   time.Duration            // of locks
	Log     *zap.Logger
}

// Sweeper sweeps all tiers that this host reaches.
type Sweeper struct {
	o Options

	mu      sync.Mutex
	under   map[string]bool           // levels whose tiers are being swept
	levels  *outage.Outage            // of their look-up
	outages map[string]*outage.Outage // by level
	sweeps  sync.WaitGroup
}

// New makes a Sweeper.
func New(o Options) *Sweeper {
	return &Sweeper{o: o, under: map[string]bool{}, levels: outage.Say("nothing is swept", "tiers are swept again", o.Log),
		outages: map[string]*outage.Outage{}}
}

// stopWait is how long Run waits at its end for sweeps that are under way. A tier that hangs must not keep it any longer.
const stopWait = 5 * time.Second

// Run sweeps at once, and then every two leases, until ctx ends. It leaves alone what a lock names and what is younger than
// two leases: to remove something that is in use is safe, but costs the work of that attempt.
//
// Each tier is swept by itself, so a tier that hangs holds up no other. It is not swept again before its sweep has ended.
func (s *Sweeper) Run(ctx context.Context) {
	every := max(2*s.o.Lease, time.Second)
	for ctx.Err() == nil {
		s.begin(ctx, every)
		select {
		case <-ctx.Done():
		case <-time.After(every):
		}
	}
	ended := make(chan struct{})
	go func() { s.sweeps.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(stopWait):
	}
}

// begin begins a sweep of each tier that is not being swept.
func (s *Sweeper) begin(ctx context.Context, olderThan time.Duration) {
	levels, err := s.reached(ctx)
	if ctx.Err() != nil {
		return
	}
	s.levels.Note(err)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, level := range levels {
		if s.under[level.Name] {
			continue
		}
		s.under[level.Name] = true
		sweeps := s.outages[level.Name]
		if sweeps == nil {
			sweeps = outage.New("sweeps", s.o.Log.With(zap.String("level", level.Name)))
			s.outages[level.Name] = sweeps
		}
		s.sweeps.Go(func() {
			err := s.Tier(ctx, level, olderThan)
			switch {
			case err == nil:
				sweeps.Succeeded()
			case ctx.Err() == nil && !fault.Is(err, fault.TierRefused): // a tier that is away is reported elsewhere
				sweeps.Failed(err)
			}
			s.mu.Lock()
			delete(s.under, level.Name)
			s.mu.Unlock()
		})
	}
}

// reached are the levels whose tiers this host reaches. A relocator that reaches the others sweeps those.
func (s *Sweeper) reached(ctx context.Context) ([]policy.Level, error) {
	all, err := placement.Levels(ctx, s.o.Catalog.DB())
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(all.Levels()), func(l policy.Level) bool { return !s.o.Self.Reaches(l.Name) }), nil
}

// Once removes from all tiers what is older than that, and waits for it. It leaves out a tier that is away.
func (s *Sweeper) Once(ctx context.Context, olderThan time.Duration) error {
	levels, err := s.reached(ctx)
	if err != nil {
		return err
	}
	errs := make([]error, len(levels))
	var wg sync.WaitGroup
	for i, level := range levels {
		wg.Go(func() {
			if err := s.Tier(ctx, level, olderThan); !fault.Is(err, fault.TierRefused) {
				errs[i] = err
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Tier removes from one tier what is older than that. It does nothing while the tier rests.
func (s *Sweeper) Tier(ctx context.Context, level policy.Level, olderThan time.Duration) error {
	if s.o.Rests != nil && s.o.Rests(level) != nil {
		return nil
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
	return err
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
