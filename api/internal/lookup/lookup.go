// Package lookup knows contents and levels without asking MySQL each time. A row serves for a second at most, so
// that rows may be written by SQL at any time; what is unknown is never remembered. While MySQL is away, rows that
// were seen before go on serving.
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
	"github.com/tierflow/tierflow/shared/policy"
)

const (
	// fresh is how long a row serves, counted from before it was read.
	fresh = time.Second
	// renewAfter is the age at which a row is read again, with others and while nobody waits for it, and so are the levels:
	// what is asked for all the time never expires.
	renewAfter = 850 * time.Millisecond
	// renewEvery is how often rows of that age are looked for, and renewMost how many of them one query reads: those
	// who wait for another row may have to wait for such a query first.
	renewEvery = 50 * time.Millisecond
	renewMost  = 250
	// renewUnused is how many times in a row a row is renewed that has not served from the cache: one among hundreds costs
	// a tenth of one that is waited for. It doubles, up to renewUnusedMost, each time that a row is asked for soon after it
	// was let go; and where renewals are late, all have only renewUnused.
	renewUnused     = 2
	renewUnusedMost = 8
	// timeout is the longest that MySQL may take: a hung server must not hold up those whose rows are known.
	timeout = time.Second
	// probeEvery is how often MySQL is asked while it is away.
	probeEvery = 250 * time.Millisecond
	// defaultSize bounds the cache, at some 400 bytes a row.
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
	Size    int // rows at most; 100,000 by default
	Log     *zap.Logger
	Metrics prometheus.Registerer
}

// Cache looks contents up. Run must be started.
type Cache struct {
	catalog Catalog
	log     *zap.Logger
	rows    *otter.Cache[item.ID, *entry]
	policy  atomic.Pointer[levels]
	down    atomic.Bool // MySQL does not answer: do not ask, do not wait
	begin   time.Time
	kick    chan struct{}
	queries prometheus.Counter
	recent  []*entry // in the order in which they were read, the oldest first; Run's own

	mu     sync.Mutex
	next   *trip // what the next query asks for
	flying *trip // what is asked now; nil between queries
}

// entry is a row and when it was read, in ns since begin; expired where it must be read again.
type entry struct {
	row  catalog.Row // of it only ID, Level, Filename and Pinned
	read atomic.Int64
	used atomic.Bool // has served since then
	idle int         // renewals before this one without having served
	most int         // such renewals in a row, and then it is read when it is asked for
}

// nextMost is what most is to be when the entry is read again at that age.
func (e *entry) nextMost(age time.Duration) int {
	switch more := 2 * e.most; {
	case age <= fresh: // it was not let go
		return e.most
	case age < time.Duration(e.most+1)*renewAfter && more <= renewUnusedMost: // as many again would have kept it
		return more
	default:
		return renewUnused
	}
}

type levels struct {
	policy.Policy
	read int64
}

const expired = -int64(time.Hour)

// trip is one query for the rows of many requests. The fields below done are set before it is closed.
type trip struct {
	ids   map[item.ID]bool
	dirty []item.ID       // invalidated while the query was under way
	stale bool            // so was the policy
	idle  map[item.ID]int // of entries that are renewed; Run's own
	done  chan struct{}
	rows  map[item.ID]*entry
	err   error
}

func newTrip() *trip {
	return &trip{ids: map[item.ID]bool{}, idle: map[item.ID]int{}, done: make(chan struct{})}
}

// Found is a content and the levels, as they were read at most a second ago, or, while MySQL is away, before that.
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
		catalog: o.Catalog, log: o.Log, begin: time.Now(), kick: make(chan struct{}, 1), next: newTrip(),
		rows: otter.Must(&otter.Options[item.ID, *entry]{MaximumSize: o.Size}),
		queries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tierflow_lookup_queries_total", Help: "Queries for rows; each serves many requests."}),
	}
	o.Metrics.MustRegister(c.queries, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tierflow_lookup_rows", Help: "Rows in the cache."}, func() float64 { return float64(c.rows.EstimatedSize()) }))
	return c
}

// now is in ns since begin: a comparison of two numbers is all that a hit costs.
func (c *Cache) now() int64 { return int64(time.Since(c.begin)) }

// Find looks a content up. The error is fault.Unknown, or fault.Unavailable while MySQL is away and the content
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

// FindMany looks contents up with one query at most, and calls fn for each id, in order. Its arguments are as
// Find returns them.
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
	var t *trip
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

// Fresh reads a row now, from MySQL: the query begins after the call.
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

// Policy returns the levels, at most a second old, or older ones while MySQL is away.
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

// Invalidate has a content read again before it serves: somebody has changed its row.
func (c *Cache) Invalidate(id item.ID) {
	c.mu.Lock()
	if c.flying != nil && c.flying.ids[id] {
		c.flying.dirty = append(c.flying.dirty, id)
	}
	c.mu.Unlock()
	if e, ok := c.rows.GetEntryQuietly(id); ok {
		e.Value.read.Store(expired)
	}
}

// InvalidatePolicy has the levels read again before they serve.
func (c *Cache) InvalidatePolicy() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flying != nil {
		c.flying.stale = true
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
	if !e.used.Load() { // a write would take the memory away from the other cores, each time
		e.used.Store(true)
	}
	return e
}

// stale answers from the cache, however old, else with err.
func (c *Cache) stale(id item.ID, err error) (Found, error) {
	e, p := c.cached(id), c.policy.Load()
	if e == nil || p == nil {
		return Found{}, err
	}
	return Found{&e.row, p.Policy}, nil
}

func (c *Cache) from(t *trip, id item.ID) (Found, error) {
	e := t.rows[id]
	if e == nil {
		return Found{}, fault.New(fault.Unknown, "look up content", id.String(), errors.New("there is no such content"))
	}
	return Found{&e.row, c.policy.Load().Policy}, nil
}

var errAway = &fault.Error{Kind: fault.Unavailable, Op: "look up content", Err: errors.New("MySQL does not answer"),
	Hint: "contents that were posted lately are still accepted"}

// join adds ids to a query: to the next one, or, unless it must begin after the call, to the one under way where
// that asks for the id already.
func (c *Cache) join(after bool, ids ...item.ID) *trip {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !after && len(ids) == 1 && c.flying != nil && c.flying.ids[ids[0]] {
		return c.flying
	}
	t := c.next
	for _, id := range ids {
		t.ids[id] = true
	}
	c.signal()
	return t
}

func (t *trip) wait(ctx context.Context) error {
	select {
	case <-t.done:
		return t.err
	case <-ctx.Done():
		return fault.New(fault.Unavailable, "look up content", "", ctx.Err())
	}
}

// Answers tells whether rows are read from MySQL again, nil, or only known ones served: readiness must not be ahead of it.
func (c *Cache) Answers(context.Context) error {
	if c.down.Load() {
		return errAway
	}
	return nil
}

// Run queries until ctx ends. One query is under way at a time: what is asked for meanwhile is the next one.
func (c *Cache) Run(ctx context.Context) {
	for {
		var renew <-chan time.Time
		if len(c.recent) > 0 {
			renew = time.After(renewEvery)
		}
		select {
		case <-ctx.Done():
			c.take().fail(fault.New(fault.Unavailable, "look up content", "", errors.New("the service is stopping")))
			return
		case <-c.kick:
		case <-renew:
		}
		t := c.take()
		c.addDue(t)
		err := c.fly(ctx, t)
		c.mu.Lock()
		c.flying = nil
		if err != nil {
			c.down.Store(true)
		}
		c.mu.Unlock()
		if err == nil {
			close(t.done)
			continue
		}
		t.fail(err)
		c.log.Warn("MySQL does not answer: known contents are served from memory", zap.Error(err))
		c.await(ctx)
	}
}

// addDue adds the rows to a trip that are to be renewed. Where more are due than one trip takes, another one follows.
func (c *Cache) addDue(t *trip) {
	until := c.now() - int64(renewAfter)
	added := 0
	for len(c.recent) > 0 && added < renewMost {
		e := c.recent[0]
		read := e.read.Load()
		if read > until {
			break
		}
		c.recent[0] = nil
		c.recent = c.recent[1:]
		if now, ok := c.rows.GetEntryQuietly(e.row.ID); !ok || now.Value != e {
			continue // it has been read again since, or was not worth its place
		}
		idle := e.idle + 1
		if e.used.Load() {
			idle = 0
		}
		late := read <= until-int64(renewEvery)
		if read == expired || idle > e.most || idle > renewUnused && late {
			continue
		}
		c.mu.Lock()
		t.ids[e.row.ID] = true // Invalidate looks for it there
		c.mu.Unlock()
		t.idle[e.row.ID] = idle
		added++
	}
	if added == renewMost {
		c.signal()
	}
}

// signal has Run make a trip.
func (c *Cache) signal() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// take makes the next trip the one under way.
func (c *Cache) take() *trip {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flying, c.next = c.next, newTrip()
	return c.flying
}

func (t *trip) fail(err error) {
	t.err = err
	close(t.done)
}

// fly reads what is asked for. An error means that MySQL is away.
func (c *Cache) fly(ctx context.Context, t *trip) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	start := c.now()
	if p := c.policy.Load(); p == nil || p.read <= start-int64(renewAfter) {
		got, err := c.catalog.Policy(ctx)
		switch {
		case err == nil:
			c.setPolicy(t, &levels{got, start})
		case fault.KindOf(err) != fault.Unprocessable || p == nil:
			return unavailable(err)
		default:
			// Somebody has made the table invalid by SQL: the last valid levels serve until it is corrected.
			c.log.Warn("the level table is invalid: the last valid levels serve", zap.Error(err))
			c.setPolicy(t, &levels{p.Policy, start})
		}
	}
	if len(t.ids) == 0 {
		return nil
	}
	ids := make([]item.ID, 0, len(t.ids))
	for id := range t.ids {
		ids = append(ids, id)
	}
	c.queries.Inc()
	t.rows = make(map[item.ID]*entry, len(ids))
	err := c.catalog.Placements(ctx, ids, func(row catalog.Row) {
		e := &entry{row: row, idle: t.idle[row.ID], most: renewUnused}
		if was, ok := c.rows.GetEntryQuietly(row.ID); ok {
			e.most = was.Value.nextMost(time.Duration(start - was.Value.read.Load()))
		}
		e.read.Store(start)
		t.rows[row.ID] = e
	})
	if err != nil {
		return unavailable(err)
	}
	for _, id := range ids {
		e := t.rows[id]
		if e == nil {
			c.rows.Invalidate(id)
			continue
		}
		c.rows.Set(id, e)
		c.recent = append(c.recent, e)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range t.dirty {
		if e := t.rows[id]; e != nil {
			e.read.Store(expired)
		}
	}
	return nil
}

func (c *Cache) setPolicy(t *trip, p *levels) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.stale {
		p.read = expired
	}
	c.policy.Store(p)
}

// unavailable keeps what catalog says; an invalid level table without a valid one before it is no better than none.
func unavailable(err error) error {
	if fault.Is(err, fault.Unavailable) {
		return err
	}
	return fault.New(fault.Unavailable, "look up content", "", err)
}

// await fails whoever still waits, and returns when MySQL answers again.
func (c *Cache) await(ctx context.Context) {
	for ctx.Err() == nil {
		c.take().fail(errAway)
		c.mu.Lock()
		c.flying = nil
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-time.After(probeEvery):
		}
		pctx, cancel := context.WithTimeout(ctx, timeout)
		start := c.now()
		p, err := c.catalog.Policy(pctx)
		cancel()
		if last := c.policy.Load(); fault.Is(err, fault.Unprocessable) && last != nil { // it answers: see fly
			p, err = last.Policy, nil
		}
		if err == nil {
			c.mu.Lock()
			c.policy.Store(&levels{p, start})
			c.mu.Unlock()
			c.down.Store(false)
			c.log.Info("MySQL answers again")
			return
		}
	}
}
