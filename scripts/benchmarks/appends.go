package benchmarks

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
)

// appends compares the code behind the handler of single posts with what the same Redis can do. redis-benchmark sends
// the same command that the api sends for a full call, over two connections with two calls under way on each.
func (p *posts) appends(ctx context.Context) error {
	n := 1_000_000
	if p.Quick {
		n = 100_000
	}
	if err := p.clear(ctx); err != nil {
		return err
	}
	call, err := p.fullCall(ctx)
	if err != nil {
		return err
	}
	rate := func(each time.Duration) float64 { return 1 / each.Seconds() }
	return p.Compare(ctx, Case{
		Figure: Figure{Name: "appends, without HTTP", Unit: "events/s"},
		Ours: Subject{Name: "look up, make the event, append", Measure: func(ctx context.Context) (float64, error) {
			if err := p.clear(ctx); err != nil {
				return 0, err
			}
			each, err := p.goBenchmark(ctx, "api/internal/ingest", "Append", n, "TMPDIR="+p.Dir,
				"TIERFLOW_TEST_REDIS_URL="+p.redis.URL(), "TIERFLOW_TEST_MYSQL_DSN="+p.mysql.DSN(""))
			return rate(each), err
		}},
		Against: []Subject{
			{Name: "redis-benchmark, the same script", Min: 0.7, Measure: func(ctx context.Context) (float64, error) {
				return p.redisBenchmark(ctx, n, perCall, 2, call)
			}},
			{Name: "redis-benchmark, XADD alone", Measure: func(ctx context.Context) (float64, error) {
				return p.redisBenchmark(ctx, n, 1, perCall, append([]string{"XADD", p.stack.Keys.Views(), "*"}, sampleView(firstID).Fields()...))
			}},
		},
	})
}

// perCall is the most events that the api sends in one call.
const perCall = 256

// fullCall returns the command that appends so many events, as Redis receives it.
func (p *posts) fullCall(ctx context.Context) ([]string, error) {
	conn, err := net.Dial("tcp", p.redis.Addr())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return nil, err
	}
	seen := bufio.NewReader(conn)
	if _, err := conn.Write([]byte("MONITOR\r\n")); err != nil {
		return nil, err
	}
	if ok, err := seen.ReadString('\n'); err != nil || ok != "+OK\r\n" {
		return nil, fmt.Errorf("MONITOR: %w: %q", err, ok)
	}
	views := make([]event.View, perCall)
	for i := range views {
		views[i] = sampleView(firstID + i)
	}
	store := state.NewStore(state.Options{Redis: p.stack.Redis, Keys: p.stack.Keys, TTL: time.Hour, Lease: time.Minute})
	if _, err := store.Append(ctx, views); err != nil {
		return nil, err
	}
	for {
		line, err := seen.ReadString('\n')
		if err != nil {
			return nil, fmt.Errorf("MONITOR: %w", err)
		}
		_, quoted, _ := strings.Cut(line, "] ")
		if !strings.HasPrefix(strings.ToLower(quoted), `"evalsha" `) || !strings.Contains(quoted, views[perCall-1].EventID) {
			continue
		}
		var words []string
		for rest := strings.TrimSpace(quoted); rest != ""; {
			q, err := strconv.QuotedPrefix(rest)
			if err != nil {
				return nil, fmt.Errorf("MONITOR: %w: %s", err, rest)
			}
			word, err := strconv.Unquote(q)
			if err != nil {
				return nil, fmt.Errorf("MONITOR: %w: %s", err, q)
			}
			words = append(words, word)
			rest = strings.TrimSpace(rest[len(q):])
		}
		return words, nil
	}
}

func sampleView(id int) event.View {
	return event.View{EventID: fmt.Sprintf("01890a5d-ac96-774b-bcce-%012x", id), ID: item.ID(id), Count: 1_000_000_000, Target: "gold",
		DBLevel: "bronze", Filename: fmt.Sprintf("videos/%d.mp4", id), PostedAt: time.Now()}
}

var perSecond = regexp.MustCompile(`([0-9.]+) requests per second`)

// redisBenchmark sends a command until n events are in the stream, and returns the events a second. Each command appends
// so many events. Each of the connections has a number of commands under way.
func (p *posts) redisBenchmark(ctx context.Context, n, each, underWay int, command []string) (float64, error) {
	if err := p.clear(ctx); err != nil {
		return 0, err
	}
	host, port, err := net.SplitHostPort(p.redis.Addr())
	if err != nil {
		return 0, err
	}
	const conns = 2
	times := n / each / (conns * underWay) * (conns * underWay) // redis-benchmark sends exactly this number only if it is a multiple
	args := []string{"-h", host, "-p", port, "-c", strconv.Itoa(conns), "-P", strconv.Itoa(underWay), "-n", strconv.Itoa(times), "-q"}
	out, err := exec.CommandContext(ctx, "redis-benchmark", append(args, command...)...).CombinedOutput()
	found := perSecond.FindSubmatch(out)
	if err == nil && found == nil {
		err = errors.New("it says no rate")
	}
	if err != nil {
		return 0, fmt.Errorf("redis-benchmark: %w: %s", err, out[max(0, len(out)-1000):])
	}
	rate, err := strconv.ParseFloat(string(found[1]), 64)
	if err != nil {
		return 0, fmt.Errorf("redis-benchmark: %w", err)
	}
	length, err := p.stack.Redis.XLen(ctx, p.stack.Keys.Views()).Result()
	if err != nil {
		return 0, err
	}
	if length != int64(times*each) {
		return 0, fmt.Errorf("redis-benchmark sent %d events, and %d entries are in the stream", times*each, length)
	}
	return rate * float64(each), nil
}
