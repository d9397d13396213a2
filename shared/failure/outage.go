package failure

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/fault"
)

const (
	// outageLog is how often a failure is logged while it lasts.
	outageLog = time.Minute
	// outageKnown is how long a failure is reported after the last one. Whatever waits is tried again much sooner, unless
	// another worker has it by now.
	outageKnown = 15 * time.Second
	// minRest and maxRest bound Rests.
	minRest = 500 * time.Millisecond
	maxRest = 5 * time.Second
)

// Outage is a kind of work that a server refuses for now. It logs once when that begins, once a minute while it lasts, and
// once when it ends. It is safe for concurrent use.
type Outage struct {
	what string
	log  *zap.Logger

	mu     sync.Mutex
	err    error // nil where the work succeeds
	count  int   // failures in a row
	began  time.Time
	last   time.Time
	logged time.Time // a failure
	told   bool      // the failure that lasts has been logged
}

// NewOutage makes an Outage. what names the work in the log: "commits".
func NewOutage(what string, log *zap.Logger) *Outage { return &Outage{what: what, log: log} }

// Failed notes that the work has failed. A caller that gave up is no failure.
func (o *Outage) Failed(err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	var f *fault.Error
	if errors.As(err, &f) { // the subject differs from failure to failure
		same := *f
		same.Subject = ""
		err = &same
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	if o.err == nil {
		o.began, o.count, o.told = now, 0, false
	}
	o.err, o.last = err, now
	o.count++
	if now.Sub(o.logged) >= outageLog {
		o.logged, o.told = now, true
		o.log.Warn(o.what+" wait and are tried again", zap.Duration("for", now.Sub(o.began)), zap.Error(err))
	}
}

// Succeeded notes that the work succeeds.
func (o *Outage) Succeeded() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.end()
}

func (o *Outage) end() {
	if o.err != nil && o.told {
		o.log.Info(o.what+" wait no more", zap.Duration("waited", time.Since(o.began)), zap.NamedError("last", o.err))
	}
	o.err, o.count = nil, 0
}

// Check is a readiness check. It returns the last error while the work fails.
func (o *Outage) Check(context.Context) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil && time.Since(o.last) > outageKnown {
		o.end()
	}
	return o.err
}

// Rests tells whether it is too soon to try again. The rest after a failure grows while failures follow each other.
func (o *Outage) Rests() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err != nil && time.Since(o.last) < min(minRest<<min(o.count-1, 10), maxRest)
}
