// Package tierhealth remembers which tiers do not work, so that what needs them waits and everything else goes on. Errors
// and successes of moves and releases tell it. It touches a tier only to find out whether the tier can be written to at
// all.
package tierhealth

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/relocator/internal/metrics"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/policy"
)

const (
	minRest = time.Second
	maxRest = 30 * time.Second
)

// Options of New. All are required.
type Options struct {
	Probe   func(policy.Level) error // nil where the level's tier can be written to: mover.Mover.Probe
	Metrics *metrics.Metrics
	Log     *zap.Logger
}

// Tiers knows the state of every tier, by level.
//
// A tier rests while it is full, away, or cannot be written to. What needs it waits without trying, longer each time. What
// leaves a full tier does not wait. A tier is suspect when it has reported an I/O error, is read-only, or has wrong
// permissions. It stays suspect until a move that used it, or a release that removed something there, has succeeded.
type Tiers struct {
	o Options

	mu      sync.Mutex
	until   map[string]time.Time // end of the rest
	rests   map[string]int       // in a row
	full    map[string]bool      // the last error was that it is full
	suspect map[string]error
}

// New makes a Tiers.
func New(o Options) *Tiers {
	return &Tiers{o: o, until: map[string]time.Time{}, rests: map[string]int{}, full: map[string]bool{}, suspect: map[string]error{}}
}

// Suspects names the suspect tiers; nil where there is none.
func (t *Tiers) Suspects() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	for _, level := range slices.Sorted(maps.Keys(t.suspect)) {
		errs = append(errs, fmt.Errorf("level %s is suspect: %w", level, t.suspect[level]))
	}
	return errors.Join(errs...)
}

// Check returns an error of kind fault.Busy while one of the tiers rests.
func (t *Tiers) Check(levels ...string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range levels {
		if time.Now().Before(t.until[l]) {
			return fault.New(fault.Busy, "wait for tier", l, nil)
		}
	}
	return nil
}

// Failed takes note of the error of a move or a release, and returns it. target is the level that was to be written to.
// No item is at fault for a tier that fails. So where the target cannot be written to at all, the returned error is of
// kind fault.TierRefused, which counts no attempt.
func (t *Tiers) Failed(err error, target policy.Level) error {
	var e *fault.Error
	if !errors.As(err, &e) || e.Level == "" {
		return err
	}
	t.note(e, err, target.Name)
	if e.Kind != fault.Suspect || e.Level != target.Name || t.o.Probe(target) == nil {
		return err
	}
	return &fault.Error{Kind: fault.TierRefused, Op: "write to tier", Subject: target.Name, Err: err, Level: target.Name}
}

// CheckSource is Check for a tier that is only read, or that gets room: a full tier does not rest for that.
func (t *Tiers) CheckSource(level string) error {
	t.mu.Lock()
	full := t.full[level]
	t.mu.Unlock()
	if full {
		return nil
	}
	return t.Check(level)
}

func (t *Tiers) note(e *fault.Error, err error, target string) {
	switch e.Kind {
	case fault.NoSpace, fault.TierRefused, fault.Suspect:
	default:
		return
	}
	t.o.Metrics.TierError(e.Level, string(e.Kind))
	t.mu.Lock()
	defer t.mu.Unlock()
	if e.Kind == fault.Suspect {
		if t.suspect[e.Level] == nil {
			t.o.Log.Error("a tier is suspect", zap.String("level", e.Level), zap.Error(err))
		}
		t.suspect[e.Level] = err
		t.o.Metrics.TierSuspect(e.Level, true)
		if e.Level != target { // a source with one file that cannot be read may have others that can
			return
		}
	}
	t.rests[e.Level]++
	t.full[e.Level] = e.Kind == fault.NoSpace
	t.until[e.Level] = time.Now().Add(min(minRest<<min(t.rests[e.Level]-1, 10), maxRest))
}

// Worked ends the rest and the suspicion of tiers that a move or a release has used.
func (t *Tiers) Worked(levels ...string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range levels {
		delete(t.until, l)
		delete(t.rests, l)
		delete(t.full, l)
		if t.suspect[l] != nil {
			delete(t.suspect, l)
			t.o.Metrics.TierSuspect(l, false)
			t.o.Log.Info("a tier is not suspect any more", zap.String("level", l))
		}
	}
}
