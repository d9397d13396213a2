package benchmarks

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
)

var scale = Part{
	Name:  "scale",
	About: "ten million items, a million pending entries, a million files on a tier, against a few thousand",
	Run:   runScale,
}

// comparison has two worlds that differ only in their size.
type comparison struct {
	*Bench
	large, small *world
}

// inSmall is the name of the small world's figures.
const inSmall = "small"

func runScale(ctx context.Context, b *Bench) error {
	large := size{items: 10_000_000, pending: 1_000_000, files: 1_000_000, moving: 2000}
	small := size{items: 30_000, pending: 1000, files: 3000, moving: 2000}
	if b.Quick {
		large = size{items: 300_000, pending: 30_000, files: 30_000, moving: 200}
		small = size{items: 12_000, pending: 100, files: 300, moving: 200}
	}
	c := &comparison{Bench: b}
	var err error
	if c.small, err = newWorld(ctx, b, "small", small); err != nil {
		return err
	}
	if c.large, err = newWorld(ctx, b, "large", large); err != nil {
		return err
	}
	for _, measure := range []func(context.Context) error{c.ingest, c.moves, c.reads, c.commands, c.walk} {
		if err := measure(ctx); err != nil {
			return err
		}
	}
	return nil
}

// ingest posts to the api without relocators, which would use CPU time as well.
func (c *comparison) ingest(ctx context.Context) error {
	large, err := c.loadOf(c.large, "large", func() item.ID { return c.large.hot[rand.IntN(len(c.large.hot))] })
	if err != nil {
		return err
	}
	small, err := c.loadOf(c.small, "small", func() item.ID { return c.small.hot[rand.IntN(len(c.small.hot))] })
	if err != nil {
		return err
	}
	busy := c.large.size.moving + c.large.size.pending
	random, err := c.loadOf(c.large, "random", func() item.ID {
		return item.ID(firstInWorld + busy + rand.IntN(c.large.size.items-busy))
	})
	if err != nil {
		return err
	}
	for _, w := range []*world{c.large, c.small} {
		if err := w.stack.API.Start(ctx); err != nil {
			return err
		}
	}
	of := func(w *world) string { return number(float64(w.size.items)) }
	err = c.Compare(ctx, Case{
		Figure:  Figure{Name: "single posts of 10,000 among " + of(c.large) + " items", Unit: "posts/s"},
		Ours:    Subject{Name: "large", Measure: large},
		Against: []Subject{{Name: "among " + of(c.small), Min: 0.8, Measure: small}},
	})
	if err != nil {
		return err
	}
	if err := c.memory("api", func(w *world) int { return w.stack.API.PID() }); err != nil {
		return err
	}
	err = c.Compare(ctx, Case{
		Figure: Figure{Name: "single posts of any of " + of(c.large) + " items, at random", Unit: "posts/s"},
		Ours:   Subject{Name: "large", Measure: random},
	})
	if err != nil {
		return err
	}
	// All items are on the level that their counts call for, so relocators have nothing to do for these events.
	return errors.Join(c.large.skip(ctx), c.small.skip(ctx))
}

// loadOf posts items in the order in which next returns them, and accounts for what the api has answered.
func (c *comparison) loadOf(w *world, name string, next func() item.ID) (func(context.Context) (float64, error), error) {
	l, err := newLoad(c.Bench, name, nil, next)
	return func(ctx context.Context) (float64, error) {
		if err := errors.Join(w.posts.mark(ctx), w.resetCommands(ctx)); err != nil {
			return 0, err
		}
		r, err := l.run(ctx, "http://"+w.stack.API.Addr+"/post_sentence")
		if err != nil {
			return 0, err
		}
		noted := w.noteCommands(ctx)
		_, err = w.posts.account(ctx, r.ok, connections)
		return r.rate(), errors.Join(noted, err)
	}, err
}

func (c *comparison) moves(ctx context.Context) error {
	for _, w := range []*world{c.large, c.small} {
		if err := w.stack.Start(ctx); err != nil {
			return err
		}
	}
	err := c.Compare(ctx, Case{
		Figure: Figure{Name: "moves of 16 KiB beside " + beside(c.large), Unit: "moves/s"},
		Ours:   Subject{Name: "large", Measure: c.large.move},
		Against: []Subject{
			{Name: "beside " + beside(c.small), Min: 0.8, Measure: c.small.move},
		},
	})
	if err != nil {
		return err
	}
	return errors.Join(
		c.memory("relocator", func(w *world) int { return w.stack.Relocators[0].PID() }),
		c.memory("committer", func(w *world) int { return w.stack.Committer.PID() }))
}

func beside(w *world) string {
	return fmt.Sprintf("%s files, %s pending", number(float64(w.size.files)), number(float64(w.size.pending)))
}

// reads calls what an operator and the dashboard call.
func (c *comparison) reads(ctx context.Context) error {
	const times = 20
	for _, call := range []string{
		"/readyz", "/metrics", "/v1/levels", "/v1/relocations", "/v1/dead", "/v1/contents?limit=100", "/v1/contents?level=bronze&limit=100",
		"/v1/contents/{cid}", "/v1/contents/{cid}/location", "/v1/contents/{cid}/history",
	} {
		took := func(w *world) (float64, error) {
			url, err := url.Parse(strings.ReplaceAll(call, "{cid}", w.files[0].ID.String()))
			if err != nil {
				return 0, err
			}
			var all []time.Duration
			for range times {
				begin := time.Now()
				if _, err := w.stack.Client().Get(ctx, url.Path, url.Query()); err != nil {
					return 0, fmt.Errorf("GET %s: %w", url, err)
				}
				all = append(all, time.Since(begin))
			}
			return quantile(all, 500), nil
		}
		large, err := took(c.large)
		if err != nil {
			return err
		}
		small, err := took(c.small)
		if err != nil {
			return err
		}
		c.Observe(Figure{Name: "GET " + call + ", median", Unit: "ms"}, large, Other{Name: inSmall, Value: small, Max: growth})
	}
	return nil
}

// growth is the wanted limit of how many times longer a call takes in the large world, which has hundreds of times as much
// of everything. It is more than chance and cold caches add to a call of a microsecond. It is far less than a call would
// need that reads everything.
const growth = 10

// cheap, in µs, is less than any call takes that reads everything. growth does not apply below it, because a single
// interruption among fifty calls can raise the mean as much.
const cheap = 10

// commands compares the time of each command, as Redis reports it. Scripts and transactions count as the commands that
// they call.
func (c *comparison) commands(context.Context) error {
	for _, name := range slices.Sorted(maps.Keys(c.large.commands)) {
		large, small := c.large.commands[name], c.small.commands[name]
		if large.calls < 50 || small.calls < 50 { // too few for a mean
			continue
		}
		mean, other := large.us/large.calls, Other{Name: inSmall, Value: small.us / small.calls}
		if mean >= cheap {
			other.Max = growth
		}
		c.Observe(Figure{Name: "Redis' " + strings.ReplaceAll(name, "|", " "), Unit: "µs/call"}, mean, other)
	}
	return nil
}

// walk measures the search for entries that have been idle for too long. Each relocator searches three times in every
// TIERFLOW_MIN_IDLE.
func (c *comparison) walk(ctx context.Context) error {
	took := func(w *world) (float64, error) {
		begin := time.Now()
		for from := "0-0"; ; {
			_, next, err := w.stack.Redis.XAutoClaimJustID(ctx, &redis.XAutoClaimArgs{Stream: w.stack.Keys.Views(), Group: state.GroupRelocator,
				Consumer: away, MinIdle: minIdle, Start: from, Count: 100}).Result()
			if err != nil {
				return 0, err
			}
			if from = next; from == "0-0" {
				return float64(time.Since(begin).Microseconds()) / 1000, nil
			}
		}
	}
	large, err := took(c.large)
	if err != nil {
		return err
	}
	small, err := took(c.small)
	c.Observe(Figure{Name: "a walk over all pending entries", Unit: "ms"}, large, Other{Name: inSmall, Value: small})
	return err
}

// memory records a service's memory at its peak.
func (c *comparison) memory(service string, pid func(*world) int) error {
	large, err := peakMemory(pid(c.large))
	if err != nil {
		return err
	}
	small, err := peakMemory(pid(c.small))
	c.Observe(Figure{Name: service + "'s memory at its peak", Unit: "MiB"}, large, Other{Name: inSmall, Value: small, Max: 1.2})
	return err
}
