package worker

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/fault"
)

const (
	restLeast = time.Second
	restMost  = 30 * time.Second
)

// Tiers knows which tiers are in trouble, by level. One that is full, away or fails to be written rests: what needs it
// waits without trying, longer each time, while other tiers go on. One that reported an I/O error, that is read-only, or
// whose permissions are wrong is suspect, until a move that used it, or a release that cleared something there, has succeeded.
type Tiers struct {
	metrics *Metrics
	log     *zap.Logger

	mu      sync.Mutex
	until   map[string]time.Time
	n       map[string]int // rests in a row
	suspect map[string]error
}

// NewTiers makes a Tiers.
func NewTiers(m *Metrics, log *zap.Logger) *Tiers {
	return &Tiers{metrics: m, log: log, until: map[string]time.Time{}, n: map[string]int{}, suspect: map[string]error{}}
}

// Suspects names the tiers that are not to be trusted; nil where there is none.
func (t *Tiers) Suspects() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	for _, level := range slices.Sorted(maps.Keys(t.suspect)) {
		errs = append(errs, fmt.Errorf("level %s is suspect: %w", level, t.suspect[level]))
	}
	return errors.Join(errs...)
}

// check tells whether work that needs the tiers may be tried.
func (t *Tiers) check(levels ...string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range levels {
		if time.Now().Before(t.until[l]) {
			return fault.New(fault.Busy, "wait for tier", l, nil)
		}
	}
	return nil
}

// note takes an error of a tier down. target is the level that was to be written to: a source that cannot be read may
// have other files that can.
func (t *Tiers) note(err error, target string) {
	var e *fault.Error
	if !errors.As(err, &e) || e.Level == "" {
		return
	}
	switch e.Kind {
	case fault.NoSpace, fault.TierRefused, fault.Suspect:
	default:
		return
	}
	t.metrics.tierError(e.Level, string(e.Kind))
	t.mu.Lock()
	defer t.mu.Unlock()
	if e.Kind == fault.Suspect {
		if t.suspect[e.Level] == nil {
			t.log.Error("a tier is suspect", zap.String("level", e.Level), zap.Error(err))
		}
		t.suspect[e.Level] = err
		t.metrics.tierSuspect(e.Level, true)
		if e.Level != target {
			return
		}
	}
	t.n[e.Level]++
	t.until[e.Level] = time.Now().Add(min(restLeast<<min(t.n[e.Level]-1, 10), restMost))
}

// clear is for after a move or a release that used the tiers.
func (t *Tiers) clear(levels ...string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range levels {
		delete(t.until, l)
		delete(t.n, l)
		if t.suspect[l] != nil {
			delete(t.suspect, l)
			t.metrics.tierSuspect(l, false)
			t.log.Info("a tier is not suspect any more", zap.String("level", l))
		}
	}
}
