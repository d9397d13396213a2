// Package fault is the one error vocabulary of all services. The layer that knows the cause decides the kind. One place at
// each edge turns the kind into an HTTP status, a log level or a dead letter. The package imports only the standard library.
package fault

import "errors"

// Kind says what went wrong. The list below is closed: no other package declares a kind. Kinds are part of dead letters and
// of the problem types of HTTP, so new ones are appended and none is ever renamed or removed.
type Kind string

// Kinds that a stream's entry or an HTTP call can fail with. shared/failure decides what becomes of such an entry.
const (
	Malformed     Kind = "malformed"       // the input cannot be parsed
	Unknown       Kind = "unknown-content" // no item has this cid or filename
	Conflict      Kind = "conflict"        // something else has the name, or an operation is under way
	Unprocessable Kind = "unprocessable"   // well-formed, but state or policy forbid it
	MissingFile   Kind = "missing-file"    // the row's file does not exist
	InvalidName   Kind = "invalid-name"    // the filename is not allowed
	Unsupported   Kind = "unsupported"     // a symlink, FIFO, socket or device in place of a file
	Changed       Kind = "changed"         // the source changed while it was read
	TierRefused   Kind = "tier-refused"    // the tier has no identity or a wrong one, or two filenames name one folder
	NoSpace       Kind = "no-space"        // the tier is full
	Suspect       Kind = "suspect"         // the tier failed to read or write: do not trust it
	Lost          Kind = "lost"            // somebody else has the lock or the entry now
	Busy          Kind = "busy"            // somebody else works on the item; not a failure
	Unavailable   Kind = "unavailable"     // a server cannot be reached now
	Internal      Kind = "internal"        // anything else
)

// Kinds that only an HTTP call can fail with.
const (
	NotFound         Kind = "not-found"              // no such path, and no such thing other than an item
	MethodNotAllowed Kind = "method-not-allowed"     // the path exists, but not for this method
	TooLarge         Kind = "too-large"              // the body, or a line of it, is too long
	UnsupportedMedia Kind = "unsupported-media-type" // the body's type is not one that the call takes
	Unauthorized     Kind = "unauthorized"           // no API key, or an unknown one
	Forbidden        Kind = "forbidden"              // the API key lacks a scope, or the request comes from another site
	RateLimited      Kind = "rate-limited"           // too many wrong API keys from one address
	BacklogFull      Kind = "backlog-full"           // too many entries are not settled: no more view events for now
)

// Error is an error with its kind, the operation, its subject, and a hint for operators.
type Error struct {
	Kind    Kind
	Op      string // the operation: "publish", "look up"
	Subject string // a path, a cid, a level
	Hint    string // what an operator can do about it; "" for nothing
	Level   string // the level whose tier failed; "" where no tier failed, or the level is unknown
	Err     error  // the cause; may be nil
}

func (e *Error) Error() string {
	s := string(e.Kind)
	if e.Op != "" {
		s = e.Op
	}
	if e.Subject != "" {
		s += " " + e.Subject
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// New makes an Error; any of op, subject and err may be empty.
func New(kind Kind, op, subject string, err error) *Error {
	return &Error{Kind: kind, Op: op, Subject: subject, Err: err}
}

// KindOf returns the kind of the outermost Error in err's chain, Internal where there is none, "" for nil.
func KindOf(err error) Kind {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

// Is reports whether err is of the kind.
func Is(err error, kind Kind) bool { return err != nil && KindOf(err) == kind }
