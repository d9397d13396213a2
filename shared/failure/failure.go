// Package failure decides what becomes of an entry whose work has failed: it waits, is tried again, or becomes a dead
// letter. The relocator and the committer use it. Decide has the whole table of fault kinds; no other package has a part
// of it.
//
// The package changes nothing but the entry: it sets the verdict of the delivery, and writes dead letters through
// shared/state.
package failure

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
)

// Stage is what was done with an entry. Dead letters name it (docs/formats.md).
type Stage string

// Stages.
const (
	Relocate Stage = state.StageRelocate // an entry of `views`
	Commit   Stage = state.StageCommit   // an entry of `relocated`
	Release  Stage = state.StageRelease  // an entry of `committed`
)

// Exhausted is the reason of a dead letter that has had all its attempts.
const Exhausted = "exhausted"

// tierWait is how long an entry waits that needs a tier which is away, full or failing.
const tierWait = time.Second

// Action is what becomes of an entry.
type Action int

// Actions. Only Retry counts an attempt.
const (
	Retry         Action = iota // stays pending; the next attempt follows after a back-off
	Wait                        // stays pending; somebody else is at work on the item, or on the entry
	WaitForServer               // stays pending until Redis and MySQL answer
	WaitForTier                 // stays pending until the tier can be used
	DeadLetter                  // settled; `dead` keeps it with its reason
)

// Decide returns what becomes of an entry whose work failed with an error of this kind. attempt is the entry's number of
// attempts, this one included. reason is that of the dead letter, "" for every other action.
func Decide(stage Stage, kind fault.Kind, attempt, maxAttempts int64) (action Action, reason string) {
	switch kind {
	case fault.Busy, fault.Lost:
		return Wait, ""
	case fault.Unavailable:
		return WaitForServer, ""
	case fault.TierRefused, fault.NoSpace:
		return WaitForTier, ""
	case fault.Malformed, fault.Unknown, fault.Conflict, fault.Unprocessable, fault.MissingFile, fault.InvalidName, fault.Unsupported:
		return DeadLetter, string(kind)
	case fault.Changed:
		if stage == Release { // a copy that somebody changed does not change back
			return DeadLetter, string(kind)
		}
	default: // fault.Suspect, fault.Internal; the kinds of HTTP calls never come here
	}
	if attempt >= maxAttempts {
		return DeadLetter, Exhausted
	}
	return Retry, ""
}

// Options of New. All but ServerWait are required.
type Options struct {
	Store       *state.Store
	Group       string // the consumer group of the entries
	Stage       Stage
	WorkerID    string
	MaxAttempts int64
	// ServerWait is how long an entry waits that found a server away. 0 leaves it to the consumer, which waits longer
	// each time.
	ServerWait   time.Duration
	ServerFailed func()              // called when Redis or MySQL failed
	DeadLetter   func(reason string) // called for each dead letter that was written
	Log          *zap.Logger
}

// Handler does with entries what Decide says. It is safe for concurrent use.
type Handler struct{ o Options }

// New makes a Handler.
func New(o Options) *Handler { return &Handler{o} }

// Failed says what becomes of an entry whose work ended with err. An entry whose delivery was cancelled is left to
// others, whatever the error: it is theirs, or the consumer stops. ctx bounds the writing of a dead letter. The result is
// what Decide has said.
func (h *Handler) Failed(ctx context.Context, d *stream.Delivery, err error) Action {
	kind := fault.KindOf(err)
	if d.Context.Err() != nil {
		kind = fault.Lost
	}
	action, reason := Decide(h.o.Stage, kind, d.Attempt, h.o.MaxAttempts)
	d.Cause = err
	switch action {
	case Wait:
		h.log(zap.DebugLevel, "left to others", d, zap.Error(err))
		d.Reason = "lock"
		d.Later(0)
	case WaitForServer:
		h.o.ServerFailed()
		d.Reason = "server"
		d.Later(h.o.ServerWait)
	case WaitForTier:
		h.log(zap.WarnLevel, "a tier is away, full or failing; trying again later", d, zap.Error(err))
		d.Reason = "tier"
		d.Later(tierWait)
	case DeadLetter:
		h.deadLetter(ctx, d, reason, err)
	default:
		h.log(zap.WarnLevel, "failed, trying again", d, zap.Int64("attempt", d.Attempt), zap.Error(err))
		d.Failed(err)
	}
	return action
}

// Poisoned says whether an entry has ended its workers again and again, and makes it a dead letter then. A worker that
// takes an entry over from a dead one counts an attempt. The dead worker may have been killed for other reasons, so the
// entry has four times as many attempts as one that fails.
func (h *Handler) Poisoned(ctx context.Context, d *stream.Delivery) bool {
	if d.Attempt <= 4*h.o.MaxAttempts {
		return false
	}
	h.deadLetter(ctx, d, Exhausted, fmt.Errorf("it was delivered %d times, and each time the worker ended before it settled the entry", d.Attempt))
	return true
}

// deadLetter settles the entry. Where that fails, the entry stays pending, and fails again.
func (h *Handler) deadLetter(ctx context.Context, d *stream.Delivery, reason string, cause error) {
	written, err := h.o.Store.DeadLetter(ctx, h.o.Group, h.o.WorkerID, d.Values, event.Failure{
		Stage: string(h.o.Stage), Reason: reason, Error: cause.Error(), Attempts: d.Attempt,
		SourceStream: d.Stream, SourceID: d.ID, FailedAt: time.Now(),
	})
	if err != nil {
		h.log(zap.WarnLevel, "the dead letter was not written, trying again", d, zap.Error(err))
		h.o.ServerFailed()
		d.Reason, d.Cause = "server", err
		d.Later(h.o.ServerWait)
		return
	}
	d.Settled()
	if !written { // another worker has settled it
		return
	}
	h.o.DeadLetter(reason)
	h.log(zap.ErrorLevel, "failed for good, see GET /v1/dead", d, zap.String("reason", reason), zap.Int64("attempts", d.Attempt),
		zap.Error(cause))
}

// log adds what the entry says of itself. An entry that cannot be read has only some of the fields.
func (h *Handler) log(level zapcore.Level, message string, d *stream.Delivery, fields ...zap.Field) {
	c := h.o.Log.Check(level, message)
	if c == nil {
		return
	}
	fields = append(fields, zap.String("stage", string(h.o.Stage)), zap.String("entry", d.ID))
	for _, name := range []string{"cid", "event_id", "from", "to"} {
		if v := d.Values[name]; v != "" {
			fields = append(fields, zap.String(name, v))
		}
	}
	c.Write(fields...)
}
