// Package outage tells of what fails for a while and is tried again: the log says so once when it begins, once a minute while
// it lasts, and once when it ends. Every loop that tries something again uses it, so that nothing fails in silence, and
// no outage fills a log.
package outage

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/fault"
)

const (
	// logEvery is how often a failure is logged while it lasts.
	logEvery = time.Minute
	// calm is how long work must have succeeded for the next failure to be a new one.
	calm = 10 * time.Second
	// known is how long a failure is reported after the last one. Whatever waits is tried again much sooner, unless
	// another worker has it by now.
	known = 15 * time.Second
	// minRest and maxRest bound Rests.
	minRest = 500 * time.Millisecond
	maxRest = 5 * time.Second
)

// Outage is a kind of work that fails for now. Work that fails again soon after it has succeeded has the same outage: it is logged
// once a minute. It is safe for concurrent use.
type Outage struct {
	begins, ends string
	log          *zap.Logger

	mu     sync.Mutex
	err    error // nil where the work succeeds
	count  int   // failures in a row
	began  time.Time
	last   time.Time
	ended  time.Time
	logged time.Time // a failure
	told   bool      // the failure that lasts has been logged
}

// New makes an Outage of work that waits. what names the work in the log, in the plural: "commits".
func New(what string, log *zap.Logger) *Outage {
	return Say(what+" wait and are tried again", what+" wait no more", log)
}

// Say makes an Outage with log messages of its own: that it begins or lasts, and that it ends.
func Say(begins, ends string, log *zap.Logger) *Outage {
	return &Outage{begins: begins, ends: ends, log: log}
}

// Note is Failed, or Succeeded where err is nil.
func (o *Outage) Note(err error) {
	if err == nil {
		o.Succeeded()
		return
	}
	o.Failed(err)
}

// Failed notes that the work has failed. A caller that gave up is no failure. The fields are logged with it.
func (o *Outage) Failed(err error, fields ...zap.Field) {
	if errors.Is(err, context.Canceled) {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	if o.err == nil {
		o.began, o.count, o.told = now, 0, false
		if now.Sub(o.ended) >= calm {
			o.logged = time.Time{}
		}
	}
	o.err, o.last = common(err), now
	o.count++
	if now.Sub(o.logged) >= logEvery {
		o.logged, o.told = now, true
		o.log.Warn(o.begins, append([]zap.Field{zap.Duration("for", now.Sub(o.began)), zap.Error(err)}, fields...)...)
	}
}

// common is what an error has in common with others of its kind: the subject differs from failure to failure.
func common(err error) error {
	var f *fault.Error
	if !errors.As(err, &f) {
		return err
	}
	same := *f
	same.Subject = ""
	return &same
}

// Succeeded notes that the work succeeds.
func (o *Outage) Succeeded() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.end()
}

func (o *Outage) end() {
	if o.err == nil {
		return
	}
	if o.told {
		o.log.Info(o.ends, zap.Duration("waited", time.Since(o.began)), zap.NamedError("last", o.err))
	}
	o.err, o.count, o.ended = nil, 0, time.Now()
}

// Check is a readiness check. It returns the last error while the work fails.
func (o *Outage) Check(context.Context) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil && time.Since(o.last) > known {
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
