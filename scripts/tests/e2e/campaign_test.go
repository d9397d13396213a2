package e2e_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/item"
)

// way is one of the ways in which an item moves from bronze to another level, or stays there.
type way struct {
	name   string
	level  string
	count  item.Count
	folder bool
}

var ways = []way{
	{"a file that is linked", "silver", 1500, false},
	{"a file that is copied", "gold", 2500, false},
	{"a directory that is linked", "silver", 1500, true},
	{"a directory that is copied", "gold", 2500, true},
	{"a view that moves nothing", "bronze", 1, false},
}

// flow is one item whose move is interrupted at one step, or not at all.
type flow struct {
	id      item.ID
	way     way
	step    string // the step at which the deed happens; "" at none, or not any more
	aim     string // the same, but never cleared
	of      int    // the occurrence of that name, from 1, over all processes
	bounces int    // how many counts are posted in addition while the step's process is away

	sample stack.Sample
	digest string
	last   item.Count // that was posted

	// guarded by the campaign
	steps map[string]int // the steps that were reached, and how often
	met   *at            // where the deed has happened
	over  bool           // no deed may happen any more
	hit   chan struct{}  // closed when the deed has happened
	leave chan struct{}  // closed when a process that was stopped there may go on
}

// campaign runs many flows in one stack at once. deed decides what happens at a step.
type campaign struct {
	t     *testing.T
	w     *world
	d     *director
	grace time.Duration
	deed  func(*flow, at) (verdict, bool) // false: nothing happens yet

	mu    sync.Mutex
	look  func(at) verdict
	flows map[item.ID]*flow
	order []*flow // for the readers
	next  item.ID

	reads, late atomic.Int64
}

// campaignGrace is short so that the tests are fast. The finding of a reader that was later than the grace counts only if
// the row has not changed.
const campaignGrace = 300 * time.Millisecond

// shortLease is the shortest lease with which a process on a slow machine does not lose its locks all the time. A lost lock
// costs only time.
const shortLease = 500 * time.Millisecond

func newCampaign(t *testing.T, relocators, committers int, lease time.Duration) *campaign {
	t.Helper()
	c := &campaign{t: t, grace: campaignGrace, flows: map[item.ID]*flow{}, next: firstID}
	c.w, c.d = directed(t, options{relocators: relocators, committers: committers, settings: map[string]string{
		"TIERFLOW_RELEASE_GRACE": campaignGrace.String(), "TIERFLOW_MIN_IDLE": lease.String(), "TIERFLOW_CONCURRENCY": "2",
		// An item counts an attempt whenever a process crashes near it, and here hundreds of processes crash.
		"TIERFLOW_MAX_ATTEMPTS": "100000", "TIERFLOW_LOG_LEVEL": "warn",
	}}, c.lead)
	c.w.must("start", c.w.Start(t.Context()))
	return c
}

// lookAt passes every step to look, instead of doing what the flows want.
func (c *campaign) lookAt(look func(at) verdict) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.look = look
}

// lead is what the director calls at each step. It counts the steps, and finds the one where the deed shall happen.
func (c *campaign) lead(a at) verdict {
	c.mu.Lock()
	if look := c.look; look != nil {
		c.mu.Unlock()
		return look(a)
	}
	f := c.flows[a.id]
	if f == nil || f.met != nil {
		c.mu.Unlock()
		return goOn
	}
	f.steps[a.step]++
	if f.step != a.step || f.of > f.steps[a.step] || f.over || c.deed == nil {
		c.mu.Unlock()
		return goOn
	}
	f.met = &a
	c.mu.Unlock()
	v, done := c.deed(f, a)
	if !done { // the deed happens in the next round
		c.mu.Lock()
		f.met, f.step = nil, ""
		c.mu.Unlock()
	}
	return v
}

// add makes a flow and its item.
func (c *campaign) add(f *flow) *flow {
	c.t.Helper()
	c.mu.Lock()
	f.id = c.next
	c.next++
	c.mu.Unlock()
	f.steps, f.hit, f.leave = map[string]int{}, make(chan struct{}), make(chan struct{})
	f.sample = stack.Sample{ID: f.id, Filename: fmt.Sprintf("%s/x", f.id), Level: "bronze"}
	if f.way.folder {
		f.sample.Parts = map[string]int64{"a": 3000, "b/c": 10}
	} else {
		f.sample.Size = 5000
	}
	c.w.must("add an item", c.w.Add(c.t.Context(), f.sample))
	var err error
	f.digest, err = stack.Digest(c.path(f, "bronze"))
	c.w.must("read an item", err)
	c.mu.Lock()
	c.flows[f.id] = f
	c.order = append(c.order, f)
	c.mu.Unlock()
	return f
}

func (c *campaign) path(f *flow, level string) string {
	return filepath.Join(c.w.tier(level), f.sample.Filename)
}

// on returns nil when the row names the level and has the last count.
func (c *campaign) on(f *flow, level string) error {
	row, err := c.w.Catalog.Row(context.Background(), f.id)
	if err == nil && (row.Level != level || row.ViewCount != f.last) {
		err = fmt.Errorf("it is on %s with a count of %d, not on %s with %d", row.Level, row.ViewCount, level, f.last)
	}
	return err
}

// done returns nil when the item is on the level and nothing is under way for it.
func (c *campaign) done(f *flow, level string) error {
	ctx := context.Background()
	if err := c.on(f, level); err != nil {
		return err
	}
	if holder, err := c.w.Redis.Get(ctx, c.w.Keys.Lock(f.id)).Result(); !errors.Is(err, redis.Nil) {
		return fmt.Errorf("its lock is %q (%v)", holder, err)
	}
	for _, other := range []string{"bronze", "silver", "gold"} {
		if _, err := os.Lstat(c.path(f, other)); other != level && err == nil {
			return fmt.Errorf("a copy is on %s", other)
		}
	}
	return nil
}

// until polls, and reports whether the condition became true in time.
func until(limit time.Duration, condition func() error) error {
	end := time.Now().Add(limit)
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 40*time.Millisecond) {
		err := condition()
		if err == nil || time.Now().After(end) {
			return err
		}
		time.Sleep(pause)
	}
}

// readers read items as a server of files does, for as long as the test runs: look up, open, read. What the row names must
// be there, whole. A reader that opens later than the grace after its look-up may find that the item has moved on. Such a
// reader is counted, and only if the row has really changed.
func (c *campaign) readers(n int) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			pace := time.NewTicker(2 * time.Millisecond)
			defer pace.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-pace.C:
					c.read()
				}
			}
		})
	}
	stop = func() { cancel(); wg.Wait() }
	c.t.Cleanup(stop)
	return stop
}

func (c *campaign) read() {
	c.mu.Lock()
	if len(c.order) == 0 {
		c.mu.Unlock()
		return
	}
	at := rand.IntN(len(c.order))
	if rand.IntN(4) > 0 { // mostly those that move now
		at = len(c.order) - 1 - rand.IntN(min(len(c.order), 64))
	}
	f := c.order[at]
	c.mu.Unlock()
	began := time.Now()
	before, err := lookUp(c.w.DB(), f.id)
	if err != nil {
		c.t.Errorf("look-up: %v", err)
		return
	}
	if rand.IntN(4) == 0 { // as late as the grace allows
		<-time.After(c.grace / 2)
	}
	got, err := stack.Digest(filepath.Join(before.path, f.sample.Filename))
	took := time.Since(began)
	c.reads.Add(1)
	if err == nil && got == f.digest {
		return
	}
	after, lerr := lookUp(c.w.DB(), f.id)
	if lerr == nil && after != before && took > c.grace {
		c.late.Add(1)
		return
	}
	c.t.Errorf("a reader found item %s (%s) not as the row says, %v after its look-up: %v; read %s, want %s; the row was %+v "+
		"and is %+v (%v); %s", f.id, f.way.name, took, err, got, f.digest, before, after, lerr, c.story(f))
}

// story says what happened to an item.
func (c *campaign) story(f *flow) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.met == nil {
		return fmt.Sprintf("nothing has happened at any of its %d steps", len(f.steps))
	}
	return fmt.Sprintf("%s was hit at %q, its step %d, bounced %d times", f.met.service.Name, f.met.step, len(f.steps), f.bounces)
}

// place is the result of a look-up, with the time that tells one commit from the next.
type place struct{ level, path, updated string }

func lookUp(db *sql.DB, id item.ID) (p place, err error) {
	err = db.QueryRow("SELECT c.content_level, l.path, CAST(c.update_time AS CHAR) FROM contents c"+
		" JOIN level l ON l.content_level = c.content_level WHERE c.cid = ?", id).Scan(&p.level, &p.path, &p.updated)
	return p, err
}

// record moves two items each way, undisturbed. For each way it returns the steps that both moves have taken, with the
// number of their occurrences.
func (c *campaign) record() map[string]map[string]int {
	c.t.Helper()
	var flows []*flow
	for range 2 {
		for _, way := range ways {
			f := c.add(&flow{way: way})
			flows = append(flows, f)
			c.post(f, way.count)
			c.w.must("move "+way.name, until(patience, func() error { return c.done(f, way.level) }))
		}
	}
	c.w.must("settle", until(patience, func() error { return c.w.Settled(context.Background()) }))
	steps := map[string]map[string]int{}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, way := range ways {
		steps[way.name] = map[string]int{}
		for step, n := range flows[i].steps {
			if m := flows[i+len(ways)].steps[step]; m > 0 {
				steps[way.name][step] = min(n, m)
			}
		}
		if least := map[bool]int{true: 10, false: 40}[way.level == "bronze"]; len(steps[way.name]) < least {
			c.t.Errorf("%s has only %d steps: %v", way.name, len(steps[way.name]), steps[way.name])
		}
	}
	return steps
}

// everywhere runs flows until the deed has happened at every recorded step. Each step gets an item of its own. A step may
// be missed once: another process did the work, or the process was ended for another step.
func (c *campaign) everywhere(seed uint64, recorded map[string]map[string]int, last bool, atOnce int, run func(*flow)) {
	c.t.Helper()
	random := rand.New(rand.NewPCG(seed, 0))
	began, wanted, happened := time.Now(), 0, 0
	for round := 1; ; round++ {
		var flows []*flow
		for _, way := range ways {
			for step, n := range recorded[way.name] {
				if round > 1 && c.met(way, step) || round > 3 && c.untrodden(way, step) {
					continue
				}
				flows = append(flows, &flow{way: way, step: step, aim: step, of: 1, bounces: random.IntN(4)})
				if round == 1 && last && n > 1 {
					flows = append(flows, &flow{way: way, step: step, aim: step, of: n, bounces: random.IntN(4)})
				}
			}
		}
		if len(flows) == 0 {
			break
		}
		if round == 15 {
			c.t.Errorf("after %d rounds, nothing has happened at %s of %s, and %d others", round, flows[0].step, flows[0].way.name, len(flows)-1)
			break
		}
		random.Shuffle(len(flows), func(i, j int) { flows[i], flows[j] = flows[j], flows[i] })
		c.each(flows, atOnce, run)
		if c.t.Failed() {
			break
		}
		c.w.must("settle", until(patience, func() error { return c.w.Settled(context.Background()) }))
		for _, f := range flows {
			wanted++
			if f.wasHit() {
				happened++
			}
		}
	}
	c.w.checkSettled()
	c.t.Logf("%d flows, it happened to %d; %v; %d reads, %d of them later than the grace", wanted, happened,
		time.Since(began).Round(time.Second), c.reads.Load(), c.late.Load())
}

// met reports whether the deed has happened at the step.
func (c *campaign) met(way way, step string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.order, func(f *flow) bool { return f.way == way && f.met != nil && f.met.step == step })
}

// each runs the flows, atOnce of them at a time.
func (c *campaign) each(flows []*flow, atOnce int, run func(*flow)) {
	todo := make(chan *flow)
	var wg sync.WaitGroup
	for range atOnce {
		wg.Go(func() {
			for f := range todo {
				run(f)
			}
		})
	}
	for _, f := range flows {
		if c.t.Failed() {
			break
		}
		todo <- f
	}
	close(todo)
	wg.Wait()
}

// post posts without ending the test: the flows need that.
func (c *campaign) post(f *flow, count item.Count) {
	f.last = count
	if err := c.w.Post(context.Background(), f.id, count); err != nil {
		c.t.Errorf("post cid=%s count=%s: %v", f.id, count, err)
	}
}

// untrodden reports whether none of the items that aimed at the step have reached it. Such a step depends on the time, for
// example the renewal of a lock.
func (c *campaign) untrodden(way way, step string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.order {
		if f.way == way && f.aim == step && f.steps[step] > 0 {
			return false
		}
	}
	c.t.Logf("%s: nobody has come to %s again", way.name, step)
	return true
}

// happens waits until the deed has happened, or until the item lies on the level and nothing more follows. In the second
// case it returns false.
func (c *campaign) happens(f *flow, level string) (bool, error) {
	err := until(patience, func() error {
		if f.wasHit() {
			return nil
		}
		return c.done(f, level)
	})
	// The very last steps come when the move is not visible any more.
	_ = until(300*time.Millisecond, func() error {
		if !f.wasHit() {
			return errors.New("not yet")
		}
		return nil
	})
	for {
		c.mu.Lock()
		f.over = f.met == nil
		over := f.over
		c.mu.Unlock()
		if over || f.wasHit() {
			return !over, err
		}
		time.Sleep(time.Millisecond) // the deed is happening now
	}
}

// wasHit reports whether the deed has happened.
func (f *flow) wasHit() bool {
	select {
	case <-f.hit:
		return true
	default:
		return false
	}
}
