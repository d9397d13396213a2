package live

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/tierflow/tierflow/shared/entryid"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/state"
)

// overlap is by how much the clocks of a cluster's nodes may differ. With several partitions, a watcher that continues
// gets the events of this time again.
const overlap = 5 * time.Second

// Position is how far a watcher has read in each stream.
type Position struct {
	entry string   // the last entry of all, as Ref.Text shows it
	ids   []string // the last entry of each of the hub's streams
}

// reaches tells whether the position is at these ids or after them, in every stream.
func (p Position) reaches(ids []string) bool {
	for i, id := range ids {
		if entryid.Newer(id, p.ids[i]) {
			return false
		}
	}
	return true
}

// raise makes the position reach these ids. An entry that one of them names may be gone: then nobody reads up to it.
func (p Position) raise(ids []string) {
	for i, id := range ids {
		if entryid.Newer(id, p.ids[i]) {
			p.ids[i] = id
		}
	}
}

// String is the form that ParsePosition reads: the last entry's id. With one partition, the positions in views, relocated,
// committed and dead follow, with semicolons between. With several partitions they would be too long for each event.
func (p Position) String() string {
	if len(p.ids) > len(streams) {
		return p.entry
	}
	return p.entry + ";" + strings.Join(p.ids, ";")
}

// ParsePosition reads what String wrote, or the id of an entry, which means the same moment in every stream.
func ParsePosition(k state.Keys, s string) (Position, error) {
	entry, rest, exact := strings.Cut(s, ";")
	r, err := state.ParseRef(k, entry)
	if err != nil {
		return Position{}, err
	}
	p := Position{entry: entry, ids: make([]string, len(streams)*k.Partitions())}
	if exact {
		ids := strings.Split(rest, ";")
		if len(ids) != len(p.ids) || k.Partitions() > 1 {
			return Position{}, fault.New(fault.Malformed, "read event id", s, fmt.Errorf("it has %d parts", 1+len(ids)))
		}
		for i, id := range ids {
			if !state.ValidEntryID(id) {
				return Position{}, fault.New(fault.Malformed, "read event id", s, fmt.Errorf("%q is not the id of an entry", id))
			}
			p.ids[i] = id
		}
		return p, nil
	}
	// The position must leave out no event. So the watcher gets again what the other streams got in the same millisecond. With
	// several partitions it gets again what they got in the last seconds, each by its own clock.
	ms, _, _ := strings.Cut(r.ID, "-")
	if k.Partitions() > 1 {
		n, err := strconv.ParseInt(ms, 10, 64)
		if err != nil {
			return Position{}, fault.New(fault.Malformed, "read event id", s, err)
		}
		ms = strconv.FormatInt(max(0, n-overlap.Milliseconds()), 10)
	}
	for i := range p.ids {
		p.ids[i] = ms + "-0"
	}
	return p, nil
}
