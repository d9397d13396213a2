// Package reach knows which tiers this host reaches, and reassigns entries that need others to a relocator that reaches
// them. It touches Redis, through shared/state: it reassigns entries, and marks tiers that no relocator reaches.
package reach

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/relocator/internal/lease"
	"github.com/tierflow/tierflow/relocator/internal/metrics"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
)

// Options of New. All are required, but Capable where Self reaches all tiers.
type Options struct {
	Store *state.Store
	Self  state.Worker
	// Capable names a living relocator that has the partition and reaches the tiers, "" where there is none:
	// assignment.Assignment.Capable.
	Capable      func(partition int, key string, tiers ...string) string
	Lease        time.Duration // of locks
	ServerFailed func()        // called when Redis failed
	Metrics      *metrics.Metrics
	Log          *zap.Logger
}

// Reach is safe for concurrent use. One may serve several handlers.
type Reach struct {
	o Options

	mu          sync.Mutex
	unreachable map[string]bool // by set of tiers: no living relocator reaches them
}

// New makes a Reach.
func New(o Options) *Reach { return &Reach{o: o, unreachable: map[string]bool{}} }

// notReached is the error of work on tiers that this host does not reach.
type notReached struct{ tiers []string }

func (e *notReached) Error() string {
	return "this host does not reach " + strings.Join(e.tiers, " and ")
}

// Check returns an error for Reassign where this host does not reach all these tiers.
func (r *Reach) Check(tiers ...string) error {
	if r.o.Self.Reaches(tiers...) {
		return nil
	}
	slices.Sort(tiers)
	return &notReached{slices.Compact(tiers)}
}

// Reassign gives an entry to a relocator that reaches the tiers it needs, where err is one of Check. Where there is no such
// relocator, the entry stays pending here and is tried again now and then. That counts no attempt. false: err is another
// error, and nothing was done.
func (r *Reach) Reassign(d *stream.Delivery, group string, err error) bool {
	var e *notReached
	if !errors.As(err, &e) {
		return false
	}
	ctx, cancel := lease.Fenced(d)
	defer cancel()
	_, partition, _ := r.o.Store.Keys().OfStream(d.Stream)
	to := r.o.Capable(partition, d.ID, e.tiers...)
	if r.changed(e.tiers, to == "") {
		if to == "" {
			r.o.Log.Error("no living relocator reaches these tiers, and what needs them waits: start one, or set TIERFLOW_TIERS",
				zap.Strings("tiers", e.tiers), zap.String("entry", d.ID), zap.String("cid", d.Values["cid"]))
		} else {
			_ = r.o.Store.ClearUnreachable(ctx, e.tiers...) // else the mark expires
			r.o.Log.Info("a relocator reaches these tiers again", zap.Strings("tiers", e.tiers), zap.String("worker", to))
		}
	}
	if to == "" {
		r.o.Metrics.Unreachable(e.tiers)
		_ = r.o.Store.MarkUnreachable(ctx, e.tiers...) // visible only; the next try marks them again
		d.Reason, d.Cause = "unreachable", err
		d.Later(max(r.o.Lease, time.Second))
		return true
	}
	if _, err := r.o.Store.Reassign(ctx, d.Stream, group, r.o.Self.ID, d.ID, to); err != nil {
		r.o.ServerFailed()
		d.Reason, d.Cause = "server", err
		d.Later(0)
		return true
	}
	r.o.Metrics.Reassigned()
	d.Settled() // here: the entry is pending with another relocator now
	return true
}

// changed notes whether some relocator reaches the tiers, and says whether that has changed.
func (r *Reach) changed(tiers []string, unreachable bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := strings.Join(tiers, ",")
	if r.unreachable[key] == unreachable {
		return false
	}
	r.unreachable[key] = unreachable
	return true
}

// Unreachable are the sets of tiers that entries of this relocator wait for and no relocator reaches. Each is sorted and
// joined with commas.
func (r *Reach) Unreachable() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := []string{}
	for tiers, unreachable := range r.unreachable {
		if unreachable {
			all = append(all, tiers)
		}
	}
	slices.Sort(all)
	return all
}
