package assignment

import (
	"context"
	"slices"
	"time"

	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
)

// waitShown is how long an entry must have waited to be listed. Most waits for a lock or a slot are over sooner, and the list
// would cost more than the work.
const waitShown = 3 * time.Second

// report tells Redis which entries wait here, and why. It is for people to read: nothing depends on it.
func (a *Assignment) report(ctx context.Context, waiting *state.WaitingAt, running map[int]*work) error {
	r := state.WaitingReport{Counts: map[string]int{}}
	var all []stream.Wait
	var idle []stream.Group
	for _, w := range running {
		for _, c := range w.consumers {
			for reason, n := range c.Waiting() {
				r.Counts[word(reason)] += n
			}
			all = append(all, c.Waits(waitShown)...)
			idle = append(idle, c.Unconsumed()...)
		}
	}
	a.mu.Lock()
	a.idle = idle
	a.mu.Unlock()
	all = slices.DeleteFunc(all, func(w stream.Wait) bool { return w.Reason == state.WaitingGrace })
	slices.SortFunc(all, func(x, y stream.Wait) int { return x.Since.Compare(y.Since) })
	for _, w := range all[:min(len(all), state.MaxWaiting)] {
		r.Listed = append(r.Listed, a.describe(w))
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return waiting.Report(ctx, r)
}

// word is the reason that people read.
func word(reason string) string {
	if reason == "" {
		return "retry"
	}
	return reason
}

func (a *Assignment) describe(w stream.Wait) state.Waiting {
	one := state.Waiting{Stream: w.Stream, Entry: state.Ref{ID: w.ID}, CID: w.Values["cid"], Reason: word(w.Reason), Since: w.Since,
		Attempts: w.Attempts, Next: w.Next}
	if name, p, ok := a.o.Store.Keys().StreamName(w.Stream); ok {
		one.Stream, one.Entry.Partition = name, p
	}
	if w.Cause != nil {
		one.Error = w.Cause.Error()
	}
	return one
}
