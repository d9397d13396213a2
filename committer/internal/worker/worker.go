// Package worker is the committer's consumer of `relocated`: it takes what there is as one batch, has it applied to
// MySQL, spreads the news through Redis and settles the entries (protocol steps 6 and 7). It talks, logs and counts.
//
// What ends how:
//
//	committed or superseded            the finish script has acked the entry, after COMMIT
//	cannot be read, or hopeless        dead at once
//	MySQL or Redis is away, row locked Later: stays pending, no attempt
//	failed otherwise                   Failed: the next attempt after a back-off, dead after the last
//	ends its committers                dead, when it has come back four times as often
//
// Whatever is delivered again was perhaps committed: apply finds out, and the finish script may run again.
package worker

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/tierflow/tierflow/committer/internal/apply"
	"github.com/tierflow/tierflow/shared/assignment"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/failure"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
)

const (
	// batchSize bounds a transaction. While one runs, the next batch gathers, so a busy committer has big ones.
	batchSize = 500
	// leastBudget is for a MinIdle so short that a part of it would not do.
	leastBudget = time.Second
	// awayWait is how long entries rest that found a server away; all the same, so that they stay one batch.
	awayWait = 500 * time.Millisecond
	// suspicious is how often an entry may have come back and still be one of a batch.
	suspicious = 3
)

// Options of a Worker. All are required.
type Options struct {
	Redis       redis.UniversalClient
	Store       *state.Store
	Apply       func(ctx context.Context, entries []event.Relocated) []apply.Result
	Consumer    string // worker id
	MinIdle     time.Duration
	Drain       time.Duration
	MaxAttempts int64
	Hold        func() bool // no new entries while it is true
	Look        func()      // called when a server was found away
	Metrics     *Metrics
	Log         *zap.Logger
}

// Worker is one committer. Make it with New, start it with Run.
type Worker struct {
	o          Options
	budget     time.Duration // of Apply, and of all that Redis is asked after it
	assignment *assignment.Assignment
	failure    *failure.Handler
}

// New makes a Worker.
func New(o Options) *Worker {
	// An entry is somebody else's after MinIdle without a sign of life. Apply and what follows it have a third each,
	// and give one before they begin.
	w := &Worker{o: o, budget: max(o.MinIdle/3, leastBudget)}
	w.assignment = assignment.New(assignment.Options{Store: o.Store, Group: state.GroupCommitter, Self: state.Worker{ID: o.Consumer},
		MinIdle: o.MinIdle, Consumers: w.consumers, Log: o.Log})
	w.failure = failure.New(failure.Options{
		Store: o.Store, Group: state.GroupCommitter, Stage: failure.Commit, WorkerID: o.Consumer, MaxAttempts: o.MaxAttempts,
		ServerWait: awayWait, ServerFailed: o.Look, DeadLetter: func(reason string) { o.Metrics.dead.WithLabelValues(reason).Inc() },
		Log: o.Log,
	})
	return w
}

// Run works until ctx ends, then finishes what is in hand, at most the drain time.
func (w *Worker) Run(ctx context.Context) {
	w.assignment.Run(ctx)
}

// Announced tells whether the other committers have heard of this one lately.
func (w *Worker) Announced(ctx context.Context) error { return w.assignment.CheckHeartbeat(ctx) }

// Partitions are those that this committer has now.
func (w *Worker) Partitions() []int { return w.assignment.Partitions() }

func (w *Worker) consumers(k state.Keys) []assignment.Consumer {
	o := &overlap{}
	o.told = sync.NewCond(&o.mu)
	o.consumer = stream.New(stream.Options{
		Redis: w.o.Redis, Stream: k.Relocated(), Backoff: k.Backoff(state.GroupCommitter), Group: state.GroupCommitter,
		Consumer: w.o.Consumer,
		MinIdle:  w.o.MinIdle, Slots: 1, Batch: batchSize, Drain: w.o.Drain,
		Hold: w.o.Hold, Handle: func(ds []*stream.Delivery) { w.handle(o, ds) }, Log: w.o.Log,
		Lost: func(string) { w.o.Metrics.lost.Inc() },
	})
	return []assignment.Consumer{o.consumer}
}

// overlap lets the next batch be read and applied while Redis is told of the one before, and no sooner: two transactions at
// once are slower than one after the other, and what gathers meanwhile had better be one batch.
type overlap struct {
	consumer *stream.Consumer
	mu       sync.Mutex
	told     *sync.Cond
	telling  int // batches that have been applied
}

// applied is called when a batch needs MySQL no more; told when Redis knows.
func (o *overlap) applied() (told func()) {
	o.add(1)
	return func() { o.add(-1) }
}

func (o *overlap) add(n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.telling += n
	o.consumer.SetSlots(min(1+o.telling, 2))
	if o.telling == 0 {
		o.told.Broadcast()
	}
}

// wait returns when Redis knows of all batches but the caller's, who has called for no other.
func (o *overlap) wait() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.telling > 0 {
		o.told.Wait()
	}
}

// job is an entry and what became of it. Where it could not be read, result.Err says why.
type job struct {
	d      *stream.Delivery
	entry  event.Relocated
	result apply.Result
}

// handle works on what has not come back often as one batch. An entry that has, may be what ends its committers, so it is
// worked on alone, after the others and one at a time: a crash counts against all that were in hand.
func (w *Worker) handle(o *overlap, ds []*stream.Delivery) {
	var batch []*stream.Delivery
	var suspect *stream.Delivery
	for _, d := range ds {
		switch {
		case d.Attempt <= suspicious:
			batch = append(batch, d)
		case suspect == nil:
			suspect = d
		default:
			d.Later(0)
		}
	}
	if suspect == nil {
		w.work(batch, o.applied)
		return
	}
	alone := func() (told func()) { return func() {} }
	if len(batch) > 0 {
		w.work(batch, alone)
	}
	o.wait()
	ctx, cancel := context.WithTimeout(suspect.Context, w.budget)
	defer cancel()
	if !w.failure.Poisoned(ctx, suspect) {
		w.work([]*stream.Delivery{suspect}, alone)
	}
}

// work calls applied when it needs MySQL no more, and told when Redis knows.
func (w *Worker) work(ds []*stream.Delivery, applied func() (told func())) {
	ctx, stop := together(ds)
	defer stop()
	w.o.Metrics.batch.Observe(float64(len(ds)))

	jobs := make([]job, len(ds))
	for i, d := range ds {
		jobs[i].d = d
		jobs[i].entry, jobs[i].result.Err = event.ParseRelocated(d.Values)
		if jobs[i].result.Err == nil {
			jobs[i].result.Err = w.o.Store.CheckPlace(d.Stream, jobs[i].entry.ID)
		}
	}
	w.apply(ctx, jobs)
	told := applied()
	defer told()

	ctx, cancel := context.WithTimeout(ctx, w.budget)
	defer cancel()
	var decided, refused []job
	for _, j := range jobs {
		if j.result.Err == nil {
			decided = append(decided, j)
		} else {
			refused = append(refused, j)
		}
	}
	w.finish(ctx, decided)
	for _, j := range refused {
		w.failure.Failed(ctx, j.d, j.result.Err)
	}
}

// together makes a context that ends when those of all deliveries have: one lost entry must not stop the others, but
// at the end of the drain time all stop.
func together(ds []*stream.Delivery) (context.Context, func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ds[0].Context))
	var left atomic.Int64
	left.Store(int64(len(ds)))
	stops := make([]func() bool, len(ds))
	for i, d := range ds {
		stops[i] = context.AfterFunc(d.Context, func() {
			if left.Add(-1) == 0 {
				cancel()
			}
		})
	}
	return ctx, func() {
		for _, stop := range stops {
			stop()
		}
		cancel()
	}
}

// apply fills the results of the entries that could be read.
func (w *Worker) apply(ctx context.Context, jobs []job) {
	var entries []event.Relocated
	var of []*job
	for i := range jobs {
		j := &jobs[i]
		j.d.Progress()
		if j.result.Err == nil {
			entries = append(entries, j.entry)
			of = append(of, j)
		}
	}
	if len(entries) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, w.budget)
	defer cancel()
	began := time.Now()
	var away error
	for i, r := range w.o.Apply(ctx, entries) {
		of[i].result = r
		of[i].d.Progress()
		if fault.Is(r.Err, fault.Unavailable) {
			away = r.Err
		}
	}
	w.o.Metrics.seconds.Observe(time.Since(began).Seconds())
	if away != nil {
		w.o.Log.Warn("could not commit, trying again", zap.Int("entries", len(entries)), zap.Error(away))
	}
}

// finish spreads the news of what has been decided and settles it.
func (w *Worker) finish(ctx context.Context, jobs []job) {
	if len(jobs) == 0 {
		return
	}
	news := make([]state.Finished, len(jobs))
	for i, j := range jobs {
		e, r := j.entry, j.result
		news[i] = state.Finished{EntryID: j.d.ID, RowLevel: r.RowLevel, Event: event.Committed{
			EventID: e.EventID, ID: e.ID, From: e.From, To: e.To, Filename: e.Filename,
			Generation: r.Generation, Outcome: r.Outcome, CommittedAt: r.At,
		}}
	}
	var failed int
	var last error
	for i, err := range w.o.Store.Finish(ctx, news) {
		j := jobs[i]
		if err != nil {
			failed, last = failed+1, err
			j.d.Later(awayWait)
			continue
		}
		j.d.Settled()
		w.o.Metrics.settled.WithLabelValues(string(j.result.Outcome)).Inc()
		if j.result.Outcome == event.OutcomeSuperseded {
			w.logEntry(zap.InfoLevel, "superseded: the row had changed", j, zap.String("row", j.result.RowLevel))
			continue
		}
		w.o.Metrics.latency.Observe(time.Since(j.entry.FinishedAt).Seconds())
		w.logEntry(zap.DebugLevel, "committed", j, zap.Bool("again", j.result.Again))
	}
	if failed > 0 {
		w.o.Log.Warn("decided, but Redis could not be told; trying again", zap.Int("entries", failed), zap.Error(last))
		w.o.Look()
	}
}

func (w *Worker) logEntry(level zapcore.Level, message string, j job, fields ...zap.Field) {
	if c := w.o.Log.Check(level, message); c != nil {
		e := j.entry
		c.Write(append(fields, zap.String("entry", j.d.ID), zap.Stringer("cid", e.ID), zap.String("event_id", e.EventID),
			zap.String("from", e.From), zap.String("to", e.To))...)
	}
}
