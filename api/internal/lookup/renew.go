package lookup

import (
	"sync/atomic"
	"time"

	"github.com/tierflow/tierflow/shared/catalog"
)

// entry is a row and the time when it was read, in ns since Cache.begin. expired is that time where the row must be read
// again.
type entry struct {
	row     catalog.Row // of it only ID, Level, Filename and Pinned
	read    atomic.Int64
	used    atomic.Bool // a request has used it since
	idle    int         // renewals before this one in which no request has used it
	maxIdle int         // max number of such renewals in a row; then the row is read when a request needs it
}

// nextMaxIdle returns the maxIdle of the entry that replaces this one, where this one has the given age.
func (e *entry) nextMaxIdle(age time.Duration) int {
	switch more := 2 * e.maxIdle; {
	case age <= fresh: // it was renewed in time
		return e.maxIdle
	case age < time.Duration(e.maxIdle+1)*renewAfter && more <= maxRenewUnused: // twice as many renewals would have kept the row fresh
		return more
	default:
		return renewUnused
	}
}

// addDue adds the rows that are due for renewal to a query. Where more rows are due than one query takes, another query
// follows.
func (c *Cache) addDue(t *query) {
	until := c.now() - int64(renewAfter)
	added := 0
	for len(c.recent) > 0 && added < maxRenewals {
		e := c.recent[0]
		read := e.read.Load()
		if read > until {
			break
		}
		c.recent[0] = nil
		c.recent = c.recent[1:]
		if now, ok := c.rows.GetEntryQuietly(e.row.ID); !ok || now.Value != e {
			continue // the row was read again since, or the cache has evicted it
		}
		idle := e.idle + 1
		if e.used.Load() {
			idle = 0
		}
		late := read <= until-int64(renewEvery)
		if read == expired || idle > e.maxIdle || idle > renewUnused && late {
			continue
		}
		c.mu.Lock()
		t.ids[e.row.ID] = true // Invalidate looks for the id there
		c.mu.Unlock()
		t.idle[e.row.ID] = idle
		added++
	}
	if added == maxRenewals {
		c.signal()
	}
}
