// Package tierhealth remembers which tiers do not work, so that what needs them waits and everything else goes on. It
// learns from the errors and successes of moves and releases, and from file operations that do not return. It touches a tier
// only to find out whether the tier can be used.
//
// The state of a tier says what the tier can be used for:
//
//	usable    everything
//	unknown   nothing, until the first look, at the first use
//	away      nothing: it is not mounted, or it is another one
//	failing   reading: it is read-only, or its disk fails
//	full      everything but new copies
//	hanging   nothing: a file operation on it has not returned, nor has a look at the tier
//
// One goroutine per tier looks whether the tier can be used again (probe.go). What waits for the tier is woken once, then.
package tierhealth

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/metrics"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/stream"
)

// Options of New. All are required, except where noted.
type Options struct {
	Levels  func(context.Context) (policy.Policy, error) // as they are now: catalog.Catalog.Policy
	Look    func(policy.Level) error                     // nil where the level's tier is there: mover.Mover.Look
	Probe   func(policy.Level) error                     // nil where it can be written to: mover.Mover.Probe
	Slow    func(than time.Duration) (paths []string)    // file operations in flight that began longer ago: fsys.InFlight.Slow
	Hangs   func(level string, hangs bool)               // called when a tier begins to hang, and when it answers; may be nil
	Metrics *metrics.Metrics
	Log     *zap.Logger
}

// Use is what a tier is needed for.
type Use int

// Uses of a tier.
const (
	Read   Use = iota // the source of a move, and the copy that a release compares
	Remove            // a release, and the sweep
	Write             // the target of a move
)

// state is the state of a tier.
type state string

const (
	usable  state = "usable"
	unknown state = "unknown"
	away    state = "away"
	failing state = "failing"
	full    state = "full"
	hanging state = "hanging"
)

// states are those that the metric has.
var states = []string{string(usable), string(unknown), string(away), string(failing), string(full), string(hanging)}

func (s state) allows(u Use) bool {
	switch s {
	case usable:
		return true
	case failing:
		return u == Read
	case full:
		return u != Write
	}
	return false
}

// Tiers knows the state of every tier, by level. It is safe for concurrent use.
//
// A tier is suspect when it has reported an I/O error, is read-only, or has wrong permissions. It stays suspect until a move
// that used it, or a release that removed something there, has succeeded. There is one exception. A tier that could not be
// written to, because it was read-only or had wrong permissions, is not suspect any more once a look can write to it. No move
// may use that tier for a long time.
type Tiers struct {
	o   Options
	ctx context.Context

	telling sync.Mutex // held while o.Hangs is called
	mu      sync.Mutex
	tiers   map[string]*health
	suspect map[string]suspicion
}

// suspicion says why a tier is suspect.
type suspicion struct {
	err    error
	closed bool // nothing could be written, because it is read-only or has wrong permissions
}

// health is what is known of one tier.
type health struct {
	level policy.Level // as it was when it was last needed
	state state
	err   error         // why it is not usable
	since time.Time     // of the state
	known chan struct{} // closed after the first look

	waiters map[string]*waiter
	queue   []*waiter // in the order in which they came; some may be gone from waiters

	looking bool      // its goroutine runs
	look    time.Time // when the look that is under way began; zero: none is
	looked  time.Time // when the last one has answered
	rests   int       // in a row, without anything that worked in between
	until   time.Time // end of the rest: no look before it
	trial   int       // how many of those that wait are woken at once; 0: all
	bad     Status    // why it was not usable last
	freed   time.Time // when it could be used again

	logged time.Time
	told   bool // the log says that it cannot be used
}

// waiter is an entry that waits for a tier.
type waiter struct {
	key  string
	use  Use
	wake func()
}

// New makes a Tiers. It watches the tiers until ctx ends.
func New(ctx context.Context, o Options) *Tiers {
	t := &Tiers{o: o, ctx: ctx, tiers: map[string]*health{}, suspect: map[string]suspicion{}}
	go t.watch()
	return t
}

// Need is a use of a tier.
type Need struct {
	Level policy.Level
	Use   Use
}

// unusable is the error of Check.
type unusable struct {
	level string
	state state
	use   Use
	err   error
}

func (e *unusable) Error() string {
	return fmt.Sprintf("level %s is %s: %v", e.level, e.state, e.err)
}
func (e *unusable) Unwrap() error { return e.err }

// Check returns an error of kind fault.TierRefused where a tier cannot be used for what it is needed for. Park lets an entry
// wait until it can. The first Check of a tier waits up to a second for the first look at it.
func (t *Tiers) Check(needs ...Need) error {
	enough := time.After(firstLook)
	for _, n := range needs {
		t.mu.Lock()
		known := t.health(n.Level).known
		t.mu.Unlock()
		select {
		case <-known:
		case <-enough:
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range needs {
		h := t.health(n.Level)
		if !h.state.allows(n.Use) {
			return &fault.Error{Kind: fault.TierRefused, Op: "wait for tier", Subject: n.Level.Name, Level: n.Level.Name,
				Err: &unusable{n.Level.Name, h.state, n.Use, h.err}}
		}
	}
	return nil
}

// CheckRemove is Check for the sweep.
func (t *Tiers) CheckRemove(level policy.Level) error { return t.Check(Need{level, Remove}) }

// health returns what is known of a tier. Of a new one it begins to find out. The caller has the lock.
func (t *Tiers) health(level policy.Level) *health {
	h := t.tiers[level.Name]
	if h == nil {
		h = &health{state: unknown, err: errors.New("it was not looked at yet"), since: time.Now(), waiters: map[string]*waiter{}, known: make(chan struct{})}
		t.tiers[level.Name] = h
		h.level = level
		t.keepLooking(h)
	}
	h.level = level
	return h
}

// Park lets an entry wait until the tier can be used that err is about: an error of Check, or of a move or a release that has
// failed because of a tier. false: err is another error, and nothing was done.
func (t *Tiers) Park(d *stream.Delivery, err error) bool {
	var e *fault.Error
	if !errors.As(err, &e) || e.Level == "" || e.Kind != fault.TierRefused && e.Kind != fault.NoSpace {
		return false
	}
	use := Write
	var u *unusable
	if errors.As(err, &u) {
		use = u.use
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.tiers[e.Level]
	if h == nil {
		return false
	}
	d.Reason, d.Cause = "tier-"+string(h.state), err
	if h.state.allows(use) { // since a moment ago
		d.Later(0)
		return true
	}
	w := &waiter{d.Stream + " " + d.ID, use, func() { d.Wake() }}
	h.waiters[w.key] = w
	h.queue = append(h.queue, w)
	d.Await()
	return true
}

// Problems names the tiers that hang, those that cannot be written to, and those that are suspect; nil where there is none.
func (t *Tiers) Problems() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	for _, level := range slices.Sorted(maps.Keys(t.tiers)) {
		switch h := t.tiers[level]; h.state {
		case hanging:
			errs = append(errs, fmt.Errorf("level %s hangs: %w", level, h.err))
		case failing:
			errs = append(errs, fmt.Errorf("level %s cannot be written to: %w", level, h.err))
		}
	}
	for _, level := range slices.Sorted(maps.Keys(t.suspect)) {
		errs = append(errs, fmt.Errorf("level %s is suspect: %w", level, t.suspect[level].err))
	}
	return errors.Join(errs...)
}

// Failed takes note of the error of a move or a release, and returns it. target is the level that was to be written to.
// No item is at fault for a tier that fails. So where the target cannot be written to at all, the returned error is of
// kind fault.TierRefused, which counts no attempt.
func (t *Tiers) Failed(err error, target policy.Level) error {
	var e *fault.Error
	if !errors.As(err, &e) || e.Level == "" {
		return err
	}
	switch e.Kind {
	case fault.NoSpace:
		t.o.Metrics.TierError(e.Level, string(e.Kind))
		t.block(e.Level, full, err)
	case fault.TierRefused:
		t.o.Metrics.TierError(e.Level, string(e.Kind))
		t.block(e.Level, away, err)
	case fault.Suspect:
		t.o.Metrics.TierError(e.Level, string(e.Kind))
		if e.Level != target.Name || t.o.Probe(target) == nil { // a source with one bad file may have others that can be read
			if e.Level != target.Name || !errors.Is(err, unix.EROFS) { // else it was read-only, and it is not any more
				t.suspects(e.Level, suspicion{err: err})
			}
			return err
		}
		t.suspects(e.Level, suspicion{err, isAny(err, unix.EROFS, unix.EACCES, unix.EPERM)})
		t.block(e.Level, failing, err)
		return &fault.Error{Kind: fault.TierRefused, Op: "write to tier", Subject: target.Name, Err: err, Level: target.Name}
	}
	return err
}

func isAny(err error, kinds ...error) bool {
	return slices.ContainsFunc(kinds, func(k error) bool { return errors.Is(err, k) })
}

func (t *Tiers) suspects(level string, s suspicion) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before, already := t.suspect[level]
	if !already {
		t.o.Log.Error("a tier is suspect", zap.String("level", level), zap.Error(s.err))
	}
	s.closed = s.closed && (!already || before.closed) // an I/O error counts until something has worked
	t.suspect[level] = s
	t.o.Metrics.TierSuspect(level, true)
}

// trusts ends a suspicion. The caller has the lock.
func (t *Tiers) trusts(level string) {
	if _, suspect := t.suspect[level]; suspect {
		delete(t.suspect, level)
		t.o.Metrics.TierSuspect(level, false)
		t.o.Log.Info("a tier is not suspect any more", zap.String("level", level))
	}
}

// block notes that a tier cannot be used.
func (t *Tiers) block(level string, to state, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.tiers[level]
	if h == nil || h.state != usable {
		return // others have noted it, or its goroutine finds out
	}
	h.rests++
	h.until = time.Now().Add(rest(h.rests, maxRest))
	if to == full || h.rests > 1 { // a look does not tell whether there is room, and has been wrong before
		h.trial = minTrial
	}
	t.change(h, to, err)
	t.keepLooking(h)
}

// Worked notes that a move or a release has used these tiers.
func (t *Tiers) Worked(levels ...string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range levels {
		if h := t.tiers[l]; h != nil {
			h.rests = 0
		}
		t.trusts(l)
	}
}
