// Package commit handles entries of `relocated`: it has a batch of them applied to MySQL, finishes them in Redis, and so
// settles them (steps 6 and 7 of docs/design.md). It touches MySQL through package apply, and Redis through shared/state.
//
// What becomes of an entry:
//
//	committed or superseded  settled; the finish script has acked it, after COMMIT
//	MySQL said no            shared/failure decides
//	Redis did not finish it  stays pending; no attempt is counted
//
// An entry that is delivered again may have been committed before. Package apply finds out, and the finish script may run
// again.
package commit

import (
	"context"
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
	"github.com/tierflow/tierflow/shared/outage"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
)

const (
	// batchSize bounds a transaction. While one runs, the next batch gathers, so a busy committer has large ones.
	batchSize = 500
	// minBudget is for a MinIdle so short that a third of it is not enough: Apply may wait for locks several times, until it
	// knows which level is locked.
	minBudget = 5 * apply.LockWait
	// serverWait is how long entries wait that found a server away. All wait equally long, so that they stay one batch.
	serverWait = 500 * time.Millisecond
	// maxBatchAttempts is how many attempts an entry may have had and still be one of a batch.
	maxBatchAttempts = 3
)

// Options of New. All are required.
type Options struct {
	Redis        redis.UniversalClient
	Store        *state.Store
	Apply        func(ctx context.Context, entries []event.Relocated) []apply.Result
	WorkerID     string
	MinIdle      time.Duration
	Drain        time.Duration
	MaxAttempts  int64
	Hold         func() bool // no new entries while it is true
	ServerFailed func()      // called when Redis or MySQL failed
	Metrics      *Metrics
	Log          *zap.Logger
}

// Committer is one worker of the group committer. Run starts it.
type Committer struct {
	o          Options
	budget     time.Duration // of Apply, and of all calls of Redis after it
	assignment *assignment.Assignment
	failure    *failure.Handler
	refused    *outage.Outage // MySQL commits nothing
	waiting    *outage.Outage // some entries wait, and others are committed
	finishing  *outage.Outage // Redis does not learn what is committed
}

// New makes a Committer.
func New(o Options) *Committer {
	// Apply and what follows it have a third of MinIdle each. Where that is too short they have longer, and the entries stay
	// with this worker meanwhile: to take them over would only start the work again.
	c := &Committer{o: o, budget: max(o.MinIdle/3, minBudget),
		refused: outage.New("commits", o.Log), waiting: outage.New("some commits", o.Log),
		finishing: outage.Say("committed, but not finished in Redis; trying again", "what is committed is finished in Redis again", o.Log)}
	c.assignment = assignment.New(assignment.Options{Store: o.Store, Group: state.GroupCommitter, Self: state.Worker{ID: o.WorkerID},
		MinIdle: o.MinIdle, Consumers: c.consumers, Log: o.Log})
	c.failure = failure.New(failure.Options{
		Store: o.Store, Group: state.GroupCommitter, Stage: failure.Commit, WorkerID: o.WorkerID, MaxAttempts: o.MaxAttempts,
		ServerWait: serverWait, ServerFailed: o.ServerFailed,
		DeadLetter: func(reason string) { o.Metrics.deadLetters.WithLabelValues(reason).Inc() }, Log: o.Log,
	})
	return c
}

// Run works until ctx ends. It then finishes the batches that it has begun, for the drain time at most.
func (c *Committer) Run(ctx context.Context) { c.assignment.Run(ctx) }

// CheckHeartbeat is a readiness check: see assignment.Assignment.
func (c *Committer) CheckHeartbeat(ctx context.Context) error {
	return c.assignment.CheckHeartbeat(ctx)
}

// CheckConsumed is a readiness check: see assignment.Assignment.
func (c *Committer) CheckConsumed(ctx context.Context) error { return c.assignment.CheckConsumed(ctx) }

// CheckCommit is a readiness check: the error of the last commit, where MySQL refused all of it.
func (c *Committer) CheckCommit(ctx context.Context) error { return c.refused.Check(ctx) }

// Waiting returns why some entries wait while others are committed, nil where none does.
func (c *Committer) Waiting(ctx context.Context) error { return c.waiting.Check(ctx) }

// Partitions are those that this committer has now.
func (c *Committer) Partitions() []int { return c.assignment.Partitions() }

func (c *Committer) consumers(k state.Keys) []assignment.Consumer {
	o := newOverlap()
	o.consumer = stream.New(stream.Options{
		Redis: c.o.Redis, Stream: k.Relocated(), Backoff: k.Backoff(state.GroupCommitter), Walker: k.Walker(state.GroupCommitter), Group: state.GroupCommitter,
		Consumer: c.o.WorkerID, MinIdle: c.o.MinIdle, Slots: 1, Batch: batchSize, Drain: c.o.Drain,
		Hold: func() bool { return c.o.Hold() || c.refused.Rests() }, Handle: func(ds []*stream.Delivery) { c.handle(o, ds) }, Log: c.o.Log,
		Lost: func(string) { c.o.Metrics.lost.Inc() },
	})
	return []assignment.Consumer{o.consumer}
}

// job is an entry and its result. Where the entry could not be read, result.Err says why.
type job struct {
	d      *stream.Delivery
	entry  event.Relocated
	result apply.Result
}

// handle commits the entries as one batch, but for those that have had many attempts. Such an entry may crash its
// committers, and a crash counts an attempt of every entry in the batch. So it is committed alone, after the others and
// one at a time.
func (c *Committer) handle(o *overlap, ds []*stream.Delivery) {
	var batch []*stream.Delivery
	var suspect *stream.Delivery
	for _, d := range ds {
		switch {
		case d.Attempt <= maxBatchAttempts:
			batch = append(batch, d)
		case suspect == nil:
			suspect = d
		default:
			d.Reason = "turn"
			d.Later(0)
		}
	}
	if suspect == nil {
		c.commit(batch, o.applied)
		return
	}
	alone := func() (finished func()) { return func() {} }
	if len(batch) > 0 {
		c.commit(batch, alone)
	}
	o.wait()
	ctx, cancel := context.WithTimeout(suspect.Context, c.budget)
	defer cancel()
	if !c.failure.Poisoned(ctx, suspect) {
		c.commit([]*stream.Delivery{suspect}, alone)
	}
}

// commit calls applied when the batch needs MySQL no more, and finished when it needs Redis no more.
func (c *Committer) commit(ds []*stream.Delivery, applied func() (finished func())) {
	ctx, stop := together(ds)
	defer stop()
	c.o.Metrics.batch.Observe(float64(len(ds)))
	for _, d := range ds {
		defer d.Working()()
	}

	jobs := make([]job, len(ds))
	for i, d := range ds {
		jobs[i].d = d
		jobs[i].entry, jobs[i].result.Err = event.ParseRelocated(d.Values)
		if jobs[i].result.Err == nil {
			jobs[i].result.Err = c.o.Store.CheckPlace(d.Stream, jobs[i].entry.ID)
		}
	}
	c.apply(ctx, jobs)
	finished := applied()
	defer finished()

	ctx, cancel := context.WithTimeout(ctx, c.budget)
	defer cancel()
	var decided, failed []job
	for _, j := range jobs {
		if j.result.Err == nil {
			decided = append(decided, j)
		} else {
			failed = append(failed, j)
		}
	}
	c.finish(ctx, decided)
	for _, j := range failed {
		// The copy of a dead letter stays where it is: POST /v1/dead/{id}/retry may need it, and `relocator verify --repair`
		// removes copies that no row names.
		c.failure.Failed(ctx, j.d, j.result.Err)
	}
}

// together makes a context that ends when those of all deliveries have ended. One lost entry must not stop the others, but
// the end of the drain time stops all.
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

// apply fills in the results of the entries that could be read.
func (c *Committer) apply(ctx context.Context, jobs []job) {
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
	ctx, cancel := context.WithTimeout(ctx, c.budget)
	defer cancel()
	began := time.Now()
	var away, waits error
	committed := false
	for i, r := range c.o.Apply(ctx, entries) {
		of[i].result = r
		of[i].d.Progress()
		switch {
		case r.Err == nil:
			committed = true
		case fault.Is(r.Err, fault.Unavailable):
			away = r.Err
		case apply.IsLevelLocked(r.Err):
			waits = r.Err
		}
	}
	c.o.Metrics.seconds.Observe(time.Since(began).Seconds())
	if committed {
		c.refused.Succeeded()
	}
	switch {
	case away != nil && !committed:
		c.refused.Failed(away)
	case away != nil:
		c.waiting.Failed(away)
	case waits != nil:
		c.waiting.Failed(waits)
	}
}

// finish publishes the results in Redis, and so settles the entries.
func (c *Committer) finish(ctx context.Context, jobs []job) {
	if len(jobs) == 0 {
		return
	}
	finished := make([]state.Finished, len(jobs))
	for i, j := range jobs {
		e, r := j.entry, j.result
		finished[i] = state.Finished{EntryID: j.d.ID, RowLevel: r.RowLevel, Event: event.Committed{
			EventID: e.EventID, ID: e.ID, From: e.From, To: e.To, Filename: e.Filename,
			Generation: r.Generation, Outcome: r.Outcome, CommittedAt: r.At,
		}}
	}
	var failed int
	var last error
	for i, err := range c.o.Store.Finish(ctx, finished) {
		j := jobs[i]
		if err != nil {
			failed, last = failed+1, err
			j.d.Reason, j.d.Cause = "server", err
			j.d.Later(serverWait)
			continue
		}
		j.d.Settled()
		c.o.Metrics.settled.WithLabelValues(string(j.result.Outcome)).Inc()
		if j.result.Outcome == event.OutcomeSuperseded {
			c.log(zap.InfoLevel, "superseded: the row had changed", j, zap.String("row", j.result.RowLevel))
			continue
		}
		c.o.Metrics.latency.Observe(time.Since(j.entry.FinishedAt).Seconds())
		c.log(zap.DebugLevel, "committed", j, zap.Bool("again", j.result.Again))
	}
	if failed > 0 {
		c.finishing.Failed(last, zap.Int("entries", failed))
		c.o.ServerFailed()
		return
	}
	c.finishing.Succeeded()
}

func (c *Committer) log(level zapcore.Level, message string, j job, fields ...zap.Field) {
	if checked := c.o.Log.Check(level, message); checked != nil {
		e := j.entry
		checked.Write(append(fields, zap.String("entry", j.d.ID), zap.Stringer("cid", e.ID), zap.String("event_id", e.EventID),
			zap.String("from", e.From), zap.String("to", e.To))...)
	}
}
