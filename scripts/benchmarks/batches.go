package benchmarks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tierflow/tierflow/api/client"
)

// batchLines is the number of lines of a batch.
const batchLines = 1000

// wantedOfEchoInBatches is the wanted rate of batches, as a part of the single posts that the bare handler answers. It is
// five times the rate of Tierflow before relocators settled views in batches: 10,000 events a second, where the bare handler
// answered 22,000 posts.
const wantedOfEchoInBatches = 2.27

// batches posts bodies of many lines on a few connections, as a client with many counts does, in turn with single posts.
func (s *singles) batches(ctx context.Context, loads []*load) error {
	for _, l := range loads {
		name := fmt.Sprintf("batches of %s lines, %s", number(batchLines), l.name)
		var ours []settling
		ways := s.earlier(5, func(ctx context.Context, w *whole) (settling, error) { return w.batch(ctx, l, "", 0) })
		alone := &aloneInBatches{singles: s, load: l}
		if l.name == "uniform" {
			ways = append(ways, alone.subjects()...)
		}
		err := s.Compare(ctx, Case{
			Figure: Figure{Name: name, Unit: "events/s"},
			Ours: Subject{Name: "accepted and settled", Measure: func(ctx context.Context) (float64, error) {
				r, err := s.whole.batch(ctx, l, name, 0)
				if err != nil {
					return 0, err
				}
				ours = append(ours, r)
				return r.rate(), nil
			}},
			Against: ways,
		})
		if err != nil {
			return err
		}
		for round, r := range ours {
			rates, costs := alone.observed(round)
			s.observeSettling(name, "event", r, rates, costs)
			if len(rates) > 0 {
				s.Observe(Figure{Name: name + ", " + toAPI, Unit: "events/s"}, rates[0].Value,
					Other{Name: "single posts, " + toAPI, Value: alone.single[round], Min: 5})
			}
		}
	}
	return nil
}

// aloneInBatches measures the api without a relocator and a committer: batches and single posts, and the bare handler.
type aloneInBatches struct {
	*singles
	load   *load
	rates  []float64
	costs  []cost
	single []float64
}

func (a *aloneInBatches) subjects() []Subject {
	return []Subject{
		{Name: "single posts, " + toEcho, Min: wantedOfEchoInBatches, Measure: func(ctx context.Context) (float64, error) {
			r, _, err := a.post(ctx, a.load, toEcho)
			return r.rate(), err
		}},
		{Name: toAPI, Measure: func(ctx context.Context) (float64, error) {
			r, c, err := a.batchAlone(ctx)
			if err != nil {
				return 0, err
			}
			rate := float64(r.ok) / r.took.Seconds()
			a.rates, a.costs = append(a.rates, rate), append(a.costs, c)
			return rate, nil
		}},
		{Name: "single posts, " + toAPI, Measure: func(ctx context.Context) (float64, error) {
			r, _, err := a.post(ctx, a.load, toAPI)
			if err == nil {
				a.single = append(a.single, r.rate())
			}
			return r.rate(), err
		}},
	}
}

// observed returns the rate and the CPU times of a round. They are empty where nothing was measured.
func (a *aloneInBatches) observed(round int) ([]Other, map[string][]Other) {
	if round >= len(a.rates) {
		return nil, nil
	}
	costs := map[string][]Other{"all programs": {{Name: toAPI, Value: a.costs[round].sum()}}}
	for program, v := range a.costs[round] {
		costs[program] = []Other{{Name: toAPI, Value: v}}
	}
	return []Other{{Name: toAPI, Value: a.rates[round]}}, costs
}

// batchAlone posts batches for a while to the api alone, and checks that no line is lost.
func (a *aloneInBatches) batchAlone(ctx context.Context) (posted, cost, error) {
	if err := a.clear(ctx); err != nil {
		return posted{}, nil, err
	}
	m, err := startMeter(a.programs(toAPI))
	if err != nil {
		return posted{}, nil, err
	}
	r, err := a.batch(ctx, a.load, 0)
	if err != nil {
		return posted{}, nil, err
	}
	used, err := m.used()
	if err != nil {
		return posted{}, nil, err
	}
	_, err = a.accountBatches(ctx, r.ok)
	return r, costOf(used, r.ok), err
}

// batch posts lines in batches on eight connections: n of them, or, where n is 0, for as long as the load lasts.
func (p *posts) batch(ctx context.Context, l *load, n int) (posted, error) {
	const clients = 8
	var next atomic.Int64
	errs := make([]error, clients)
	begin := time.Now()
	var wg sync.WaitGroup
	for k := range clients {
		wg.Go(func() {
			var body []byte
			for errs[k] == nil && (n > 0 || time.Since(begin) < l.lasts) {
				from := int(next.Add(batchLines)) - batchLines
				if n > 0 && from >= n {
					next.Add(-batchLines)
					return
				}
				body = body[:0]
				for i := from; i < from+batchLines; i++ {
					cid, count := l.view(i)
					body = appendLine(body, cid, count)
				}
				errs[k] = p.postBatch(ctx, bytes.NewReader(body), batchLines)
			}
		})
	}
	wg.Wait()
	return posted{took: time.Since(begin), ok: int(next.Load()), lines: true}, errors.Join(errs...)
}

// appendLine appends a line of NDJSON.
func appendLine(b []byte, cid string, count int) []byte {
	b = append(append(append(b, `{"cid":`...), cid...), `,"count":`...)
	return append(strconv.AppendInt(b, int64(count), 10), "}\n"...)
}

// postBatch posts a body of so many lines. It is an error when the api does not accept all of them.
func (p *posts) postBatch(ctx context.Context, body io.Reader, lines int) error {
	batch, err := p.stack.Client().PostLines(ctx, body)
	var problem *client.Problem
	switch {
	case errors.As(err, &problem) && problem.Status == http.StatusServiceUnavailable:
		return fmt.Errorf("a batch of %d lines: %w: %w", lines, errRefused, err)
	case err == nil && batch.Accepted != int64(lines):
		return fmt.Errorf("a batch of %d lines: %d were accepted: %+v", lines, batch.Accepted, batch.Refused)
	}
	return err
}

// accountBatches checks that n lines are in the stream, that no two are the same, and that the states agree.
func (p *posts) accountBatches(ctx context.Context, n int) (ledger, error) {
	l, err := p.read(ctx)
	if err == nil && l.entries != n {
		err = fmt.Errorf("%d lines were accepted, and %d entries are in the stream", n, l.entries)
	}
	if err != nil {
		return l, err
	}
	return l, p.agrees(ctx, l)
}

// largeBodies posts the same number of lines in one body and in many, each time to an api that has just started. The
// api's memory at its peak must not depend on the body's size.
func (s *singles) largeBodies(ctx context.Context) error {
	lines := 1_000_000
	if s.Quick {
		lines = 50_000
	}
	// The limit of the backlog must not refuse these lines.
	s.stack.API.Settings["TIERFLOW_MAX_BACKLOG"] = strconv.Itoa(2 * lines)
	defer delete(s.stack.API.Settings, "TIERFLOW_MAX_BACKLOG")
	for range min(s.Rounds, 2) { // a round takes long, and its figure varies little
		var large, small float64
		err := s.patiently(func() (err error) {
			if large, err = s.peakOf(ctx, lines, lines); err == nil {
				small, err = s.peakOf(ctx, lines, batchLines)
			}
			return err
		})
		if err != nil {
			return err
		}
		name := fmt.Sprintf("api's memory at its peak, %s lines in one body", number(float64(lines)))
		other := fmt.Sprintf("in bodies of %s", number(batchLines))
		s.Observe(Figure{Name: name, Unit: "MiB"}, large, Other{Name: other, Value: small, Max: 1.2})
		s.Logf("%s: %s MiB; %s: %s MiB", name, number(large), other, number(small))
	}
	return nil
}

// peakOf returns the memory at its peak, in MiB, of a new api that takes so many lines.
func (s *singles) peakOf(ctx context.Context, lines, perBody int) (float64, error) {
	if _, err := s.stack.API.Terminate(ctx); err != nil {
		return 0, err
	}
	if err := s.stack.API.Start(ctx); err != nil {
		return 0, err
	}
	if err := s.clear(ctx); err != nil {
		return 0, err
	}
	for n := 0; n < lines; n += perBody {
		if err := s.postBatch(ctx, &lineReader{next: n, end: n + perBody}, perBody); err != nil {
			return 0, err
		}
	}
	peak, err := peakMemory(s.stack.API.PID())
	if err != nil {
		return 0, err
	}
	_, err = s.accountBatches(ctx, lines)
	return peak, err
}

// lineReader makes the lines of a body when they are read.
type lineReader struct {
	next, end int
	line      []byte
}

func (r *lineReader) Read(b []byte) (n int, err error) {
	for n < len(b) {
		if len(r.line) == 0 {
			if r.next == r.end {
				break
			}
			r.line = appendLine(r.line, strconv.Itoa(firstID+r.next%items), firstCount+r.next)
			r.next++
		}
		copied := copy(b[n:], r.line)
		n, r.line = n+copied, r.line[copied:]
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}
