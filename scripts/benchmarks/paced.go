package benchmarks

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// paced posts at a fixed rate, however long the answers take, over connections that post at the same time. It returns how
// long each post took from the time at which it was due. So it counts the wait of a post for a connection whose last
// answer was slow. An answer other than 200 is an error.
func (l *load) paced(ctx context.Context, addr, path string, rate float64) ([]time.Duration, error) {
	every := time.Duration(connections / rate * float64(time.Second)) // between two posts of one connection
	n := max(int(l.lasts/every), 1)
	times := make([][]time.Duration, connections)
	errs := make([]error, connections)
	begin := time.Now().Add(50 * time.Millisecond) // time for all to connect
	var wg sync.WaitGroup
	for k := range connections {
		wg.Go(func() {
			first := begin.Add(every * time.Duration(k) / connections)
			times[k], errs[k] = l.paceOne(ctx, addr, path, k*n, n, first, every)
		})
	}
	wg.Wait()
	var all []time.Duration
	for _, ts := range times {
		all = append(all, ts...)
	}
	return all, errors.Join(errs...)
}

// paceOne sends n posts of the load on one connection, beginning with number from.
func (l *load) paceOne(ctx context.Context, addr, path string, from, n int, first time.Time, every time.Duration) ([]time.Duration, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(first.Add(l.lasts + 30*time.Second)); err != nil {
		return nil, err
	}
	r := bufio.NewReader(conn)
	var request []byte
	times := make([]time.Duration, 0, n)
	for i := range n {
		due := first.Add(every * time.Duration(i))
		time.Sleep(time.Until(due))
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		cid, count := l.view(from + i)
		body := fmt.Sprintf("cid=%s&count=%d", cid, count)
		request = fmt.Appendf(request[:0], "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s",
			path, addr, len(body), body)
		if _, err := conn.Write(request); err != nil {
			return nil, err
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return nil, err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("post %d was answered with %s: %w", i, resp.Status, errRefused)
		}
		times = append(times, time.Since(due))
	}
	return times, nil
}
