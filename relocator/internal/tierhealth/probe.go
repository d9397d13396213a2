package tierhealth

import (
	"context"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/policy"
)

const (
	// slowAfter is how long a file operation, and then a look, may take before the tier hangs. A disk answers within milliseconds,
	// one that is overloaded within seconds. So an operation that takes longer makes the tier be looked at, and only a look that
	// takes as long shows that it is the tier.
	slowAfter = 3 * time.Second
	// watchEvery is how often operations in flight are looked at.
	watchEvery = 500 * time.Millisecond
	// firstLook is how long the first Check of a tier waits.
	firstLook = time.Second
	// doubtEvery is the least time between two looks that slow operations cause.
	doubtEvery = 5 * time.Second
	// A tier rests for a second, then for two, and so on. The limit is maxLookRest where a look has failed, and maxRest where moves
	// have.
	minRest     = time.Second
	maxLookRest = 5 * time.Second
	maxRest     = 30 * time.Second
	// minTrial is how many entries are woken at first where only a move shows whether the tier can be used. Each second after
	// that, four times as many are.
	minTrial = 8
	// logEvery is how often a state is logged while it lasts.
	logEvery = time.Minute
)

func rest(n int, most time.Duration) time.Duration {
	return min(minRest<<min(max(n-1, 0), 10), most)
}

// watch finds operations and looks that do not return.
func (t *Tiers) watch() {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-t.ctx.Done():
			return
		case <-tick.C:
		}
		slow := t.o.Slow(slowAfter)
		t.mu.Lock()
		var hangs []string
		for name, h := range t.tiers {
			if !h.looking && h.holdsAny(slow, t.tiers) && time.Since(h.looked) > doubtEvery {
				t.keepLooking(h)
			}
			if since := h.look; !since.IsZero() && time.Since(since) > slowAfter && h.state != hanging {
				h.trial = 0
				t.change(h, hanging, fmt.Errorf("no file operation there has returned since %s: look at the disk and the kernel's log",
					since.UTC().Format(time.RFC3339)))
				hangs = append(hangs, name)
			}
			t.remind(h)
		}
		t.mu.Unlock()
		for _, name := range hangs {
			t.tellHangs(name)
		}
	}
}

// tellHangs passes on whether a tier hangs. Of two calls at the same time, the later one passes on what holds then.
func (t *Tiers) tellHangs(level string) {
	if t.o.Hangs == nil {
		return
	}
	t.telling.Lock()
	defer t.telling.Unlock()
	t.mu.Lock()
	hangs := t.tiers[level].state == hanging
	t.mu.Unlock()
	t.o.Hangs(level, hangs)
}

// holdsAny reports whether one of the paths is on the tier, and not on one that lies below it.
func (h *health) holdsAny(paths []string, all map[string]*health) bool {
	for _, p := range paths {
		deepest := (*health)(nil)
		for _, o := range all {
			if o.holds(p) && (deepest == nil || len(o.level.Path) > len(deepest.level.Path)) {
				deepest = o
			}
		}
		if deepest == h {
			return true
		}
	}
	return false
}

func (h *health) holds(path string) bool {
	return strings.HasPrefix(path+"/", strings.TrimSuffix(h.level.Path, "/")+"/")
}

// keepLooking starts the goroutine that looks at a tier until it can be used. The caller has the lock.
func (t *Tiers) keepLooking(h *health) {
	if !h.looking {
		h.looking = true
		go t.lookUntilUsable(h)
	}
}

func (t *Tiers) lookUntilUsable(h *health) {
	for n := 1; ; n++ {
		t.mu.Lock()
		wait := time.Until(h.until)
		t.mu.Unlock()
		select {
		case <-t.ctx.Done():
			return
		case <-time.After(wait):
		}
		level, known := t.current(h)
		t.mu.Lock()
		h.look = time.Now()
		t.mu.Unlock()
		found, err := usable, error(nil)
		if known {
			found, err = t.find(level)
		}
		if t.answered(h, found, err, n) {
			return
		}
	}
}

// current returns the level as it is now, because an operator may have mended its path. false: there is no such level any more.
func (t *Tiers) current(h *health) (policy.Level, bool) {
	t.mu.Lock()
	level := h.level
	t.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.ctx, slowAfter)
	defer cancel()
	levels, err := t.o.Levels(ctx)
	if err != nil {
		return level, true
	}
	return levels.Level(level.Name)
}

// find looks at a tier. This may take for ever.
func (t *Tiers) find(level policy.Level) (state, error) {
	if err := t.o.Look(level); err != nil {
		return away, err
	}
	if err := t.o.Probe(level); err != nil {
		return failing, err
	}
	return usable, nil
}

// answered notes what the n-th look has found. true: the tier can be used, and nobody need look any more.
func (t *Tiers) answered(h *health, found state, err error, n int) bool {
	t.mu.Lock()
	if h.looked.IsZero() {
		close(h.known)
	}
	h.look, h.looked = time.Time{}, time.Now()
	hung := h.state == hanging
	over := found == usable
	if !over {
		h.until = time.Now().Add(rest(n, maxLookRest))
	}
	t.change(h, found, err)
	if found == usable && t.suspect[h.level.Name].closed {
		t.trusts(h.level.Name)
	}
	var woken []*waiter
	if over && h.trial > 0 {
		woken = h.take(h.trial)
		h.trial *= 4
		h.until = time.Now().Add(minRest)
		if over = len(h.waiters) == 0; over {
			h.trial = 0
		}
	} else {
		woken = h.take(len(h.queue))
	}
	h.looking = !over
	name := h.level.Name
	t.mu.Unlock()
	if hung {
		t.tellHangs(name)
	}
	for _, w := range woken {
		w.wake()
	}
	return over
}

// take takes up to n of those out that wait for something that the tier allows now.
func (h *health) take(n int) (taken []*waiter) {
	var left []*waiter
	for _, w := range h.queue {
		switch {
		case h.waiters[w.key] != w: // the entry has come again and waits at another place
		case len(taken) < n && h.state.allows(w.use):
			delete(h.waiters, w.key)
			taken = append(taken, w)
		default:
			left = append(left, w)
		}
	}
	h.queue = left
	return taken
}

// change gives a tier another state. The log says when a tier cannot be used and when it can, but a state that comes and goes
// is logged once a minute. The caller has the lock.
func (t *Tiers) change(h *health, to state, err error) {
	from := h.state
	h.state, h.err = to, err
	if from == to {
		return
	}
	now := time.Now()
	if to != usable {
		h.bad = Status{State: string(to), Err: err}
	} else {
		h.freed = now
	}
	t.o.Metrics.TierState(h.level.Name, string(to), states)
	switch {
	case to == usable:
		if h.told {
			t.o.Log.Info("a tier can be used again", zap.String("level", h.level.Name), zap.String("was", string(from)),
				zap.Duration("for", now.Sub(h.since)), zap.Int("waiting", len(h.waiters)))
		}
		h.told = false
	case to == hanging || from == hanging || now.Sub(h.logged) >= logEvery:
		t.warn(h, "a tier cannot be used, and what needs it waits", now)
	}
	if from == usable || from == unknown {
		h.since = now
	}
}

// remind logs a state that lasts.
func (t *Tiers) remind(h *health) {
	if now := time.Now(); h.told && now.Sub(h.logged) >= logEvery {
		t.warn(h, "a tier still cannot be used", now)
	}
}

func (t *Tiers) warn(h *health, message string, now time.Time) {
	h.logged, h.told = now, true
	t.o.Log.Warn(message, zap.String("level", h.level.Name), zap.String("state", string(h.state)),
		zap.Duration("for", now.Sub(h.since)), zap.Int("waiting", len(h.waiters)), zap.Error(h.err))
}
