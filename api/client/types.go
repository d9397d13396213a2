package client

import (
	"encoding/json"

	"github.com/tierflow/tierflow/shared/item"
)

// Sentence is the answer to POST /post_sentence: the state of an item. The original system writes numbers as texts.
type Sentence struct {
	CID      string  `json:"cid"`
	Count    string  `json:"count"`
	Target   string  `json:"target"`   // the level that the count or a pin calls for
	DBLevel  string  `json:"db_level"` // the level that MySQL names
	Filename string  `json:"filename"`
	WorkerID *string `json:"worker_id"`
	Status   string  `json:"status"` // update or done
}

// View is a view event to post: the current count of an item.
type View struct {
	CID   item.ID    `json:"cid"`
	Count item.Count `json:"count"`
}

// Accepted says what became of one posted view event.
type Accepted struct {
	EventID string `json:"event_id"`
	Status  string `json:"status"` // update or done
	Target  string `json:"target"`
}

// Batch is the result of a batch of view events.
type Batch struct {
	Accepted     int64     `json:"accepted"` // at least so many are in the stream
	Refused      []Refusal `json:"refused"`  // the first 1000
	RefusedTotal int64     `json:"refused_total"`
	// LinesDone is set only where the batch broke off, in the Problem: every line up to this one was accepted or refused.
	// Some of the later lines may have been accepted too.
	LinesDone *int64 `json:"lines_done,omitempty"`
}

// Refusal is a line of a batch that was not accepted.
type Refusal struct {
	Line   int64  `json:"line"` // counted from 1
	Type   string `json:"type"` // as in Problem
	Detail string `json:"detail"`
}

// Item is one item: its row, its newest view event and its place.
type Item struct {
	CID          item.ID    `json:"cid"`
	Level        string     `json:"level"`
	Filename     string     `json:"filename"`
	Generation   int64      `json:"generation"`
	ViewCount    item.Count `json:"view_count"` // the last count that was settled
	SizeBytes    int64      `json:"size_bytes"` // of the last copy
	Digest       string     `json:"digest"`     // of the last copy: sha256:<hex>, or ""
	PinnedLevel  *string    `json:"pinned_level"`
	PinnedUntil  *string    `json:"pinned_until,omitempty"` // when the pin ends by itself; nil: never
	GenerateTime string     `json:"generate_time"`
	UpdateTime   string     `json:"update_time"`
	State        *State     `json:"state"`              // nil where Redis has none
	Location     *Location  `json:"location"`           // nil where the row names a level that does not exist
	Decision     *Decision  `json:"decision,omitempty"` // of one item alone; nil where it was never counted, moved or pinned
}

// Decision says where an item belongs, and why.
type Decision struct {
	Target    string     `json:"target"`             // the item's own level where it stays
	Wanted    string     `json:"wanted"`             // the level whose range holds the count
	Reason    string     `json:"reason"`             // pinned, readonly, draining, count, hysteresis, residency or observe
	Count     item.Count `json:"count"`              // the newest count, by which it is decided
	FromCount item.Count `json:"from_count"`         // the lowest count with which the target stays the same
	ToCount   *int64     `json:"to_count"`           // the highest such count; nil: no upper end
	ReviewAt  *string    `json:"review_at"`          // when the target may change without a new count; nil: never
	Enforced  *string    `json:"enforced,omitempty"` // the target if the policy did not only observe; nil where it does not
}

// State is the newest view event of an item.
type State struct {
	Count     item.Count `json:"count"`
	Target    string     `json:"target"`
	DBLevel   string     `json:"db_level"`
	WorkerID  *string    `json:"worker_id"`
	Status    string     `json:"status"` // update or done
	EventID   string     `json:"event_id"`
	EntryID   string     `json:"entry_id"`
	UpdatedAt string     `json:"updated_at"`
}

// Location is where the file of an item is.
type Location struct {
	Level      string `json:"level"`
	Path       string `json:"path"` // absolute
	Generation int64  `json:"generation"`
}

// Items is a page of items, ascending by cid.
type Items struct {
	Contents  []Item   `json:"contents"`
	NextAfter *item.ID `json:"next_after"` // nil at the end
}

// NewItem is an item to register.
type NewItem struct {
	CID      item.ID `json:"cid"`
	Filename string  `json:"filename"`        // relative to the root of the tier
	Level    *string `json:"level,omitempty"` // where the file is; nil: on the level that starts at 0
}

// Pin is the level to hold an item on.
type Pin struct {
	Level string  `json:"level"`
	Until *string `json:"until,omitempty"` // when the pin ends by itself, as in RFC 3339; nil: never
}

// Plan is what a document of levels would move, if it were set now.
type Plan struct {
	Moves  []PlannedMove  `json:"moves"` // by from and to
	Levels []PlannedLevel `json:"levels"`
}

// PlannedMove is what a Plan would move from one level to another.
type PlannedMove struct {
	From    string `json:"from"`
	To      string `json:"to"`
	Items   int64  `json:"items"`
	Bytes   int64  `json:"bytes"`
	Unsized int64  `json:"unsized"` // items whose size is not known, because they were never copied: they have 0 bytes here
}

// PlannedLevel is what a level has before and after a Plan.
type PlannedLevel struct {
	Level      string `json:"level"`
	Items      int64  `json:"items"`
	Bytes      int64  `json:"bytes"`
	ItemsAfter int64  `json:"items_after"`
	BytesAfter int64  `json:"bytes_after"`
}

// Move is a row of the history of an item: a committed move.
type Move struct {
	ID             int64      `json:"id"`
	EventID        string     `json:"event_id"`
	CID            item.ID    `json:"cid"`
	OldLevel       string     `json:"old_level"`
	NewLevel       string     `json:"new_level"`
	PrevUpdateTime string     `json:"prev_update_time"`
	UpdateTime     string     `json:"update_time"`
	ViewCount      item.Count `json:"view_count"`
	Bytes          int64      `json:"bytes"`
	DurationUS     int64      `json:"duration_us"`
	WorkerID       string     `json:"worker_id"`
	Reason         string     `json:"reason,omitempty"` // as in Decision; empty where it was not recorded
}

// History is a page of moves, newest first.
type History struct {
	History    []Move `json:"history"`
	NextBefore *int64 `json:"next_before"` // nil at the end
}

// Level is a level: a range of counts and the folder of its tier.
type Level struct {
	Level     string `json:"level"`
	MinCounts int64  `json:"min_counts"`
	MaxCounts *int64 `json:"max_counts"` // inclusive; nil: no upper end
	Path      string `json:"path"`       // absolute
	TierID    string `json:"tier_id"`    // ignored where levels are set
	// An item leaves the level downwards only when its count is below this one; nil: MinCounts.
	DemoteCounts *int64 `json:"demote_counts,omitempty"`
	MinResidency int64  `json:"min_residency,omitempty"` // seconds for which an item that came to the level does not go down
	State        string `json:"state,omitempty"`         // readonly or draining; else active
	Contents     *int64 `json:"contents"`                // how many items the level has; nil: counting takes too long. Ignored where levels are set
}

// Levels are all levels, ascending.
type Levels struct {
	Levels []Level `json:"levels"`
	Mode   string  `json:"mode,omitempty"` // observe: nothing moves; else enforce
}

// Relocation is a view event that a relocator has read and not settled.
type Relocation struct {
	EntryID    string     `json:"entry_id"`
	EventID    string     `json:"event_id"`
	CID        item.ID    `json:"cid"`
	Count      item.Count `json:"count"`
	Filename   string     `json:"filename"`
	From       string     `json:"from"` // of the move under way, else as the event was posted
	To         string     `json:"to"`
	WorkerID   string     `json:"worker_id"` // the relocator that has the entry, or had it last
	Deliveries int64      `json:"deliveries"`
	IdleMS     int64      `json:"idle_ms"` // since the last sign of life
	Moving     bool       `json:"moving"`  // false: the entry waits for a lock, a retry or a release
	BytesDone  *int64     `json:"bytes_done"`
	BytesTotal *int64     `json:"bytes_total"`
	UpdatedAt  *string    `json:"updated_at"`
}

// Unreachable is a set of tiers that no living relocator reaches together, though entries wait for one that does.
type Unreachable struct {
	Tiers  []string `json:"tiers"`
	SeenAt string   `json:"seen_at"`
}

// Relocations is a page of what is in flight, oldest first.
type Relocations struct {
	Relocations []Relocation  `json:"relocations"`
	NextAfter   *string       `json:"next_after"` // nil at the end
	Unsettled   int64         `json:"unsettled"`  // entries of all streams that are not settled, read or unread
	Paused      bool          `json:"paused"`
	Unreachable []Unreachable `json:"unreachable"`
}

// WaitingEntry is an entry of a stream that waits at a worker.
type WaitingEntry struct {
	Stream   string  `json:"stream"` // views, relocated or committed
	EntryID  string  `json:"entry_id"`
	CID      string  `json:"cid"` // as the entry has it
	WorkerID string  `json:"worker_id"`
	Reason   string  `json:"reason"` // a word, such as lock, server, tier-away or retry
	Error    string  `json:"error"`  // the last one; "" where there was none
	Since    string  `json:"since"`
	Attempts int64   `json:"attempts"` // those that have failed
	NextTry  *string `json:"next_try"` // nil: when what it waits for is there
}

// Waiting is what waits at the workers.
type Waiting struct {
	Waiting  []WaitingEntry   `json:"waiting"`   // those that have waited for a few seconds, the longest first
	Total    int64            `json:"total"`     // all that are parked, also for a moment or for the grace; what hangs or is being tried again is listed only
	ByReason map[string]int64 `json:"by_reason"` // the same by reason
}

// Paused says whether relocations are paused.
type Paused struct {
	Paused     bool     `json:"paused"`
	WaitingFor []string `json:"waiting_for"` // relocators that live and have not said that they begin no more moves
}

// DeadLetter is an entry that failed for good.
type DeadLetter struct {
	ID           string            `json:"id"`
	Stage        string            `json:"stage"`  // relocate, commit or release
	Reason       string            `json:"reason"` // a fault.Kind, or exhausted
	Error        string            `json:"error"`
	Attempts     int64             `json:"attempts"`
	SourceStream string            `json:"source_stream"`
	SourceID     string            `json:"source_id"`
	FailedAt     string            `json:"failed_at"`
	Times        int64             `json:"times"`           // how many dead letters of this item and stage there have been, with this one; it has replaced the others
	FirstFailed  string            `json:"first_failed_at"` // the first time
	Entry        map[string]string `json:"entry"`           // the fields of the entry that failed
}

// DeadLetters is a page of dead letters, oldest first.
type DeadLetters struct {
	Dead      []DeadLetter `json:"dead"`
	NextAfter *string      `json:"next_after"` // nil at the end
}

// Retried names the entry that a dead letter was appended as.
type Retried struct {
	EventID string `json:"event_id"`
	EntryID string `json:"entry_id"`
}

// Event is one server-sent event.
type Event struct {
	Event string          `json:"event"`        // views, relocated, committed, dead, progress, slow or reset; "" where only the position changes
	ID    string          `json:"id,omitempty"` // the position to resume after; "" for progress and reset
	Data  json.RawMessage `json:"data"`         // an object of texts: the fields of the entry
}

// Status is one look at everything.
type Status struct {
	At           string           `json:"at"`
	Attention    []Attention      `json:"attention"` // what waits for a human, worst first; empty: nothing does
	Services     []Service        `json:"services"`
	Tiers        []Tier           `json:"tiers"` // in the order of their levels' ranges
	Rates        Rates            `json:"rates"`
	Stages       []Stage          `json:"stages"`
	Waiting      map[string]int64 `json:"waiting"` // entries that wait at the workers, by reason
	WaitingTotal int64            `json:"waiting_total"`
	OldestWait   *WaitingEntry    `json:"oldest_wait"` // the entry that has waited longest at a worker; nil: none has for long
	Dead         []DeadKind       `json:"dead"`
	DeadTotal    int64            `json:"dead_total"`
	Paused       bool             `json:"paused"`
	Unreachable  []Unreachable    `json:"unreachable"`
}

// Tier is the tier of a level, as the living relocators see it: the worst state and the newest figures.
type Tier struct {
	Level        string  `json:"level"`
	Path         string  `json:"path"`  // "" where MySQL does not tell
	State        string  `json:"state"` // ok, draining, full, read-only, failing, suspect, away, no-identity, refused, hanging or unknown
	Reason       string  `json:"reason"`
	Since        *string `json:"since"`        // when it came into the state; nil: unknown
	Waiting      int64   `json:"waiting"`      // entries that wait for it
	TotalBytes   *int64  `json:"total_bytes"`  // nil: unknown; then the other bytes are nil too
	UsedBytes    *int64  `json:"used_bytes"`   // by anybody
	FreeBytes    *int64  `json:"free_bytes"`   // what a relocator may use
	TotalInodes  *int64  `json:"total_inodes"` // nil: the file system has no fixed number of them
	FreeInodes   *int64  `json:"free_inodes"`
	FiguresAgeMS *int64  `json:"figures_age_ms"`
	WorkerID     string  `json:"worker_id"` // a relocator that reports the state; "": none reports it
	Disagree     bool    `json:"disagree"`  // another relocator reports another state
}

// Rates are averages of the last minute.
type Rates struct {
	Views float64 `json:"views"` // view events that the apis have accepted, a second
	Moves float64 `json:"moves"` // copies that the relocators have made, a second
	Bytes float64 `json:"bytes"` // of these copies, a second
}

// Attention is something that waits for a human.
type Attention struct {
	Kind string `json:"kind"` // a word for programs, such as no-relocator
	What string `json:"what"` // a sentence
	Do   string `json:"do"`   // what to do about it
}

// Service is a program that reports itself.
type Service struct {
	Program   string            `json:"program"` // api, relocator, committer
	ID        string            `json:"id"`
	Version   string            `json:"version"`    // "" from one of an older version
	StartedAt *string           `json:"started_at"` // nil from one of an older version
	Alive     bool              `json:"alive"`
	Ready     bool              `json:"ready"`   // it lives and misses nothing
	AgeMS     int64             `json:"age_ms"`  // since its last report
	Missing   map[string]string `json:"missing"` // what its /readyz says, by check
	Warnings  map[string]string `json:"warnings"`
}

// Stage is what waits at a stage of the pipeline.
type Stage struct {
	Stage     string `json:"stage"` // relocate, commit or release
	Unsettled int64  `json:"unsettled"`
	OldestMS  int64  `json:"oldest_ms"` // the age of the oldest entry; 0 where there is none
	GraceMS   int64  `json:"grace_ms"`  // of releases: how long each waits on purpose
}

// DeadKind counts dead letters.
type DeadKind struct {
	Stage  string `json:"stage"` // stage and reason are "" for dead letters of older versions
	Reason string `json:"reason"`
	Count  int64  `json:"count"`
}
