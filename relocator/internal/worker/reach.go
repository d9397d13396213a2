package worker

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
)

// Peers knows the other relocators: assignment.Assignment.
type Peers interface {
	// Capable names a living one that attends to the partition and reaches the tiers, "" where there is none.
	Capable(partition int, key string, tiers ...string) string
}

// Reach is which tiers this relocator reaches, and who reaches the others. One may serve several workers.
type Reach struct {
	Me    state.Worker
	Peers Peers // not asked where Me reaches all

	mu     sync.Mutex
	nobody map[string]bool // sets of tiers that no living relocator reaches
}

// elsewhere is the error of work on tiers that this host does not reach.
type elsewhere struct{ tiers []string }

func (e *elsewhere) Error() string {
	return "this host does not reach " + strings.Join(e.tiers, " and ")
}

// check is nil where all these tiers are reached from here.
func (r *Reach) check(tiers ...string) error {
	if r == nil || r.Me.Reaches(tiers...) {
		return nil
	}
	slices.Sort(tiers)
	return &elsewhere{slices.Compact(tiers)}
}

// handOver gives an entry to a relocator that reaches what it needs, where the error is that we do not. Where nobody
// does it stays pending with us, is reported, and is looked at again now and then; no attempt is counted. false: the
// error is another one.
func (o Options) handOver(d *stream.Delivery, group string, err error) bool {
	var far *elsewhere
	if !errors.As(err, &far) {
		return false
	}
	ctx, cancel := soon(d)
	defer cancel()
	_, partition, _ := o.Store.Keys().OfStream(d.Stream)
	to := o.Reach.Peers.Capable(partition, d.ID, far.tiers...)
	if o.Reach.changed(far.tiers, to == "") {
		if to == "" {
			o.Log.Error("no living relocator reaches these tiers: what needs them waits. Start one, or set TIERFLOW_TIERS",
				zap.Strings("tiers", far.tiers), zap.String("entry", d.ID), zap.String("cid", d.Values["cid"]))
		} else {
			_ = o.Store.ClearUnreachable(ctx, far.tiers...) // else it is forgotten by itself
			o.Log.Info("there is a relocator again that reaches these tiers", zap.Strings("tiers", far.tiers), zap.String("worker", to))
		}
	}
	if to == "" {
		o.Metrics.unreachable(far.tiers)
		_ = o.Store.MarkUnreachable(ctx, far.tiers...) // only for the eye; the next look tells again
		d.Later(max(o.Lease, time.Second))
		return true
	}
	if _, err := o.Store.Reassign(ctx, d.Stream, group, o.Reach.Me.ID, d.ID, to); err != nil {
		o.Trouble()
		d.Later(0)
		return true
	}
	o.Metrics.handed()
	d.Settled() // for us: it is theirs now, or somebody else's
	return true
}

// changed tells whether it is news that nobody reaches the tiers, or that somebody does again.
func (r *Reach) changed(tiers []string, nobody bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := strings.Join(tiers, ",")
	was := r.nobody[key]
	if was == nobody {
		return false
	}
	if r.nobody == nil {
		r.nobody = map[string]bool{}
	}
	r.nobody[key] = nobody
	return true
}

// Unreachable are the sets of tiers that this relocator's entries wait for in vain.
func (r *Reach) Unreachable() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := []string{}
	for tiers, nobody := range r.nobody {
		if nobody {
			all = append(all, tiers)
		}
	}
	slices.Sort(all)
	return all
}
