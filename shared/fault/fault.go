// Package fault is the one error vocabulary. The layer that knows decides the kind; one place at each edge turns
// kinds into a status, a log level, a dead letter. It imports nothing but the standard library.
package fault

import "errors"

// Kind is a closed list; kinds are written into dead letters and problem types, so they are only ever appended.
type Kind string

// Kinds. Permanent says which of them end in `dead` at once.
const (
	Malformed     Kind = "malformed"       // cannot be read as what it should be
	Unknown       Kind = "unknown-content" // there is no such content
	Conflict      Kind = "conflict"        // a name is taken by something else
	Unprocessable Kind = "unprocessable"   // well-formed, but refused by state or policy
	MissingFile   Kind = "missing-file"    // the row's file is not there
	InvalidName   Kind = "invalid-name"    // a filename that may not be one
	Unsupported   Kind = "unsupported"     // a symlink, FIFO, socket or device in place of a file
	Changed       Kind = "changed"         // the source changed while it was read
	TierRefused   Kind = "tier-refused"    // a tier without its identity, or two names of one folder
	NoSpace       Kind = "no-space"        // a tier is full
	Suspect       Kind = "suspect"         // a tier could not be read or written as it should: do not trust it
	Lost          Kind = "lost"            // the lock or the entry is somebody else's now
	Busy          Kind = "busy"            // somebody else is at work on it; not a failure
	Unavailable   Kind = "unavailable"     // a server cannot be reached now
	Internal      Kind = "internal"        // anything else
)

// Permanent tells whether trying again without a change from outside is hopeless.
func (k Kind) Permanent() bool {
	switch k {
	case Malformed, Unknown, Conflict, Unprocessable, MissingFile, InvalidName, Unsupported:
		return true
	}
	return false
}

// Error is an error with its kind, what was being done, to what, and, for operators, the next step.
type Error struct {
	Kind    Kind
	Op      string // what was being done: "publish", "look up"
	Subject string // to what: a path, a cid, a level
	Hint    string // what to do about it; "" where there is nothing to say
	Level   string // whose tier has failed; "" where it was no tier, or nobody knows
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

// Is tells whether err is of the kind.
func Is(err error, kind Kind) bool { return err != nil && KindOf(err) == kind }
