package state

import "github.com/tierflow/tierflow/shared/content"

// DefaultPrefix begins every key unless a setting says otherwise.
const DefaultPrefix = "tierflow:"

// Consumer groups; each belongs to one stream.
const (
	GroupRelocator = "relocator" // on Keys.Views
	GroupCommitter = "committer" // on Keys.Relocated
	GroupReleaser  = "releaser"  // on Keys.Committed
)

// Keys makes every key name; no other place does.
type Keys struct{ prefix string }

// NewKeys takes the prefix of all keys.
func NewKeys(prefix string) Keys { return Keys{prefix} }

// Views is the stream of view events.
func (k Keys) Views() string { return k.prefix + "views" }

// Relocated is the stream of durable copies that wait for their commit.
func (k Keys) Relocated() string { return k.prefix + "relocated" }

// Committed is the stream of copies to clear.
func (k Keys) Committed() string { return k.prefix + "committed" }

// Dead is the stream of what failed for good.
func (k Keys) Dead() string { return k.prefix + "dead" }

// Paused is there while relocations are paused.
func (k Keys) Paused() string { return k.prefix + "paused" }

// Content is a content's state, JSON.
func (k Keys) Content(id content.ID) string { return k.prefix + "content:" + id.String() }

// Lock says who is at work on a content.
func (k Keys) Lock(id content.ID) string { return k.prefix + "lock:" + id.String() }

// Progress has the bytes of the move in flight.
func (k Keys) Progress(id content.ID) string { return k.prefix + "progress:" + id.String() }
