// Package ingest appends view events to Redis: many requests share one script call, and each is told when Redis
// has answered. It never sends an event twice: a reply that was lost is an error, and the client's next post is a
// new event.
package ingest

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/state"
)

// Limits that nobody has had a reason to set.
const (
	// MaxGroup is how many events one script call carries at most.
	// 256 events keep Redis busy for about a millisecond: long enough to be cheap, short enough for the others.
	MaxGroup = 256
	// queueLength is how many events may wait, over all lanes, and leastQueue in each.
	queueLength = 8192
	leastQueue  = 256
	// maxWait is the longest that a request waits for its turn; one that is older is refused unsent.
	maxWait = 2 * time.Second
	// tripTimeout is the longest that Redis may take for one call.
	tripTimeout = 3 * time.Second
	// pollEvery is how often the backlog is read while there is traffic.
	pollEvery = 200 * time.Millisecond
)

// Store is what ingest needs of state.Store. Its client must not retry.
type Store interface {
	Append(ctx context.Context, views []event.View) ([]string, error) // of one partition
	Unsettled(ctx context.Context) (int64, error)
	Keys() state.Keys
}

// Options of a Batcher. All are required.
type Options struct {
	Store      Store
	MaxBacklog int64 // unsettled entries of all streams, over which view events are refused
	Metrics    prometheus.Registerer
}

// Batcher groups appends. Run must be started.
type Batcher struct {
	store    Store
	keys     state.Keys
	lanes    []*lane
	stop     chan struct{} // no more requests come: finish what is queued
	backlog  backlog
	appended prometheus.Counter
	failed   prometheus.Counter
	sizes    prometheus.Histogram
	trips    prometheus.Histogram
}

// New makes a Batcher.
func New(o Options) *Batcher {
	b := &Batcher{
		store: o.Store, keys: o.Store.Keys(), stop: make(chan struct{}), backlog: backlog{limit: o.MaxBacklog},
		appended: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tierflow_ingest_events_total", Help: "View events that Redis has taken."}),
		failed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tierflow_ingest_failed_events_total", Help: "View events whose append failed or whose reply was lost."}),
		sizes: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "tierflow_ingest_group_size", Help: "View events in one script call.",
			Buckets: []float64{1, 2, 4, 8, 16, 32, 64, 128, MaxGroup}}),
		trips: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "tierflow_ingest_trip_seconds", Help: "Time of one script call.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 14)}),
	}
	n := b.keys.Partitions()
	for range n {
		b.lanes = append(b.lanes, newLane(max(queueLength/n, leastQueue)))
	}
	o.Metrics.MustRegister(b.appended, b.failed, b.sizes, b.trips,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "tierflow_backlog_events", Help: "Entries of all streams that are not settled, as last seen under traffic."},
			func() float64 { return float64(b.backlog.known.Load()) }))
	return b
}

// Run sends until Stop is called, and then what is still queued.
func (b *Batcher) Run() {
	var wg sync.WaitGroup
	for _, lane := range b.lanes {
		wg.Go(func() { b.send(lane) })
		wg.Go(func() { b.sendMore(lane) })
	}
	wg.Go(b.pollBacklog)
	wg.Wait()
}

// Stop ends Run once everything that is queued has been answered. It is called once.
func (b *Batcher) Stop() { close(b.stop) }

// Append appends one event. nil: it is in the stream. Errors are fault.Unavailable (it may be in the stream, or
// not) and fault.BacklogFull (it is not).
func (b *Batcher) Append(v event.View) error {
	if err := b.backlog.admit(1); err != nil {
		return err
	}
	g, err := b.lanes[b.laneOf(v)].join(v)
	if err != nil {
		b.backlog.giveBack(1)
		return err
	}
	<-g.done
	return g.err
}

// laneOf is the lane of a content's partition: a call touches one partition, and a server that is away holds up only its
// own.
func (b *Batcher) laneOf(v event.View) int { return b.keys.Partition(v.ID) }

// part is how many of a call's events went into a group.
type part struct {
	of     *group
	events int
}

// AppendAll appends events; those of one content stay in order. appended is how many of them are in the stream for
// certain, all of them unless there is an error, which is as that of Append. It waits for room in the queues.
func (b *Batcher) AppendAll(ctx context.Context, views []event.View) (appended int, err error) {
	byLane := make([][]event.View, len(b.lanes))
	for _, v := range views {
		l := b.laneOf(v)
		byLane[l] = append(byLane[l], v)
	}
	for more := true; more && err == nil; {
		// A part of each lane at a time: the next part of a lane must not overtake this one.
		var parts []part
		more = false
		for l, vs := range byLane {
			n := min(MaxGroup, len(vs))
			if n == 0 {
				continue
			}
			g, qerr := b.queue(ctx, b.lanes[l], vs[:n])
			if qerr != nil {
				err = qerr
				break
			}
			parts = append(parts, part{g, n})
			byLane[l] = vs[n:]
			more = more || len(byLane[l]) > 0
		}
		for _, p := range parts {
			<-p.of.done
			if p.of.err != nil {
				err = p.of.err
			} else {
				appended += p.events
			}
		}
	}
	return appended, err
}

// queue hands events of one lane over as soon as there is room.
func (b *Batcher) queue(ctx context.Context, l *lane, views []event.View) (*group, error) {
	if err := b.backlog.admit(len(views)); err != nil {
		return nil, err
	}
	full := time.NewTimer(maxWait)
	defer full.Stop()
	for {
		g, err := l.join(views...)
		if err == nil {
			return g, nil
		}
		if err == errFull {
			select {
			case <-l.oldest():
				continue // there is room, unless others were quicker
			case <-ctx.Done():
				err = fault.New(fault.Unavailable, "append views", "", ctx.Err())
			case <-full.C:
			}
		}
		b.backlog.giveBack(len(views))
		return nil, err
	}
}

// send is what one lane has under way: whatever has queued up meanwhile is the next call.
func (b *Batcher) send(l *lane) {
	for {
		if g := l.take(); g != nil {
			b.deliver(l, g)
			l.sent()
			continue
		}
		select {
		case <-l.kick:
		case <-b.stop:
			if l.end() {
				return
			}
		}
	}
}

// sendMore is a second call of the lane, for groups that grow no more while send has another one under way: Redis works on
// one while the next is made. One that can grow had better wait: each call costs the same.
func (b *Batcher) sendMore(l *lane) {
	for {
		if g := l.takeGrown(); g != nil {
			b.deliver(l, g)
			continue
		}
		select {
		case <-l.filled:
		case <-b.stop: // send does the rest
			return
		}
	}
}

func (b *Batcher) deliver(l *lane, g *group) {
	b.trip(g)
	l.recycle(g)
	close(g.done)
}

// trip sends a group and sets its error.
func (b *Batcher) trip(g *group) {
	n := float64(len(g.views))
	start := time.Now()
	if start.Sub(g.since) > maxWait {
		// Redis has been slow or away. Sending would be late for everybody behind as well.
		g.err = fault.New(fault.Unavailable, "append view", "", errors.New("Redis is too slow; the event was not sent"))
	} else {
		ctx, cancel := context.WithTimeout(context.Background(), tripTimeout)
		_, g.err = b.store.Append(ctx, g.views)
		cancel()
		b.trips.Observe(time.Since(start).Seconds())
		b.sizes.Observe(n)
	}
	if g.err != nil {
		b.failed.Add(n)
		b.backlog.giveBack(len(g.views))
	} else {
		b.appended.Add(n)
		b.backlog.landed.Add(int64(len(g.views)))
	}
}
