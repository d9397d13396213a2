package benchmarks

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/testenv/child"
	"github.com/tierflow/tierflow/shared/testenv/localserver"
)

// singles posts one count at a time: to Tierflow as a whole, to an api without a relocator and a committer, and to the
// baselines.
type singles struct {
	*posts
	whole    *whole
	previous *whole // of the commit of Options.Previous; nil: none
	baseline *child.Process
	addr     string // of the baseline
}

// The receivers of single posts besides Tierflow as a whole.
const (
	toAPI      = "the api alone"
	toEcho     = "bare echo handler"
	toOriginal = "look up and SET for each"
)

// startBaselines starts the program baseline, which Tierflow is compared with.
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

// wantedOfEcho is the wanted rate of Tierflow as a whole, as a part of that of the bare handler, by load. Where posts move
// files, none is wanted.
var wantedOfEcho = map[string]float64{"uniform": 0.40, "skewed": 0.45}

// most posts to each receiver in turn, as fast as answers come, and returns the median of the posts a second that Tierflow
// accepts and settles. It also records the CPU time of each program for a post, which says more than the rate where others
// use the machine as well.
func (s *singles) most(ctx context.Context, l *load) (float64, error) {
	name := "single posts, " + l.name
	var ours []settling
	costs, rates := map[string][]cost{}, map[string][]float64{}
	measure := func(to string) func(context.Context) (float64, error) {
		return func(ctx context.Context) (float64, error) {
			r, c, err := s.post(ctx, l, to)
			if err != nil {
				return 0, err
			}
			costs[to], rates[to] = append(costs[to], c), append(rates[to], r.rate())
			return r.rate(), nil
		}
	}
	err := s.Compare(ctx, Case{
		Figure: Figure{Name: name, Unit: "posts/s"},
		Ours: Subject{Name: "accepted and settled", Measure: func(ctx context.Context) (float64, error) {
			r, err := s.whole.wrk(ctx, l, name)
			if err != nil {
				return 0, err
			}
			ours = append(ours, r)
			return r.rate(), nil
		}},
		Against: append(s.earlier(0, func(ctx context.Context, w *whole) (settling, error) { return w.wrk(ctx, l, "") }),
			Subject{Name: toEcho, Min: wantedOfEcho[l.name], Measure: measure(toEcho)},
			Subject{Name: toAPI, Measure: measure(toAPI)},
			Subject{Name: toOriginal, Measure: measure(toOriginal)}),
	})
	if err != nil {
		return 0, err
	}
	var whole []float64
	for round, r := range ours {
		whole = append(whole, r.rate())
		alone, echo, original := costs[toAPI][round], costs[toEcho][round], costs[toOriginal][round]
		s.observeSettling(name, "post", r, []Other{{Name: toAPI, Value: rates[toAPI][round]}}, map[string][]Other{
			"all programs": {{Name: toAPI, Value: alone.sum()}, {Name: toEcho, Value: echo.sum()}, {Name: toOriginal, Value: original.sum()}},
			"api":          {{Name: toAPI, Value: alone["api"]}, {Name: toEcho, Value: echo["service"]}, {Name: toOriginal, Value: original["service"]}},
			"Redis":        {{Name: toAPI, Value: alone["Redis"]}, {Name: toOriginal, Value: original["Redis"]}},
			"MySQL":        {{Name: toAPI, Value: alone["MySQL"]}, {Name: toOriginal, Value: original["MySQL"]}},
			"wrk":          {{Name: toAPI, Value: alone["wrk"]}, {Name: toEcho, Value: echo["wrk"]}, {Name: toOriginal, Value: original["wrk"]}},
		})
		if len(l.movers) == 0 {
			s.Observe(Figure{Name: name + ", " + toAPI, Unit: "posts/s"}, rates[toAPI][round],
				Other{Name: toEcho, Value: rates[toEcho][round], Min: 0.55},
				Other{Name: toOriginal, Value: rates[toOriginal][round], Min: 5})
		}
	}
	return spreadOf(whole).median, nil
}

// earlier returns the subject of the commit that Options.Previous names, if there is one.
func (s *singles) earlier(minimum float64, measure func(context.Context, *whole) (settling, error)) []Subject {
	if s.previous == nil {
		return nil
	}
	return []Subject{{Name: s.previous.name, Min: minimum, Measure: func(ctx context.Context) (float64, error) {
		r, err := measure(ctx, s.previous)
		return r.rate(), err
	}}}
}

// observeSettling records what a measurement of Tierflow as a whole gives besides the rate. of is what was posted, such as
// "post". alone has the rate of the api alone, and costs has the same CPU times of others, by program.
func (b *Bench) observeSettling(name, of string, r settling, alone []Other, costs map[string][]Other) {
	b.Observe(Figure{Name: name + ", accepted while posting", Unit: of + "s/s"}, float64(r.accepted)/r.posting.Seconds(), alone...)
	b.Observe(Figure{Name: name + ", unsettled when posting ends", Unit: "entries"}, float64(r.lag))
	b.Observe(Figure{Name: name + ", settled after posting ends", Unit: "s", Max: 1}, r.settling.Seconds())
	b.Observe(Figure{Name: name + ", CPU of all programs", Unit: "µs/" + of}, r.cost.sum(), costs["all programs"]...)
	for _, program := range []string{"api", "relocator", "committer", "Redis", "MySQL", "wrk"} {
		if _, ok := r.cost[program]; ok {
			b.Observe(Figure{Name: name + ", CPU of " + program, Unit: "µs/" + of}, r.cost[program], costs[program]...)
		}
	}
	b.Logf("%s: %s accepted in %.1f s, %s unsettled then, settled %.2f s later", name, number(float64(r.accepted)), r.posting.Seconds(),
		number(float64(r.lag)), r.settling.Seconds())
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
			_, err = s.account(ctx, before.ok, connections)
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
		_, err = s.account(ctx, r.ok, connections)
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
		Figure:  Figure{Name: "single posts, " + l.name + ", " + toAPI + ", appendfsync always", Unit: "posts/s"},
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
		return map[string]int{"service": s.baseline.PID(), "Redis": s.redis.PID(), "MySQL": s.mysql.PID()}
	}
	return map[string]int{"api": s.stack.API.PID(), "Redis": s.redis.PID(), "MySQL": s.mysql.PID()}
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

// answerTimes posts at a fixed rate to Tierflow as a whole and to the bare handler in turn, and compares how long the
// answers take.
func (s *singles) answerTimes(ctx context.Context, l *load, rate float64) error {
	for range s.Rounds {
		var ours []time.Duration
		err := s.patiently(func() (err error) {
			ours, err = s.whole.paced(ctx, l, rate)
			return err
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
		s.Logf("single posts, %s, at %s posts/s, 99 of 100 answered within: Tierflow %s ms, %s %s ms", l.name, number(rate),
			number(quantile(ours, 990)), toEcho, number(quantile(echo, 990)))
	}
	return nil
}
