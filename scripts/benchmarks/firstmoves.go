package benchmarks

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tierflow/tierflow/shared/item"
)

// movesASecond is the rate of the first moves. It is low: most views move nothing.
const movesASecond = 50

// freshItems is the number of items that firstMoves moves in a round.
func (b *Bench) freshItems() int { return movesASecond * int(b.seconds()/time.Second) }

// firstMoves measures the first moves of items while counts that move nothing come in at the rate: the time from the post to
// the commit.
func (s *singles) firstMoves(ctx context.Context, l *load, rate float64) error {
	for range s.Rounds {
		ours, err := s.whole.firstMoves(ctx, l, rate)
		if err != nil {
			return err
		}
		var before []time.Duration
		if s.previous != nil {
			if before, err = s.previous.firstMoves(ctx, l, rate); err != nil {
				return err
			}
		}
		for _, q := range []struct {
			name    string
			of1000  int
			maximum float64
		}{{"median", 500, 0}, {"99 of 100", 990, 50}} {
			var others []Other
			if before != nil {
				others = []Other{{Name: s.previous.name, Value: quantile(before, q.of1000)}}
			}
			s.Observe(Figure{Name: "first move of an item, from the post to the commit, beside views at half the rate, " + q.name, Unit: "ms", Max: q.maximum},
				quantile(ours, q.of1000), others...)
		}
		s.Logf("first moves beside %s posts/s: median %s ms, 99 of 100 within %s ms", number(rate), number(quantile(ours, 500)), number(quantile(ours, 990)))
	}
	return nil
}

func (w *whole) firstMoves(ctx context.Context, l *load, rate float64) (took []time.Duration, err error) {
	n := w.freshItems()
	ids := w.fresh[:n]
	w.fresh = w.fresh[n:]
	_, err = w.measure(ctx, l, "", func(ctx context.Context, l *load) (posted, error) {
		l.lasts = time.Second/2 + w.seconds()
		var answered []time.Duration
		paced := make(chan error, 1)
		begin := time.Now()
		go func() {
			var err error
			answered, err = l.paced(ctx, w.stack.API.Addr, "/post_sentence", rate)
			paced <- err
		}()
		err := wait(ctx, time.Second/4) // until the views come in
		if err == nil {
			took, err = w.timeMoves(ctx, ids, "silver", movesASecond)
		}
		err = errors.Join(err, <-paced)
		return posted{took: time.Since(begin), ok: len(answered) + n}, err
	})
	return took, err
}

// oneItem posts views of one item, as fast as the api accepts them, and counts how often its row is written. First it sends
// single posts, with which a relocator can keep up, and then a million lines.
func (s *singles) oneItem(ctx context.Context) error {
	n := 1_000_000
	if s.Quick {
		n = 50_000
	}
	l, err := newLoad(s.Bench, "one item", nil, func() item.ID { return firstID })
	if err != nil {
		return err
	}
	err = s.writesOf(ctx, "single posts, one item", "posts/s", func(ctx context.Context) (settling, error) { return s.whole.wrk(ctx, l, "") })
	if err != nil {
		return err
	}
	return s.writesOf(ctx, fmt.Sprintf("%s views of one item in batches", number(float64(n))), "events/s",
		func(ctx context.Context) (settling, error) { return s.whole.batch(ctx, l, "", n) })
}

// writesOf measures with post how many counts of one item are accepted and settled, and how often its row is written.
func (s *singles) writesOf(ctx context.Context, name, unit string, post func(context.Context) (settling, error)) error {
	var writes []float64
	err := s.Compare(ctx, Case{
		Figure: Figure{Name: name, Unit: unit},
		Ours: Subject{Name: "accepted and settled", Measure: func(ctx context.Context) (float64, error) {
			before, err := s.whole.rowWrites(ctx)
			if err != nil {
				return 0, err
			}
			r, err := post(ctx)
			if err != nil {
				return 0, err
			}
			after, err := s.whole.rowWrites(ctx)
			if err == nil && after == before {
				err = fmt.Errorf("the row has the last count, and MySQL has counted no write: %d", after)
			}
			// Of writes that are a second apart, there is one more than there are seconds.
			writes = append(writes, float64(max(after-before-1, 0))/(r.posting+r.settling).Seconds())
			return r.rate(), err
		}},
		Rounds: min(s.Rounds, 2), // a round takes long
	})
	for _, w := range writes {
		s.Observe(Figure{Name: name + ", writes of its row after the first", Unit: "writes/s", Max: 1}, w)
		s.Logf("%s: its row was written %s times a second after the first", name, number(w))
	}
	return err
}

// rowWrites returns how many rows MySQL has updated so far.
func (w *whole) rowWrites(ctx context.Context) (n int, err error) {
	var name string
	err = w.stack.DB().QueryRowContext(ctx, "SHOW GLOBAL STATUS LIKE 'Handler_update'").Scan(&name, &n)
	return n, err
}
