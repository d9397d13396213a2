// Package ingest appends view events to Redis. Requests that arrive at the same time share one script call, and each
// returns after Redis has answered. No event is sent twice: a lost reply is an error, and the client's next post is a
// new event.
package ingest

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/state"
)

// Limits that are not settings.
const (
	// MaxGroup is the maximum number of events in one script call. 256 events keep Redis busy for about a millisecond.
	// That makes the cost of a call small for each event, and does not hold up other clients of Redis.
	MaxGroup = 256
	// queueLength is how many events may wait in all queues together. Each queue has room for minQueue or more.
	queueLength = 8192
	minQueue    = 256
	// maxWait bounds how long an event waits for its call. After that time it is refused and not sent.
	maxWait = 2 * time.Second
	// callTimeout bounds one call.
	callTimeout = 3 * time.Second
	// pollEvery is how often the backlog is read while events arrive.
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
	MaxBacklog int64 // view events are refused while the streams have more unsettled entries than this
	Metrics    prometheus.Registerer
}

// Batcher groups events into script calls. Run must be started.
type Batcher struct {
	store    Store
	keys     state.Keys
	queues   []*queue
	stop     chan struct{} // closed by Stop
	backlog  backlog
	appended atomic.Int64
	failed   prometheus.Counter
	sizes    prometheus.Histogram
	seconds  prometheus.Histogram
}

// New makes a Batcher.
func New(o Options) *Batcher {
	b := &Batcher{
		store: o.Store, keys: o.Store.Keys(), stop: make(chan struct{}), backlog: backlog{limit: o.MaxBacklog},
		failed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tierflow_ingest_failed_events_total", Help: "View events whose append failed or whose reply was lost."}),
		sizes: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "tierflow_ingest_group_size", Help: "View events in one script call.",
			Buckets: []float64{1, 2, 4, 8, 16, 32, 64, 128, MaxGroup}}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "tierflow_ingest_trip_seconds", Help: "Time of one script call.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 14)}),
	}
	n := b.keys.Partitions()
	for range n {
		b.queues = append(b.queues, newQueue(max(queueLength/n, minQueue)))
	}
	appended := prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "tierflow_ingest_events_total", Help: "View events that Redis has taken."}, func() float64 { return float64(b.Appended()) })
	o.Metrics.MustRegister(appended, b.failed, b.sizes, b.seconds)
	return b
}

// Appended is how many events Redis has taken from this Batcher.
func (b *Batcher) Appended() int64 { return b.appended.Load() }

// Run sends events until Stop is called. Then it sends those that are queued, and returns.
func (b *Batcher) Run() {
	var wg sync.WaitGroup
	for _, q := range b.queues {
		wg.Go(func() { b.send(q) })
		wg.Go(func() { b.sendMore(q) })
	}
	wg.Go(b.pollBacklog)
	wg.Wait()
}

// Stop ends Run after all queued events have been sent. Call it once.
func (b *Batcher) Stop() { close(b.stop) }

// Append appends one event and returns after Redis has answered. After fault.Unavailable the event may or may not be in
// the stream. After fault.BacklogFull it is not.
func (b *Batcher) Append(v event.View) error {
	if err := b.backlog.admit(1); err != nil {
		return err
	}
	g, err := b.queues[b.queueOf(v)].join(v)
	if err != nil {
		b.backlog.giveBack(1)
		return err
	}
	<-g.done
	return g.err
}

// queueOf returns the index of an event's queue. Each partition has its own queue, because a call touches one partition.
// So a server that does not answer delays only its own partitions.
func (b *Batcher) queueOf(v event.View) int { return b.keys.Partition(v.ID) }

// part is the events of one AppendAll in one group.
type part struct {
	of     *group
	events int
}

// AppendAll appends events, and waits for room in the queues. Events of one item stay in order. It returns how many of
// them certainly are in the stream: all of them where the error is nil. The errors are those of Append.
func (b *Batcher) AppendAll(ctx context.Context, views []event.View) (appended int, err error) {
	byQueue := make([][]event.View, len(b.queues))
	for _, v := range views {
		l := b.queueOf(v)
		byQueue[l] = append(byQueue[l], v)
	}
	for more := true; more && err == nil; {
		// Each round sends one part of each queue and waits for it. So the next part of a queue cannot overtake this one.
		var parts []part
		more = false
		for l, vs := range byQueue {
			n := min(MaxGroup, len(vs))
			if n == 0 {
				continue
			}
			g, qerr := b.enqueue(ctx, b.queues[l], vs[:n])
			if qerr != nil {
				err = qerr
				break
			}
			parts = append(parts, part{g, n})
			byQueue[l] = vs[n:]
			more = more || len(byQueue[l]) > 0
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

// enqueue adds events to a queue as soon as it has room for them.
func (b *Batcher) enqueue(ctx context.Context, q *queue, views []event.View) (*group, error) {
	if err := b.backlog.admit(len(views)); err != nil {
		return nil, err
	}
	full := time.NewTimer(maxWait)
	defer full.Stop()
	for {
		g, err := q.join(views...)
		if err == nil {
			return g, nil
		}
		if err == errFull {
			select {
			case <-q.oldest():
				continue // there is room, unless other callers took it
			case <-ctx.Done():
				err = fault.New(fault.Unavailable, "append views", "", ctx.Err())
			case <-full.C:
			}
		}
		b.backlog.giveBack(len(views))
		return nil, err
	}
}

// send calls Redis for the groups of a queue, one after the other. Events that arrive during a call gather for the next.
func (b *Batcher) send(q *queue) {
	for {
		if g := q.take(); g != nil {
			b.deliver(q, g)
			q.sent()
			continue
		}
		select {
		case <-q.joined:
		case <-b.stop:
			if q.end() {
				return
			}
		}
	}
}

// sendMore makes a second call at the same time as send, but only for a full group. So Redis works on one group while the
// api builds the next call. A group that has room waits, because a call costs the same however few events it has.
func (b *Batcher) sendMore(q *queue) {
	for {
		if g := q.takeFull(); g != nil {
			b.deliver(q, g)
			continue
		}
		select {
		case <-q.filled:
		case <-b.stop: // send sends what is left
			return
		}
	}
}

func (b *Batcher) deliver(q *queue, g *group) {
	b.call(g)
	q.recycle(g)
	close(g.done)
}

// call sends a group and sets its error. It does not send a group that has waited longer than maxWait.
func (b *Batcher) call(g *group) {
	n := float64(len(g.views))
	start := time.Now()
	if start.Sub(g.since) > maxWait {
		// Redis is slow or away. Sending this group would also make the groups behind it late.
		g.err = fault.New(fault.Unavailable, "append view", "", errors.New("Redis is too slow; the event was not sent"))
	} else {
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		_, g.err = b.store.Append(ctx, g.views)
		cancel()
		b.seconds.Observe(time.Since(start).Seconds())
		b.sizes.Observe(n)
	}
	if g.err != nil {
		b.failed.Add(n)
		b.backlog.giveBack(len(g.views))
	} else {
		b.appended.Add(int64(len(g.views)))
		b.backlog.appended.Add(int64(len(g.views)))
	}
}
