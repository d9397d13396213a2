// Package state has everything that Tierflow keeps in Redis, except the consumers of the streams. These are the names of
// the keys, the JSON of an item's state, and the Lua scripts of the protocol (docs/design.md, "Protocol"). A comment before
// each script lists its keys, arguments and results. A script is one atomic step. All are safe to run again when a reply
// was lost, except those that append a view event, which the api never repeats.
package state

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tierflow/tierflow/shared/entryid"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
)

// Status of an item's newest event.
type Status string

// Update: the item must move, and the move is not emitted yet. Done: a relocator has nothing left to do.
const (
	Update Status = "update"
	Done   Status = "done"
)

// State is the value of `content:{cid}`: the newest event of an item and what became of it.
type State struct {
	ID        item.ID
	Count     item.Count
	Target    string // level that the count, or a pin, calls for
	DBLevel   string // level that MySQL names
	Filename  string
	WorkerID  string // the relocator that works on it; "" is null
	Status    Status
	EventID   string
	EntryID   string // id of the event's entry in `views`
	UpdatedAt time.Time
}

// AppendAnswer appends the seven fields of the answer of POST /post_sentence, in the form of Python's json.dumps.
func (s State) AppendAnswer(b []byte) []byte { return append(s.appendOpen(b), '}') }

func (s State) appendOpen(b []byte) []byte {
	b = append(b, `{"cid": "`...)
	b = append(b, s.ID.String()...)
	b = append(b, `", "count": "`...)
	b = append(b, s.Count.String()...)
	b = append(b, `", "target": `...)
	b = appendString(b, s.Target)
	b = append(b, `, "db_level": `...)
	b = appendString(b, s.DBLevel)
	b = append(b, `, "filename": `...)
	b = appendString(b, s.Filename)
	b = append(b, `, "worker_id": `...)
	if s.WorkerID == "" {
		b = append(b, "null"...)
	} else {
		b = appendString(b, s.WorkerID)
	}
	b = append(b, `, "status": "`...)
	b = append(b, s.Status...)
	return append(b, '"')
}

// entryID and updatedAt stand before the values of these fields. The scripts look for them as well.
const (
	entryID   = `", "entry_id": "`
	updatedAt = `", "updated_at": "`
)

// The JSON is head + entry id + tail, because only Redis knows the entry id when it appends an event.
func (s State) head() string { return string(s.appendHead(make([]byte, 0, 256))) }

func (s State) appendHead(b []byte) []byte {
	b = s.appendOpen(b)
	b = append(b, `, "event_id": "`...)
	b = append(b, s.EventID...)
	return append(b, entryID...)
}

func (s State) tail() string {
	return updatedAt + event.FormatTime(s.UpdatedAt) + `"}`
}

// entryOf finds the entry id in the value of `content:{cid}`, for a tenth of what Parse costs. "" where it has none. No string
// of the JSON has a bare quote inside, so the name of the field stands nowhere else.
func entryOf(value string) string {
	_, after, _ := strings.Cut(value, entryID)
	id, _, found := strings.Cut(after, updatedAt)
	if !found || !entryid.Valid(id) {
		return ""
	}
	return id
}

// JSON is the value of `content:{cid}`.
func (s State) JSON() string { return s.head() + s.EntryID + s.tail() }

// Parse reads the value of `content:{cid}`.
func Parse(value string) (State, error) {
	var j struct {
		CID       string  `json:"cid"`
		Count     string  `json:"count"`
		Target    string  `json:"target"`
		DBLevel   string  `json:"db_level"`
		Filename  string  `json:"filename"`
		WorkerID  *string `json:"worker_id"`
		Status    Status  `json:"status"`
		EventID   string  `json:"event_id"`
		EntryID   string  `json:"entry_id"`
		UpdatedAt string  `json:"updated_at"`
	}
	if err := json.Unmarshal([]byte(value), &j); err != nil {
		return State{}, fmt.Errorf("state: %w", err)
	}
	s := State{
		Target: j.Target, DBLevel: j.DBLevel, Filename: j.Filename, Status: j.Status,
		EventID: j.EventID, EntryID: j.EntryID,
	}
	var err error
	if s.ID, err = item.ParseID(j.CID); err != nil {
		return State{}, fmt.Errorf("state: cid %w", err)
	}
	if s.Count, err = item.ParseCount(j.Count); err != nil {
		return State{}, fmt.Errorf("state: count %w", err)
	}
	if j.WorkerID != nil {
		s.WorkerID = *j.WorkerID
	}
	if s.UpdatedAt, err = time.Parse(time.RFC3339Nano, j.UpdatedAt); err != nil {
		return State{}, fmt.Errorf("state: updated_at: %w", err)
	}
	return s, nil
}

const hex = "0123456789abcdef"

// appendString appends s as json.dumps does by default: ASCII only, surrogate pairs in lower-case hex, and no
// escape for <, > and &. Invalid UTF-8 becomes U+FFFD. Filenames are always valid: item.CheckFilename refuses others.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			i++
			switch {
			case c == '"' || c == '\\':
				b = append(b, '\\', c)
			case c == '\n':
				b = append(b, `\n`...)
			case c == '\r':
				b = append(b, `\r`...)
			case c == '\t':
				b = append(b, `\t`...)
			case c == '\b':
				b = append(b, `\b`...)
			case c == '\f':
				b = append(b, `\f`...)
			case c < 0x20 || c == 0x7f:
				b = appendUnit(b, rune(c))
			default:
				b = append(b, c)
			}
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		i += n
		if r > 0xffff {
			r -= 0x10000
			b = appendUnit(b, 0xd800+r>>10)
			r = 0xdc00 + r&0x3ff
		}
		b = appendUnit(b, r)
	}
	return append(b, '"')
}

func appendUnit(b []byte, r rune) []byte {
	return append(b, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
}
