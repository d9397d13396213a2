package benchmarks

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/testenv/localserver"
)

var ingest = Part{
	Name:  "ingest",
	About: "view counts, with all services and with the api alone: single posts, batches, moves among them, appends",
	Run:   runIngest,
}

const (
	connections = 64
	items       = 10_000 // the items whose counts move nothing
	// firstID is the id of the first item. All ids have five digits, so that all requests have the same length.
	firstID = 10_001
)

// runIngest measures Tierflow with all its services first: what it accepts and settles is its rate. The api alone comes
// second, because no user runs it alone.
func runIngest(ctx context.Context, b *Bench) error {
	p, err := startPosts(ctx, b)
	if err != nil {
		return err
	}
	s := &singles{posts: p}
	if err := s.startWholes(ctx); err != nil {
		return err
	}
	if err := s.startBaselines(ctx); err != nil {
		return err
	}
	loads, err := newLoads(b)
	if err != nil {
		return err
	}
	// half is half the rate of single posts, uniform: the rate of the measurements of latency.
	var half float64
	for _, l := range loads {
		most, err := s.most(ctx, l)
		if err != nil {
			return err
		}
		if len(l.movers) > 0 {
			continue
		}
		if half == 0 {
			half = most / 2
		}
		if err := s.answerTimes(ctx, l, most/2); err != nil {
			return err
		}
	}
	uniform := loads[0]
	for _, part := range []func() error{
		func() error { return s.firstMoves(ctx, uniform, half) },
		func() error { return s.batches(ctx, loads) },
		func() error { return s.oneItem(ctx) },
		func() error { return s.syncedPosts(ctx, uniform) },
		func() error { return s.largeBodies(ctx) },
		func() error { return s.appends(ctx) },
	} {
		if err := part(); err != nil {
			return err
		}
	}
	return nil
}

// newLoads returns the loads of single posts and of batches: each item as often as any other; some far more often than
// others; and as the first, but with moves.
func newLoads(b *Bench) ([]*load, error) {
	anyItem := func() item.ID { return item.ID(firstID + rand.IntN(items)) }
	zipf := rand.NewZipf(rand.New(rand.NewPCG(1, 2)), 1.1, 1, items-1)
	var movers []string
	for i := range movingItems {
		movers = append(movers, item.ID(firstMover+i).String())
	}
	var loads []*load
	for _, l := range []struct {
		name   string
		movers []string
		next   func() item.ID
	}{
		{"uniform", nil, anyItem},
		{"skewed", nil, func() item.ID { return item.ID(firstID + zipf.Uint64()) }},
		{"1 of 1,000 moves a file", movers, anyItem},
	} {
		made, err := newLoad(b, l.name, l.movers, l.next)
		if err != nil {
			return nil, err
		}
		loads = append(loads, made)
	}
	return loads, nil
}

// posts is a running api with items. marked is what it had answered at some time.
type posts struct {
	*Bench
	stack *stack.Stack
	redis *localserver.Redis
	mysql *localserver.MySQL

	marked struct { // set by mark
		added    int64  // to the stream of view events
		last     string // its newest entry's id
		answered map[string]int
	}
}

// startPosts starts servers and an api with items. Half of the items are on the level that the posted counts call for.
// No relocator runs, so the events stay in the stream and can be counted.
func startPosts(ctx context.Context, b *Bench) (*posts, error) {
	p := &posts{Bench: b}
	var err error
	if p.redis, err = b.Redis(ctx, localserver.Options{}); err != nil {
		return nil, err
	}
	if p.mysql, err = b.MySQL(ctx, localserver.Options{}); err != nil {
		return nil, err
	}
	p.stack, err = b.Stack(ctx, stack.Options{RedisURL: p.redis.URL(), MySQLDSN: p.mysql.DSN("tierflow")})
	if err != nil {
		return nil, err
	}
	if err := p.insert(ctx, items+movingItems); err != nil {
		return nil, err
	}
	if err := p.noRewrites(ctx); err != nil {
		return nil, err
	}
	return p, p.stack.API.Start(ctx)
}

// noRewrites keeps Redis from rewriting its append-only file, which would slow down one measurement and not the next.
func (p *posts) noRewrites(ctx context.Context) error {
	return p.stack.Redis.ConfigSet(ctx, "auto-aof-rewrite-percentage", "0").Err()
}

// insert inserts rows for n items without files.
func (p *posts) insert(ctx context.Context, n int) error {
	const rows = 5000
	for from := 0; from < n; from += rows {
		var values []string
		for i := from; i < min(from+rows, n); i++ {
			level := "gold"
			if i%2 == 0 {
				level = "bronze"
			}
			values = append(values, fmt.Sprintf("(%d,'%s','videos/%d.mp4')", firstID+i, level, firstID+i))
		}
		statement := "INSERT INTO contents (cid, content_level, filename) VALUES " + strings.Join(values, ",")
		if _, err := p.stack.DB().ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("insert items: %w", err)
		}
	}
	return nil
}
