package tierhealth

import "time"

// settling is how long a tier that can be used again is shown as it was. A look does not tell whether there is room. So a full tier
// that moves wait for is usable for a moment, again and again.
const settling = 3 * time.Second

// Suspect is the Status.State of a tier that can be used and has failed before.
const Suspect = "suspect"

// Status is what is known of a tier without a look at it.
type Status struct {
	State   string // as the package comment names them, or Suspect
	Err     error  // why it is not usable
	Waiting int    // entries that wait for it here
}

// Usable reports whether the tier can be used, and nothing is held against it.
func (s Status) Usable() bool { return s.State == string(usable) }

// Hangs reports whether file operations there do not return.
func (s Status) Hangs() bool { return s.State == string(hanging) }

// Full reports whether the tier takes no new copies because they have no room.
func (s Status) Full() bool { return s.State == string(full) }

// Status returns what is known of each tier that was needed, by level. It touches no tier, and waits for none.
func (t *Tiers) Status() map[string]Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := map[string]Status{}
	for level, h := range t.tiers {
		if h.state == unknown {
			continue
		}
		s := Status{State: string(h.state), Err: h.err}
		if h.state == usable && h.bad.State != "" && (h.trial > 0 || time.Since(h.freed) < settling) {
			s = h.bad
		}
		s.Waiting = len(h.waiters)
		all[level] = s
	}
	for level, s := range t.suspect {
		if known, ok := all[level]; !ok || known.Usable() {
			all[level] = Status{State: Suspect, Err: s.err, Waiting: known.Waiting}
		}
	}
	return all
}
