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

// batches posts bodies of many lines on a few connections, as a client with many counts does, in turn with single posts.
func (s *singles) batches(ctx context.Context, l *load) error {
	var costs []cost
	err := s.Compare(ctx, Case{
		Figure: Figure{Name: fmt.Sprintf("batches of %s lines", number(batchLines)), Unit: "events/s"},
		Ours: Subject{Name: "/v1/views", Measure: func(ctx context.Context) (float64, error) {
			rate, c, err := s.batch(ctx, l)
			if err == nil {
				costs = append(costs, c)
			}
			return rate, err
		}},
		Against: []Subject{{Name: "single posts", Min: 5, Measure: func(ctx context.Context) (float64, error) {
			r, _, err := s.post(ctx, l, toAPI)
			return r.rate(), err
		}}},
	})
	for _, c := range costs {
		s.Observe(Figure{Name: fmt.Sprintf("batches of %s lines, CPU of the service", number(batchLines)), Unit: "µs/event"}, c["service"])
		s.Observe(Figure{Name: fmt.Sprintf("batches of %s lines, CPU of Redis", number(batchLines)), Unit: "µs/event"}, c["redis"])
	}
	return err
}

// batch posts batches for a while, and checks that no line is lost.
func (s *singles) batch(ctx context.Context, l *load) (float64, cost, error) {
	const clients = 8
	if err := s.clear(ctx); err != nil {
		return 0, nil, err
	}
	m, err := startMeter(s.programs(toAPI))
	if err != nil {
		return 0, nil, err
	}
	var posted atomic.Int64
	errs := make([]error, clients)
	begin := time.Now()
	var wg sync.WaitGroup
	for k := range clients {
		wg.Go(func() {
			var body []byte
			for errs[k] == nil && time.Since(begin) < l.lasts {
				n := int(posted.Add(batchLines)) - batchLines
				body = body[:0]
				for i := n; i < n+batchLines; i++ {
					body = appendLine(body, l.ids[i%len(l.ids)], i)
				}
				errs[k] = s.postBatch(ctx, bytes.NewReader(body), batchLines)
			}
		})
	}
	wg.Wait()
	took := time.Since(begin)
	used, err := m.used()
	if err := errors.Join(err, errors.Join(errs...)); err != nil {
		return 0, nil, err
	}
	n := int(posted.Load())
	return float64(n) / took.Seconds(), costOf(used, n), s.accountBatches(ctx, n)
}

// appendLine appends a line of NDJSON with a count that no other line of a measurement has.
func appendLine(b []byte, cid string, n int) []byte {
	b = append(append(append(b, `{"cid":`...), cid...), `,"count":`...)
	return append(strconv.AppendInt(b, int64(1_000_000_000+n), 10), "}\n"...)
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
func (p *posts) accountBatches(ctx context.Context, n int) error {
	l, err := p.read(ctx)
	if err == nil && l.entries != n {
		err = fmt.Errorf("%d lines were accepted, and %d entries are in the stream", n, l.entries)
	}
	if err != nil {
		return err
	}
	return p.agrees(ctx, l)
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
	return peak, s.accountBatches(ctx, lines)
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
			r.line = appendLine(r.line, strconv.Itoa(firstID+r.next%items), r.next)
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
