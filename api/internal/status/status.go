// Package status makes one document that says how everything is, and what waits for a human. The api makes its sentences, so all
// who show them agree.
package status

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
)

// levelsTime bounds the wait for the levels. Without them the document has those that were read last.
const levelsTime = time.Second

// Reader makes the document. Store, Levels and Living are required. It is safe for concurrent use.
type Reader struct {
	Store  *state.Store
	Levels func(context.Context) ([]policy.Level, error) // ascending: catalog.Catalog.Levels
	Living time.Duration                                 // how long a worker's heartbeat counts

	mu   sync.Mutex
	last []policy.Level
}

// Read makes the document. It fails where Redis cannot be asked. What it asks of Redis does not grow with what waits.
func (r *Reader) Read(ctx context.Context) (client.Status, error) {
	d := client.Status{At: event.FormatTime(time.Now()), Services: []client.Service{}, Dead: []client.DeadKind{}, Unreachable: []client.Unreachable{}}
	services, err := r.Store.Services(ctx, r.Living)
	if err != nil {
		return d, err
	}
	levels := make(chan []policy.Level, 1)
	go func() { levels <- r.levels(ctx) }()
	for _, v := range services {
		d.Services = append(d.Services, describeService(v))
	}
	load, err := r.Store.Load(ctx)
	if err != nil {
		return d, err
	}
	describeLoad(&d, load, grace(services))
	var oldest *state.Waiting
	if d.Waiting, oldest, err = r.Store.WaitingSummary(ctx); err != nil {
		return d, err
	}
	for _, n := range d.Waiting {
		d.WaitingTotal += n
	}
	if oldest != nil {
		one := DescribeWaiting(r.Store.Keys(), *oldest)
		d.OldestWait = &one
	}
	if d.Paused, err = r.Store.Paused(ctx); err != nil {
		return d, err
	}
	if d.Unreachable, err = Unreachable(ctx, r.Store); err != nil {
		return d, err
	}
	d.Rates = rates(services)
	d.Tiers = tiers(<-levels, state.Tiers(services))
	d.Attention = Attention(d, blaming(services))
	return d, nil
}

// levels returns the levels, or those of the last time.
func (r *Reader) levels(ctx context.Context) []policy.Level {
	ctx, cancel := context.WithTimeout(ctx, levelsTime)
	defer cancel()
	levels, err := r.Levels(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		r.last = levels
	}
	return r.last
}

func describeService(v state.Service) client.Service {
	one := client.Service{Program: v.Program, ID: v.ID, Version: v.Version, Alive: v.Alive, Ready: v.Alive && len(v.Missing) == 0,
		AgeMS: v.Age.Milliseconds(), Missing: orEmpty(v.Missing), Warnings: orEmpty(v.Warnings)}
	if !v.StartedAt.IsZero() {
		at := event.FormatTime(v.StartedAt)
		one.StartedAt = &at
	}
	return one
}

func describeLoad(d *client.Status, load state.Load, grace time.Duration) {
	for _, s := range load.Stages {
		one := client.Stage{Stage: s.Stage, Unsettled: s.Unsettled, OldestMS: s.Oldest.Milliseconds()}
		if s.Stage == state.StageRelease {
			one.GraceMS = grace.Milliseconds()
		}
		d.Stages = append(d.Stages, one)
	}
	d.DeadTotal = load.DeadTotal()
	for kind, n := range load.Dead {
		d.Dead = append(d.Dead, client.DeadKind{Stage: kind.Stage, Reason: kind.Reason, Count: n})
	}
	slices.SortFunc(d.Dead, func(a, b client.DeadKind) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.Stage, b.Stage), strings.Compare(a.Reason, b.Reason))
	})
}

// grace is the longest that a relocator has reported, also one that has died.
func grace(services []state.Service) (longest time.Duration) {
	for _, v := range services {
		longest = max(longest, time.Duration(v.GraceMS)*time.Millisecond)
	}
	return longest
}

// rates sums what living services report.
func rates(services []state.Service) (r client.Rates) {
	for _, v := range services {
		if v.Alive {
			r.Views += v.Rates[state.RateViews]
			r.Moves += v.Rates[state.RateMoves]
			r.Bytes += v.Rates[state.RateBytes]
		}
	}
	return r
}

// DescribeWaiting is an entry that waits, as JSON shows it.
func DescribeWaiting(keys state.Keys, w state.Waiting) client.WaitingEntry {
	one := client.WaitingEntry{Stream: w.Stream, EntryID: w.Entry.Text(keys), CID: w.CID, WorkerID: w.Worker, Reason: w.Reason,
		Error: w.Error, Since: event.FormatTime(w.Since), Attempts: w.Attempts}
	if !w.Next.IsZero() {
		at := event.FormatTime(w.Next)
		one.NextTry = &at
	}
	return one
}

// Unreachable lists the sets of tiers that entries wait for and that no living relocator reaches together.
func Unreachable(ctx context.Context, store *state.Store) ([]client.Unreachable, error) {
	missing, err := store.Unreachable(ctx)
	list := []client.Unreachable{}
	for _, tiers := range slices.Sorted(maps.Keys(missing)) {
		list = append(list, client.Unreachable{Tiers: strings.Split(tiers, ","), SeenAt: event.FormatTime(missing[tiers])})
	}
	return list, err
}

func orEmpty(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}
