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

// BacklogFull is the kind of the error while more is unsettled than may be.
const BacklogFull fault.Kind = "backlog-full"

// Limits that nobody has had a reason to set.
const (
	// MaxGroup is how many events one script call carries at most.
	// 256 events keep Redis busy for about a millisecond: long enough to be cheap, short enough for the others.
	MaxGroup = 256
	// lanesOfOne is how many lanes a single partition has. A lane is a connection with one call in flight; while that
	// runs in Redis, the other lane's is made up. Where there are several partitions each has one: a call touches one
	// partition, and a server that is away holds up only its own.
	lanesOfOne = 2
	// queueLength is how many requests may wait, over all lanes, and leastQueue in each.
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
	lanes    []chan *request
	stop     chan struct{} // no more requests come: finish what is queued
	stopped  chan struct{} // nothing will be sent any more
	items    sync.Pool
	backlog  backlog
	appended prometheus.Counter
	failed   prometheus.Counter
	sizes    prometheus.Histogram
	trips    prometheus.Histogram
}

// request is one caller's events, in their order. done gets one value when err is set.
type request struct {
	views []event.View
	one   [1]event.View
	since time.Time
	err   error
	done  chan struct{}
}

// New makes a Batcher.
func New(o Options) *Batcher {
	b := &Batcher{
		store: o.Store, keys: o.Store.Keys(), lanes: make([]chan *request, max(lanesOfOne, o.Store.Keys().Partitions())), stop: make(chan struct{}), stopped: make(chan struct{}),
		backlog: backlog{limit: o.MaxBacklog},
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
	b.items.New = func() any { return &request{done: make(chan struct{}, 1)} }
	for i := range b.lanes {
		b.lanes[i] = make(chan *request, max(queueLength/len(b.lanes), leastQueue))
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
	}
	wg.Go(b.pollBacklog)
	wg.Wait()
	close(b.stopped)
}

// Stop ends Run once everything that is queued has been answered. It is called once.
func (b *Batcher) Stop() { close(b.stop) }

// Append appends one event. nil: it is in the stream. Errors are fault.Unavailable (it may be in the stream, or
// not) and BacklogFull (it is not).
func (b *Batcher) Append(v event.View) error {
	if err := b.backlog.admit(1); err != nil {
		return err
	}
	r := b.items.Get().(*request)
	r.one[0] = v
	r.views, r.since, r.err = r.one[:], time.Now(), nil
	select {
	case b.lanes[b.laneOf(v)] <- r:
	default:
		b.backlog.giveBack(1)
		b.items.Put(r)
		return fault.New(fault.Unavailable, "append view", "", errors.New("too many requests are waiting; the event was not sent"))
	}
	err := b.wait(r)
	if err != errStopping {
		b.items.Put(r) // else it may still be queued
	}
	return err
}

// laneOf is always the same for one content, so that its events stay in order.
func (b *Batcher) laneOf(v event.View) int {
	if b.keys.Partitions() == 1 {
		return int(uint64(v.ID) % lanesOfOne)
	}
	return b.keys.Partition(v.ID)
}

// AppendAll appends events; those of one content stay in order. appended is how many of them are in the stream for
// certain, all of them unless there is an error, which is as that of Append. It waits for room in the queues.
func (b *Batcher) AppendAll(ctx context.Context, views []event.View) (appended int, err error) {
	byLane := make([][]event.View, len(b.lanes))
	for _, v := range views {
		l := b.laneOf(v)
		byLane[l] = append(byLane[l], v)
	}
	var sent []*request
	for _, vs := range byLane {
		for len(vs) > 0 {
			group := vs[:min(MaxGroup, len(vs))]
			r, qerr := b.queue(ctx, group)
			if qerr != nil {
				err = qerr
				break
			}
			sent, vs = append(sent, r), vs[len(group):]
		}
	}
	for _, r := range sent {
		if rerr := b.wait(r); rerr != nil {
			err = rerr
		} else {
			appended += len(r.views)
		}
	}
	return appended, err
}

func (b *Batcher) wait(r *request) error {
	select {
	case <-r.done:
		return r.err
	case <-b.stopped:
		return errStopping
	}
}

// queue hands a group of one lane over as soon as there is room.
func (b *Batcher) queue(ctx context.Context, views []event.View) (*request, error) {
	if err := b.backlog.admit(len(views)); err != nil {
		return nil, err
	}
	r := &request{views: views, since: time.Now(), done: make(chan struct{}, 1)}
	full := time.NewTimer(maxWait)
	defer full.Stop()
	var err error
	select {
	case b.lanes[b.laneOf(views[0])] <- r:
		return r, nil
	case <-ctx.Done():
		err = fault.New(fault.Unavailable, "append views", "", ctx.Err())
	case <-full.C:
		err = fault.New(fault.Unavailable, "append views", "", errors.New("too many requests are waiting"))
	case <-b.stopped:
		err = errStopping
	}
	b.backlog.giveBack(len(views))
	return nil, err
}

var errStopping error = fault.New(fault.Unavailable, "append view", "", errors.New("the service is stopping; the event was not sent"))

// send is one lane: whatever has queued up while a call was under way is the next call.
func (b *Batcher) send(lane chan *request) {
	var (
		group []*request
		views []event.View
		held  *request // did not fit into the last group
	)
	for {
		first := held
		held = nil
		if first == nil {
			select {
			case first = <-lane:
			case <-b.stop:
				select {
				case first = <-lane:
				default:
					return
				}
			}
		}
		group, views = append(group[:0], first), append(views[:0], first.views...)
	fill:
		for len(views) < MaxGroup {
			select {
			case r := <-lane:
				if len(views)+len(r.views) > MaxGroup {
					held = r
					break fill
				}
				group, views = append(group, r), append(views, r.views...)
			default:
				break fill
			}
		}
		b.trip(group, views)
		clear(group)
		clear(views)
	}
}

func (b *Batcher) trip(group []*request, views []event.View) {
	start := time.Now()
	var err error
	if oldest := group[0].since; start.Sub(oldest) > maxWait {
		// Redis has been slow or away. Sending would be late for everybody behind as well.
		err = fault.New(fault.Unavailable, "append view", "", errors.New("Redis is too slow; the event was not sent"))
	} else {
		ctx, cancel := context.WithTimeout(context.Background(), tripTimeout)
		_, err = b.store.Append(ctx, views)
		cancel()
		b.trips.Observe(time.Since(start).Seconds())
		b.sizes.Observe(float64(len(views)))
	}
	if err != nil {
		b.failed.Add(float64(len(views)))
		b.backlog.giveBack(len(views))
	} else {
		b.appended.Add(float64(len(views)))
	}
	for _, r := range group {
		r.err = err
		r.done <- struct{}{}
	}
}
