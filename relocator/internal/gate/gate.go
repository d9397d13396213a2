// Package gate bounds how many moves, or releases, are made at once, and keeps room for each tier: no tier can take all slots,
// and no large copies can. What finds no slot waits in a queue and is called when it has one. The package touches nothing.
package gate

import (
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/tierflow/tierflow/shared/fault"
)

const (
	// maxLarge is how many large items are copied at once; more make a disk seek.
	maxLarge = 32
	// claimTime is how long a slot is kept for who was called. A caller that does not come has lost its entry.
	claimTime = 10 * time.Second
)

// Turn is an entry at the gate, from the start of its handler to its end.
type Turn struct {
	gate  *Gate
	key   any
	slot  *Slot // nil: it has none
	waits bool  // it is in the queue
}

// Turn begins the turn of an entry. The key is as for Take: a delivery. An entry that comes back after a wait has the same
// key, and a new delivery of the entry has another one.
func (g *Gate) Turn(key any) *Turn { return &Turn{gate: g, key: key} }

// Take takes a slot, as Gate.Take does. false: there is none, and the entry is in the queue.
func (t *Turn) Take(n Need, hangs func(), wake func() bool) bool {
	t.slot = t.gate.Take(t.key, n, hangs, wake)
	t.waits = t.slot == nil
	return !t.waits
}

// Grow makes the slot one of a large item. false: there is none, and the entry is in the queue.
func (t *Turn) Grow(wake func() bool) bool {
	t.waits = !t.slot.Grow(wake)
	return !t.waits
}

// End frees the slot. An entry that was called for a slot may need none any more, because a newer event has superseded it: then
// the next in the queue has it.
func (t *Turn) End() {
	t.slot.Free()
	if !t.waits {
		t.gate.Leave(t.key)
	}
}

// ErrNoSlot is for callers to say that they got no slot. It counts no attempt.
var ErrNoSlot error = fault.New(fault.Busy, "wait for", "a slot", errors.New("all that the tiers may have are taken"))

// Need says what slot a move or a release needs.
type Need struct {
	Source string // the level that is read
	Target string // the level that is changed
	Large  bool
}

// limits are what may be taken at once. Of the limit, a target leaves a quarter to others, and large items leave a quarter of
// that to small ones. A tier as source and target together leaves an eighth. So moves to a tier that hangs leave room for
// others also on the tier that they read. Each is at least 1.
type limits struct{ all, tier, target, large, largeTarget int }

func newLimits(all int) limits {
	share := func(n, part, of int) int { return max(n*part/of, 1) }
	target, large := share(all, 3, 4), min(share(all, 3, 4), maxLarge)
	return limits{all: all, tier: max(share(all, 7, 8), min(target+1, all)), target: target, large: large, largeTarget: share(large, 3, 4)}
}

// Gate hands out slots. It is safe for concurrent use.
type Gate struct {
	limits limits

	mu          sync.Mutex
	all, large  int
	tier        map[string]int
	target      map[string]int
	largeTarget map[string]int
	held        map[*Slot]bool
	hanging     map[string]bool
	queue       []*waiter
	waiting     map[any]*waiter // those of the queue, by key
	granted     map[any]*Slot   // slots whose waiters were called and have not come yet, by key
}

type waiter struct {
	key  any
	need Need
	wake func() bool
	slot *Slot // that it was called for
}

// New makes a Gate of so many slots.
func New(slots int) *Gate {
	return &Gate{limits: newLimits(slots), tier: map[string]int{}, target: map[string]int{}, largeTarget: map[string]int{},
		held: map[*Slot]bool{}, hanging: map[string]bool{}, waiting: map[any]*waiter{}, granted: map[any]*Slot{}}
}

// Slot is the right to use the tiers of a Need until Free.
type Slot struct {
	gate   *Gate
	key    any
	need   Need
	counts bool
	hangs  func()
	expiry *time.Timer // of a slot that waits for its waiter
}

// Take returns a slot, nil where there is none. In that case wake is called when there is one, and it is kept for ten seconds,
// until the next Take or Leave with this key. Where wake returns false, nobody waits any more, and the next in the queue has
// it. The key names who asks, and must be comparable. hangs is called when a tier of the slot hangs: the slot counts no more
// then, until the tier answers.
func (g *Gate) Take(key any, n Need, hangs func(), wake func() bool) *Slot {
	g.mu.Lock()
	defer g.unlock()
	if s := g.granted[key]; s != nil {
		s.expiry.Stop()
		delete(g.granted, key)
		if s.need.Source == n.Source && s.need.Target == n.Target {
			s.hangs = hangs
			return s
		}
		g.free(s)
	}
	if g.fits(n) {
		g.drop(key)
		return g.hold(key, n, hangs)
	}
	g.wait(key, n, wake)
	return nil
}

// Leave says that a key does not need a slot any more. It takes the key out of the queue, and frees the slot that is kept for
// it. A slot that the key has taken stays.
func (g *Gate) Leave(key any) {
	g.mu.Lock()
	defer g.unlock()
	g.drop(key)
	if s := g.granted[key]; s != nil {
		s.expiry.Stop()
		delete(g.granted, key)
		g.free(s)
	}
}

// Full reports whether there is no slot for anybody.
func (g *Gate) Full() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.all >= g.limits.all
}

// Free gives the slot back; nil is allowed.
func (s *Slot) Free() {
	if s == nil {
		return
	}
	s.gate.mu.Lock()
	defer s.gate.unlock()
	s.gate.free(s)
}

// Grow makes the slot one of a large item. false: there is none, and wake is called when there is. The caller frees the slot it
// has and calls Take then.
func (s *Slot) Grow(wake func() bool) bool {
	g := s.gate
	g.mu.Lock()
	defer g.unlock()
	if s.need.Large {
		return true
	}
	large := s.need
	large.Large = true
	g.count(s, false)
	if fits := g.fits(large); !fits {
		g.count(s, true)
		g.wait(s.key, large, wake)
		return false
	}
	s.need = large
	g.count(s, true)
	return true
}

// SetHanging says whether a tier hangs. Slots that use one do not count.
func (g *Gate) SetHanging(level string, hangs bool) {
	g.mu.Lock()
	g.hanging[level] = hangs
	var told []func()
	for s := range g.held {
		if s.need.Source != level && s.need.Target != level {
			continue
		}
		g.count(s, true)
		if hangs && s.hangs != nil {
			told = append(told, s.hangs)
		}
	}
	g.unlock()
	for _, hangs := range told {
		hangs()
	}
}

// Hanging is how many slots use a tier that hangs.
func (g *Gate) Hanging(level string) (n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.hanging[level] {
		return 0
	}
	for s := range g.held {
		if s.need.Source == level || s.need.Target == level {
			n++
		}
	}
	return n
}

func (g *Gate) hold(key any, n Need, hangs func()) *Slot {
	s := &Slot{gate: g, key: key, need: n, hangs: hangs}
	g.held[s] = true
	g.count(s, true)
	return s
}

func (g *Gate) free(s *Slot) {
	g.count(s, false)
	delete(g.held, s)
}

// count counts a slot, or does not. A slot of a tier that hangs never counts.
func (g *Gate) count(s *Slot, counts bool) {
	counts = counts && !g.hanging[s.need.Source] && !g.hanging[s.need.Target]
	if counts == s.counts {
		return
	}
	s.counts = counts
	n := map[bool]int{true: 1, false: -1}[counts]
	g.all += n
	g.tier[s.need.Target] += n
	g.target[s.need.Target] += n
	if s.need.Source != s.need.Target {
		g.tier[s.need.Source] += n
	}
	if s.need.Large {
		g.large += n
		g.largeTarget[s.need.Target] += n
	}
}

func (g *Gate) fits(n Need) bool {
	l := g.limits
	return g.all < l.all && g.tier[n.Source] < l.tier && g.tier[n.Target] < l.tier && g.target[n.Target] < l.target &&
		(!n.Large || g.large < l.large && g.largeTarget[n.Target] < l.largeTarget)
}

func (g *Gate) wait(key any, n Need, wake func() bool) {
	g.drop(key)
	w := &waiter{key: key, need: n, wake: wake}
	g.queue = append(g.queue, w)
	g.waiting[key] = w
}

// drop takes a key out of the queue.
func (g *Gate) drop(key any) {
	if w := g.waiting[key]; w != nil {
		delete(g.waiting, key)
		g.queue = slices.DeleteFunc(g.queue, func(o *waiter) bool { return o == w })
	}
}

// unlock gives free slots to those that wait, in their order, and calls them without the lock.
func (g *Gate) unlock() {
	var woken []*waiter
	if g.all >= g.limits.all || len(g.queue) == 0 {
		g.mu.Unlock()
		return
	}
	g.queue = slices.DeleteFunc(g.queue, func(w *waiter) bool {
		if !g.fits(w.need) {
			return false
		}
		woken = append(woken, w)
		delete(g.waiting, w.key)
		s := g.hold(w.key, w.need, nil)
		g.granted[w.key] = s
		s.expiry = time.AfterFunc(claimTime, func() { g.expire(s) })
		w.slot = s
		return true
	})
	g.mu.Unlock()
	for _, w := range woken {
		if !w.wake() {
			g.expire(w.slot)
		}
	}
}

// expire frees a slot whose waiter has not come.
func (g *Gate) expire(s *Slot) {
	g.mu.Lock()
	defer g.unlock()
	if g.granted[s.key] == s {
		s.expiry.Stop()
		delete(g.granted, s.key)
		g.free(s)
	}
}
