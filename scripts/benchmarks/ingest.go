package benchmarks

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/testenv/child"
	"github.com/tierflow/tierflow/shared/testenv/localserver"
)

var ingest = Part{
	Name:  "ingest",
	About: "view counts: single posts, batches, appends",
	Run:   runIngest,
}

const (
	connections = 64
	items       = 10_000
	// firstID is the id of the first item. All ids have five digits, so that all requests have the same length.
	firstID = 10_001
)

// posts is a running api with items, and without a relocator or a committer.
type posts struct {
	*Bench
	stack *stack.Stack
	redis *localserver.Redis
	mysql *localserver.MySQL

	marked struct { // set by mark
		length   int64  // of the stream of view events
		last     string // its newest entry's id
		answered map[string]int
	}
}

func runIngest(ctx context.Context, b *Bench) error {
	p, err := startPosts(ctx, b)
	if err != nil {
		return err
	}
	s := &singles{posts: p}
	if err := s.startBaselines(ctx); err != nil {
		return err
	}
	uniform, err := newLoad(b, "uniform", func() item.ID { return item.ID(firstID + rand.IntN(items)) })
	if err != nil {
		return err
	}
	zipf := rand.NewZipf(rand.New(rand.NewPCG(1, 2)), 1.1, 1, items-1)
	skewed, err := newLoad(b, "skewed", func() item.ID { return item.ID(firstID + zipf.Uint64()) })
	if err != nil {
		return err
	}
	for _, l := range []*load{uniform, skewed} {
		most, err := s.most(ctx, l)
		if err != nil {
			return err
		}
		if err := s.answerTimes(ctx, l, most/2); err != nil {
			return err
		}
	}
	for _, part := range []func() error{
		func() error { return s.syncedPosts(ctx, uniform) },
		func() error { return s.batches(ctx, uniform) },
		func() error { return s.largeBodies(ctx) },
		func() error { return s.appends(ctx) },
	} {
		if err := part(); err != nil {
			return err
		}
	}
	return nil
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
	if err := p.insert(ctx); err != nil {
		return nil, err
	}
	// A rewrite of the append-only file would slow down one measurement and not the next.
	if err := p.stack.Redis.ConfigSet(ctx, "auto-aof-rewrite-percentage", "0").Err(); err != nil {
		return nil, err
	}
	return p, p.stack.API.Start(ctx)
}

// insert inserts rows for items without files.
func (p *posts) insert(ctx context.Context) error {
	const rows = 5000
	for from := 0; from < items; from += rows {
		var values []string
		for i := from; i < min(from+rows, items); i++ {
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

// singles posts one count at a time, to the api and to the baselines.
type singles struct {
	*posts
	baseline *child.Process
	addr     string // of the baseline
}

// The receivers of single posts.
const (
	toAPI      = "api"
	toEcho     = "bare echo handler"
	toOriginal = "look up and SET for each"
)

// startBaselines starts the program baseline, which the api is compared with.
func (s *singles) startBaselines(ctx context.Context) error {
	err := stack.Build(ctx, stack.BuildOptions{Root: s.Root, Dir: s.Programs, Cache: filepath.Join(s.Dir, "cache"),
		Packages: []string{"./scripts/benchmarks/baseline"}})
	if err != nil {
		return err
	}
	port, err := localserver.FreePort()
	if err != nil {
		return err
	}
	s.addr = fmt.Sprintf("127.0.0.1:%d", port)
	s.baseline = child.New(child.Options{
		Name: "baseline", Log: filepath.Join(s.Dir, "baseline.log"),
		Command: func() *exec.Cmd {
			return exec.Command(filepath.Join(s.Programs, "baseline"), s.addr, s.mysql.DSN("tierflow"), s.redis.Addr())
		},
		Ready: func(ctx context.Context, _ int) error { return answers(ctx, s.addr) },
	})
	s.Cleanup(s.baseline.Kill)
	return s.baseline.Start(ctx)
}

// most posts to each receiver in turn, as fast as answers come, and returns the api's median of posts a second. It also
// records the CPU time of each program for a post, which says more than the rate where others use the machine as well.
func (s *singles) most(ctx context.Context, l *load) (float64, error) {
	costs := map[string][]cost{}
	var rates []float64
	measure := func(to string) func(context.Context) (float64, error) {
		return func(ctx context.Context) (float64, error) {
			r, c, err := s.post(ctx, l, to)
			if err != nil {
				return 0, err
			}
			costs[to] = append(costs[to], c)
			if to == toAPI {
				rates = append(rates, r.rate())
			}
			return r.rate(), nil
		}
	}
	name := "single posts, " + l.name
	err := s.Compare(ctx, Case{
		Figure: Figure{Name: name, Unit: "posts/s"},
		Ours:   Subject{Name: toAPI, Measure: measure(toAPI)},
		Against: []Subject{
			{Name: toEcho, Min: 0.55, Measure: measure(toEcho)},
			{Name: toOriginal, Min: 5, Measure: measure(toOriginal)},
		},
	})
	if err != nil {
		return 0, err
	}
	for round, ours := range costs[toAPI] {
		echo, original := costs[toEcho][round], costs[toOriginal][round]
		figure := func(of string) Figure { return Figure{Name: name + ", CPU of " + of, Unit: "µs/post"} }
		s.Observe(figure("all programs"), ours.sum(), Other{Name: toEcho, Value: echo.sum()}, Other{Name: toOriginal, Value: original.sum()})
		s.Observe(figure("the service"), ours["service"], Other{Name: toEcho, Value: echo["service"]}, Other{Name: toOriginal, Value: original["service"]})
		s.Observe(figure("Redis"), ours["redis"], Other{Name: toOriginal, Value: original["redis"]})
		s.Observe(figure("MySQL"), ours["mysql"], Other{Name: toOriginal, Value: original["mysql"]})
		s.Observe(figure("wrk"), ours["wrk"], Other{Name: toEcho, Value: echo["wrk"]}, Other{Name: toOriginal, Value: original["wrk"]})
	}
	return spreadOf(rates).median, nil
}

// post posts as fast as answers come, and accounts for what the api has answered. The api first gets the same load for as
// long, to fill its cache of items. The other receivers have no cache.
func (s *singles) post(ctx context.Context, l *load, to string) (result, cost, error) {
	addresses := map[string]string{toAPI: s.stack.API.Addr + "/post_sentence", toEcho: s.addr + "/echo", toOriginal: s.addr + "/original"}
	if to == toAPI {
		err := s.clear(ctx)
		var before result
		if err == nil {
			before, err = l.run(ctx, "http://"+addresses[to])
		}
		if err == nil {
			err = s.account(ctx, before.ok, connections)
		}
		if err != nil {
			return result{}, nil, err
		}
	}
	if err := s.clear(ctx); err != nil {
		return result{}, nil, err
	}
	m, err := startMeter(s.programs(to))
	if err != nil {
		return result{}, nil, err
	}
	r, err := l.run(ctx, "http://"+addresses[to])
	if err != nil {
		return result{}, nil, err
	}
	used, err := m.used()
	if err != nil {
		return result{}, nil, err
	}
	used["wrk"] = r.cpu
	if to == toAPI {
		err = s.account(ctx, r.ok, connections)
	}
	return r, costOf(used, r.ok), err
}

// syncedPosts measures with a Redis that syncs each append to the disk before it answers.
func (s *singles) syncedPosts(ctx context.Context, l *load) error {
	measure := func(fsync string) func(context.Context) (float64, error) {
		return func(ctx context.Context) (float64, error) {
			if err := s.stack.Redis.ConfigSet(ctx, "appendfsync", fsync).Err(); err != nil {
				return 0, err
			}
			r, _, err := s.post(ctx, l, toAPI)
			return r.rate(), errors.Join(err, s.stack.Redis.ConfigSet(ctx, "appendfsync", "everysec").Err())
		}
	}
	return s.Compare(ctx, Case{
		Figure:  Figure{Name: "single posts, " + l.name + ", appendfsync always", Unit: "posts/s"},
		Ours:    Subject{Name: "always", Measure: measure("always")},
		Against: []Subject{{Name: "appendfsync everysec", Min: 0.75, Measure: measure("everysec")}},
	})
}

// programs returns the process ids of the programs that work on the posts to this receiver.
func (s *singles) programs(to string) map[string]int {
	switch to {
	case toEcho:
		return map[string]int{"service": s.baseline.PID()}
	case toOriginal:
		return map[string]int{"service": s.baseline.PID(), "redis": s.redis.PID(), "mysql": s.mysql.PID()}
	}
	return map[string]int{"service": s.stack.API.PID(), "redis": s.redis.PID(), "mysql": s.mysql.PID()}
}

// cost is the CPU time of each program for one post, or one move, in microseconds.
type cost map[string]float64

func costOf(used map[string]time.Duration, n int) cost {
	c := cost{}
	for program, t := range used {
		c[program] = float64(t.Microseconds()) / float64(n)
	}
	return c
}

func (c cost) sum() float64 {
	var sum float64
	for _, v := range c {
		sum += v
	}
	return sum
}

// answerTimes posts at a fixed rate to the api and to the bare handler in turn, and compares how long the answers take.
func (s *singles) answerTimes(ctx context.Context, l *load, rate float64) error {
	for range s.Rounds {
		var ours []time.Duration
		err := s.patiently(func() (err error) {
			if err := s.clear(ctx); err != nil {
				return err
			}
			if ours, err = l.paced(ctx, s.stack.API.Addr, "/post_sentence", rate); err != nil {
				return err
			}
			return s.account(ctx, len(ours), 0)
		})
		if err != nil {
			return err
		}
		echo, err := l.paced(ctx, s.addr, "/echo", rate)
		if err != nil {
			return err
		}
		name := fmt.Sprintf("single posts, %s, time to answer at half the rate, ", l.name)
		for _, q := range []struct {
			name    string
			of1000  int
			maximum float64
		}{{"median", 500, 0}, {"99 of 100", 990, 10}, {"999 of 1,000", 999, 0}} {
			s.Observe(Figure{Name: name + q.name, Unit: "ms", Max: q.maximum}, quantile(ours, q.of1000),
				Other{Name: toEcho, Value: quantile(echo, q.of1000)})
		}
		s.Logf("single posts, %s, at %s posts/s, 99 of 100 answered within: api %s ms, %s %s ms", l.name, number(rate),
			number(quantile(ours, 990)), toEcho, number(quantile(echo, 990)))
	}
	return nil
}
