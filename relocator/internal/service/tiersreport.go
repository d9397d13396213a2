package service

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/tier"
	"github.com/tierflow/tierflow/relocator/internal/tierhealth"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
)

// hangsAfter is how long a look may take before its tier hangs.
const hangsAfter = 3 * time.Second

// tiersSeen is what the looks of a tiersCheck have found, and what was reported of it. It is safe for concurrent use: a look
// ends when the tier lets it.
type tiersSeen struct {
	mu    sync.Mutex
	order []string // levels, in the order of their ranges
	tiers map[string]*tierSeen
}

// tierSeen is what is known of a tier.
type tierSeen struct {
	began    time.Time // of the look that is under way; zero: none is
	looked   bool      // a look has answered
	err      error     // of the last look
	distinct error     // it is not a folder of its own
	usage    fsys.Usage
	measured time.Time
	state    string
	since    time.Time // of the state
}

// keep takes note of the levels that there are.
func (s *tiersSeen) keep(levels []policy.Level) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := s.tiers
	s.order, s.tiers = nil, map[string]*tierSeen{}
	for _, l := range levels {
		s.order = append(s.order, l.Name)
		if s.tiers[l.Name] = known[l.Name]; s.tiers[l.Name] == nil {
			s.tiers[l.Name] = &tierSeen{}
		}
	}
}

// begins takes note of a look that begins.
func (s *tiersSeen) begins(level string, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.tiers[level]; t != nil {
		t.began = at
	}
}

// answers takes note of what a look has found.
func (s *tiersSeen) answers(level string, a tierAnswer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tiers[level]
	if t == nil {
		return // the level was removed meanwhile
	}
	t.began, t.looked, t.err = time.Time{}, true, a.err
	if a.usage.Total > 0 {
		t.usage, t.measured = a.usage, time.Now()
	}
}

// areDistinct takes note of what tier.CheckDistinct has found.
func (s *tiersSeen) areDistinct(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var f *fault.Error
	named := errors.As(err, &f)
	for level, t := range s.tiers {
		t.distinct = nil
		if named && f.Level == level {
			t.distinct = err
		}
	}
}

// reports says how each tier is, once it was looked at or hangs. hanging is how many moves and releases hang on a tier. It waits
// for no tier.
func (s *tiersSeen) reports(health map[string]tierhealth.Status, hanging func(level string) int) []state.TierReport {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []state.TierReport
	for _, level := range s.order {
		t, known := s.tiers[level], health[level]
		overdue := !t.began.IsZero() && now.Sub(t.began) > hangsAfter
		if !t.looked && !overdue && !known.Hangs() {
			continue
		}
		found, err := t.find(known, overdue)
		if found != t.state {
			t.state, t.since = found, now
			if overdue {
				t.since = t.began
			}
		}
		r := state.TierReport{Level: level, State: found, Since: t.since.UTC().Truncate(time.Microsecond), Waiting: known.Waiting + hanging(level)}
		if err != nil {
			r.Reason = err.Error()
		}
		if u := t.usage; u.Total > 0 {
			r.TierFigures = state.TierFigures{TotalBytes: u.Total, UsedBytes: u.Used, FreeBytes: u.Free, TotalInodes: u.Inodes,
				FreeInodes: u.FreeInodes, AgeMS: now.Sub(t.measured).Milliseconds()}
		}
		all = append(all, r)
	}
	return all
}

// find returns the worst state that something shows, and why.
func (t *tierSeen) find(health tierhealth.Status, overdue bool) (string, error) {
	type finding struct {
		state string
		err   error
	}
	found := []finding{{state.TierOK, nil}}
	if overdue {
		found = append(found, finding{state.TierHanging, fmt.Errorf("it has not answered since %s", t.began.UTC().Format(time.RFC3339))})
	}
	switch {
	case health.Hangs():
		found = append(found, finding{state.TierHanging, health.Err})
	case health.Full():
		found = append(found, finding{state.TierFull, health.Err})
	case health.State == tierhealth.Suspect:
		found = append(found, finding{state.TierSuspect, health.Err})
	}
	errs := []error{t.err, t.distinct}
	if health.State != "" && !health.Usable() && len(found) == 1 {
		errs = append(errs, health.Err)
	}
	for _, err := range errs {
		if err != nil {
			found = append(found, finding{stateOf(err), err})
		}
	}
	if u := t.usage; t.err == nil && u.Total > 0 {
		if spare := tier.Spare(u.Total); u.Free <= spare {
			found = append(found, finding{state.TierFull, fmt.Errorf("%d bytes are free, and %d must stay free", u.Free, spare)})
		}
		if u.Inodes > 0 && u.FreeInodes == 0 {
			found = append(found, finding{state.TierFull, errors.New("it has no inode left")})
		}
	}
	worst := slices.MinFunc(found, func(a, b finding) int { return state.CompareTierStates(a.state, b.state) })
	return worst.state, worst.err
}

// stateOf is the state of a tier that fails with an error.
func stateOf(err error) string {
	is := func(causes ...error) bool {
		return slices.ContainsFunc(causes, func(cause error) bool { return errors.Is(err, cause) })
	}
	switch {
	case is(unix.EROFS):
		return state.TierReadOnly
	case is(unix.ENOSPC, unix.EDQUOT):
		return state.TierFull
	case is(tier.ErrNoID):
		return state.TierNoIdentity
	case is(tier.ErrNoIdentity, unix.ENOENT, unix.ENOTDIR):
		return state.TierAway
	case is(unix.EIO, unix.EUCLEAN), fault.Is(err, fault.Suspect), fault.Is(err, fault.Internal):
		return state.TierFailing
	}
	return state.TierRefused
}
