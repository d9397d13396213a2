// Package lookup caches rows and levels, so that most requests need no query. A cached row is used for at most a second, so rows
// may be written by SQL at any time. An unknown id is never cached. While MySQL is away, cached rows are used whatever their age.
package lookup

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/outage"
	"github.com/tierflow/tierflow/shared/policy"
)

const (
	// fresh is how long a row is used, counted from before its query.
	fresh = time.Second
	// renewAfter is the age at which Run reads a row again before it expires, together with other rows. The same holds for
	// the levels. So no request waits for a row that is requested all the time.
	renewAfter = 850 * time.Millisecond
	// renewEvery is how often Run searches for rows of that age, and maxRenewals is how many of them one query reads. A
	// request for another row may have to wait for such a query first.
	renewEvery  = 50 * time.Millisecond
	maxRenewals = 250
	// renewUnused is how many times in a row Run renews a row that no request has used. One row among hundreds costs a
	// tenth of a row that a request waits for. The number doubles, up to maxRenewUnused, each time that a row is requested
	// soon after it expired. Where renewals are late, every row has only renewUnused.
	renewUnused    = 2
	maxRenewUnused = 8
	// timeout bounds a query: a hung server must not delay requests whose rows are cached.
	timeout = time.Second
	// probeEvery is how often a query is tried while MySQL is away.
	probeEvery = 250 * time.Millisecond
	// defaultSize is the number of rows in the cache, at about 400 bytes each.
	defaultSize = 100_000
)

// Catalog is what lookup needs of catalog.Catalog.
type Catalog interface {
	Placements(ctx context.Context, ids []item.ID, fn func(catalog.Row)) error
	Policy(ctx context.Context) (policy.Policy, error)
}

// Options of a Cache.
type Options struct {
	Catalog Catalog
	Size    int // max number of rows; 100,000 by default
	Log     *zap.Logger
	Metrics prometheus.Registerer
}

// Cache looks items up. Its methods wait for Run, so start Run first.
type Cache struct {
	catalog Catalog
	away    *outage.Outage // of MySQL
	invalid *outage.Outage // the level table is
	rows    *otter.Cache[item.ID, *entry]
	policy  atomic.Pointer[levels]
	down    atomic.Bool // MySQL does not answer: requests make no query and do not wait
	begin   time.Time
	wake    chan struct{}
	queries prometheus.Counter
	recent  []*entry // in the order of their queries, oldest first; only Run uses it

	mu      sync.Mutex
	next    *query // the next query
	running *query // the query under way; nil between queries
}

type levels struct {
	policy.Policy
	read int64
}

const expired = -int64(time.Hour)

// Found is an item's row and the levels. They were read at most a second ago, or earlier while MySQL is away.
type Found struct {
	Row    *catalog.Row // only ID, Level, Filename and Pinned; must not be changed
	Policy policy.Policy
}

// New makes a Cache.
func New(o Options) *Cache {
	if o.Size == 0 {
		o.Size = defaultSize
	}
	c := &Cache{
		catalog: o.Catalog, begin: time.Now(), wake: make(chan struct{}, 1), next: newQuery(),
		away:    outage.Say("MySQL does not answer: cached items are used", "MySQL answers again", o.Log),
		invalid: outage.Say("the level table is invalid: the last valid levels stay in use", "the level table is valid again", o.Log),
		rows:    otter.Must(&otter.Options[item.ID, *entry]{MaximumSize: o.Size}),
		queries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tierflow_lookup_queries_total", Help: "Queries for rows; each serves many requests."}),
	}
	o.Metrics.MustRegister(c.queries, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tierflow_lookup_rows", Help: "Rows in the cache."}, func() float64 { return float64(c.rows.EstimatedSize()) }))
	return c
}

// now is the time since begin, in ns. So a hit costs a comparison of two numbers.
func (c *Cache) now() int64 { return int64(time.Since(c.begin)) }

// Find looks an item up. The error is fault.Unknown where there is no row, and fault.Unavailable while MySQL is away and the row
// is not in the cache.
func (c *Cache) Find(ctx context.Context, id item.ID) (Found, error) {
	e, p := c.cached(id), c.policy.Load()
	if since := c.now() - int64(fresh); e != nil && p != nil && e.read.Load() > since && p.read > since {
		return Found{&e.row, p.Policy}, nil
	}
	if c.down.Load() {
		return c.stale(id, errAway)
	}
	t := c.join(false, id)
	if err := t.wait(ctx); err != nil {
		return c.stale(id, err)
	}
	return c.from(t, id)
}

// FindMany looks items up with at most one query, and calls fn for each id, in order, with what Find would return.
func (c *Cache) FindMany(ctx context.Context, ids []item.ID, fn func(i int, f Found, err error)) {
	known := make([]*entry, len(ids))
	var missing []item.ID
	p, since := c.policy.Load(), c.now()-int64(fresh)
	for i, id := range ids {
		if e := c.cached(id); e != nil && e.read.Load() > since {
			known[i] = e
		} else {
			missing = append(missing, id)
		}
	}
	var t *query
	var err error
	if len(missing) > 0 || p == nil || p.read <= since {
		err = errAway
		if !c.down.Load() {
			t = c.join(false, missing...)
			err = t.wait(ctx)
		}
		p = c.policy.Load()
	}
	for i, id := range ids {
		var f Found
		var ferr error
		switch {
		case p == nil:
			ferr = err
		case known[i] != nil:
			f = Found{&known[i].row, p.Policy}
		case err == nil:
			f, ferr = c.from(t, id)
		default:
			f, ferr = c.stale(id, err)
		}
		fn(i, f, ferr)
	}
}

// Fresh reads a row from MySQL with a query that begins after the call.
func (c *Cache) Fresh(ctx context.Context, id item.ID) (Found, error) {
	if c.down.Load() {
		return Found{}, errAway
	}
	t := c.join(true, id)
	if err := t.wait(ctx); err != nil {
		return Found{}, err
	}
	return c.from(t, id)
}

// Policy returns the levels, at most a second old, or older while MySQL is away.
func (c *Cache) Policy(ctx context.Context) (policy.Policy, error) {
	p := c.policy.Load()
	var err error
	if p == nil || p.read <= c.now()-int64(fresh) {
		err = errAway
		if !c.down.Load() {
			err = c.join(false).wait(ctx)
		}
		p = c.policy.Load()
	}
	if p == nil {
		return policy.Policy{}, err
	}
	return p.Policy, nil
}

// Invalidate marks a row as changed: it is read again before the next use.
func (c *Cache) Invalidate(id item.ID) {
	c.mu.Lock()
	if c.running != nil && c.running.ids[id] {
		c.running.dirty = append(c.running.dirty, id)
	}
	c.mu.Unlock()
	if e, ok := c.rows.GetEntryQuietly(id); ok {
		e.Value.read.Store(expired)
	}
}

// InvalidatePolicy marks the levels as changed: they are read again before the next use.
func (c *Cache) InvalidatePolicy() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running != nil {
		c.running.stale = true
	}
	if p := c.policy.Load(); p != nil {
		c.policy.Store(&levels{p.Policy, expired})
	}
}

func (c *Cache) cached(id item.ID) *entry {
	e, ok := c.rows.GetIfPresent(id)
	if !ok {
		return nil
	}
	if !e.used.Load() { // a write at each hit would take the cache line from the other cores
		e.used.Store(true)
	}
	return e
}

// stale answers from the cache, whatever the row's age. Where the row is not in the cache, it returns err.
func (c *Cache) stale(id item.ID, err error) (Found, error) {
	e, p := c.cached(id), c.policy.Load()
	if e == nil || p == nil {
		return Found{}, err
	}
	return Found{&e.row, p.Policy}, nil
}

func (c *Cache) from(t *query, id item.ID) (Found, error) {
	e := t.rows[id]
	if e == nil {
		return Found{}, fault.New(fault.Unknown, "look up item", id.String(), errors.New("there is no such item"))
	}
	return Found{&e.row, c.policy.Load().Policy}, nil
}

var errAway = &fault.Error{Kind: fault.Unavailable, Op: "look up item", Err: errors.New("MySQL does not answer"),
	Hint: "items that were posted lately are still accepted"}

// Answers returns nil where rows are read from MySQL, and an error while only cached rows are used. Readiness depends on
// it.
func (c *Cache) Answers(context.Context) error {
	if c.down.Load() {
		return errAway
	}
	return nil
}
