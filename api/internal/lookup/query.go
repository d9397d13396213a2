package lookup

import (
	"context"
	"errors"
	"time"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
)

// query reads the rows of many requests. The fields below done are set before done is closed.
type query struct {
	ids   map[item.ID]bool
	dirty []item.ID       // invalidated while the query was under way
	stale bool            // the policy was invalidated too
	idle  map[item.ID]int // of the entries that are renewed; only Run uses it
	done  chan struct{}
	rows  map[item.ID]*entry
	err   error
}

func newQuery() *query {
	return &query{ids: map[item.ID]bool{}, idle: map[item.ID]int{}, done: make(chan struct{})}
}

// join adds ids to the next query. For a single id, it returns the query under way instead where that query reads the id
// already and need not begin after the call.
func (c *Cache) join(after bool, ids ...item.ID) *query {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !after && len(ids) == 1 && c.running != nil && c.running.ids[ids[0]] {
		return c.running
	}
	t := c.next
	for _, id := range ids {
		t.ids[id] = true
	}
	c.signal()
	return t
}

func (t *query) wait(ctx context.Context) error {
	select {
	case <-t.done:
		return t.err
	case <-ctx.Done():
		return fault.New(fault.Unavailable, "look up item", "", ctx.Err())
	}
}

// Run queries until ctx ends. One query is under way at a time; ids that are requested meanwhile go into the next one.
func (c *Cache) Run(ctx context.Context) {
	for {
		var renew <-chan time.Time
		if len(c.recent) > 0 {
			renew = time.After(renewEvery)
		}
		select {
		case <-ctx.Done():
			c.take().fail(fault.New(fault.Unavailable, "look up item", "", errors.New("the service is stopping")))
			return
		case <-c.wake:
		case <-renew:
		}
		t := c.take()
		c.addDue(t)
		err := c.execute(ctx, t)
		c.mu.Lock()
		c.running = nil
		if err != nil {
			c.down.Store(true)
		}
		c.mu.Unlock()
		if err == nil {
			close(t.done)
			continue
		}
		t.fail(err)
		c.away.Failed(err)
		c.await(ctx)
	}
}

// signal wakes Run for a query.
func (c *Cache) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// take makes the next query the one under way.
func (c *Cache) take() *query {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running, c.next = c.next, newQuery()
	return c.running
}

func (t *query) fail(err error) {
	t.err = err
	close(t.done)
}

// execute runs a query. An error means that MySQL is away.
func (c *Cache) execute(ctx context.Context, t *query) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	start := c.now()
	if p := c.policy.Load(); p == nil || p.read <= start-int64(renewAfter) {
		got, err := c.catalog.Policy(ctx)
		switch {
		case err == nil:
			c.invalid.Succeeded()
			c.setPolicy(t, &levels{got, start})
		case fault.KindOf(err) != fault.Unprocessable || p == nil:
			return unavailable(err)
		default:
			// Somebody has made the table invalid by SQL. The last valid levels stay in use until the table is corrected.
			c.invalid.Failed(err)
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
		e := &entry{row: row, idle: t.idle[row.ID], maxIdle: renewUnused}
		if was, ok := c.rows.GetEntryQuietly(row.ID); ok {
			e.maxIdle = was.Value.nextMaxIdle(time.Duration(start - was.Value.read.Load()))
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

func (c *Cache) setPolicy(t *query, p *levels) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.stale {
		p.read = expired
	}
	c.policy.Store(p)
}

// unavailable turns any error into fault.Unavailable. An invalid level table with no valid one before it also makes lookups
// unavailable.
func unavailable(err error) error {
	if fault.Is(err, fault.Unavailable) {
		return err
	}
	return fault.New(fault.Unavailable, "look up item", "", err)
}

// await fails the requests that still wait, and returns when MySQL answers again.
func (c *Cache) await(ctx context.Context) {
	for ctx.Err() == nil {
		c.take().fail(errAway)
		c.mu.Lock()
		c.running = nil
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
		if last := c.policy.Load(); fault.Is(err, fault.Unprocessable) && last != nil { // MySQL answers: see execute
			p, err = last.Policy, nil
		}
		if err == nil {
			c.mu.Lock()
			c.policy.Store(&levels{p, start})
			c.mu.Unlock()
			c.down.Store(false)
			c.away.Succeeded()
			return
		}
		c.away.Failed(err)
	}
}
