package compose_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// traffic posts view events, and has readers who look items up and open their files, until stop.
type traffic struct {
	ids               []item.ID
	accepted, refused atomic.Int64
	read              atomic.Int64
	end               chan struct{}
	running           sync.WaitGroup
	mu                sync.Mutex
	uncertain         map[item.ID]bool // a post had no answer, so it is unknown whether it counts
	problems          []error
}

const (
	posters = 4
	readers = 2
)

func (w *world) traffic(t *testing.T, ids []item.ID) *traffic {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	tr := &traffic{ids: ids, end: make(chan struct{}), uncertain: map[item.ID]bool{}}
	for p := range posters {
		random := rand.New(rand.NewPCG(seed, uint64(p)))
		tr.running.Go(func() {
			for i := p; ; i += posters {
				select {
				case <-tr.end:
					return
				case <-time.After(2 * time.Millisecond): // a stream of views, not a load test
				}
				tr.post(w, ids[i%len(ids)/posters*posters+p], item.Count(random.IntN(3000)))
			}
		})
	}
	for r := range readers {
		random := rand.New(rand.NewPCG(seed, uint64(posters+r)))
		tr.running.Go(func() {
			for {
				select {
				case <-tr.end:
					return
				case <-time.After(2 * time.Millisecond):
				}
				if err := tr.open(w, ids[random.IntN(len(ids))]); err != nil {
					tr.mu.Lock()
					tr.problems = append(tr.problems, err)
					tr.mu.Unlock()
				}
			}
		})
	}
	t.Cleanup(tr.halt)
	return tr
}

func (tr *traffic) halt() {
	select {
	case <-tr.end:
	default:
		close(tr.end)
	}
	tr.running.Wait()
}

// post posts a count. Only one poster posts the counts of an item.
func (tr *traffic) post(w *world, id item.ID, count item.Count) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if w.Post(ctx, id, count) == nil {
		tr.accepted.Add(1)
		return
	}
	tr.refused.Add(1)
	tr.mu.Lock()
	tr.uncertain[id] = true
	tr.mu.Unlock()
}

// open reads as a web server does: it looks the row up and opens the file. A reader that takes less than the grace must
// find the file.
func (tr *traffic) open(w *world, id item.ID) error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	start := time.Now()
	row, err := w.Catalog.Row(ctx, id)
	if err != nil {
		return nil // MySQL is away, so no look-up works
	}
	path := filepath.Join(w.local("/srv/tierflow/"+row.Level), row.Filename)
	info, err := os.Stat(path)
	if took := time.Since(start); errors.Is(err, fs.ErrNotExist) && took < grace/2 {
		return fmt.Errorf("item %s: not at %s, %v after the look-up", id, path, took)
	}
	if err == nil && info.Size() != sampleSize {
		return fmt.Errorf("item %s: %d bytes at %s", id, info.Size(), path)
	}
	tr.read.Add(1)
	return nil
}

const sampleSize = 40_000

// more waits until this many more views were accepted, or refused.
func more(t *testing.T, what string, counter *atomic.Int64, n int64) {
	t.Helper()
	from := counter.Load()
	testserver.Eventually(t, fmt.Sprintf("%d more views are %s", n, what), patience, func() error {
		if got := counter.Load() - from; got < n {
			return fmt.Errorf("%d so far", got)
		}
		return nil
	})
}

// finish ends the traffic and checks what must be true then. An item whose posts all had an answer must lie where its last
// accepted count needs it. For each of the others, finish posts one more count, which is then the last.
func (tr *traffic) finish(t *testing.T, w *world) {
	t.Helper()
	tr.halt()
	for _, err := range tr.problems {
		t.Error(err)
	}
	for id := range tr.uncertain {
		testserver.Eventually(t, "the last word", patience, func() error { return w.Post(t.Context(), id, 1500) })
	}
	w.checkSettled(t)
	t.Logf("%d views accepted, %d refused or without an answer (of %d items), %d files opened",
		tr.accepted.Load(), tr.refused.Load(), len(tr.uncertain), tr.read.Load())
	if tr.read.Load() == 0 {
		t.Error("no reader ever opened a file")
	}
}

// needed has the services that must run for views to be accepted.
var needed = map[string]bool{"api": true, "redis": true}

func TestTheGuaranteesHoldWhateverServiceIsKilledPausedOrCutOff(t *testing.T) {
	w.begin(t)
	w.scale(t, 4)
	tr := w.traffic(t, w.add(t, "bronze", 80, sampleSize))
	more(t, "accepted", &tr.accepted, 100)
	for _, service := range []string{"relocator", "committer", "api", "redis", "mysql"} {
		one := w.containers(t, service)[0]
		away := func(t *testing.T) { // until the traffic has met the fault
			t.Helper()
			if needed[service] {
				more(t, "refused", &tr.refused, 3)
			} else {
				more(t, "accepted", &tr.accepted, 100)
			}
		}
		back := func(t *testing.T) {
			t.Helper()
			w.waitHealthy(t)
			more(t, "accepted", &tr.accepted, 50)
		}
		t.Run(service+" crashes", func(t *testing.T) {
			started := w.inspect(t, one, "{{.State.StartedAt}}")
			w.crash(t, one)
			testserver.Eventually(t, "the policy restarts it", patience, func() error {
				if now := w.inspect(t, one, "{{.State.StartedAt}}"); now == started {
					return errors.New("it has not been started since " + started)
				}
				return nil
			})
			back(t)
		})
		t.Run(service+" is killed", func(t *testing.T) {
			must[string](t)(w.command("docker", "kill", one))
			away(t)
			must[string](t)(w.compose("up", "--detach", "--wait", "--no-build", "--no-recreate", "--scale", "relocator=4"))
			back(t)
		})
		t.Run(service+" is paused", func(t *testing.T) {
			w.pause(t, one)
			away(t)
			w.unpause(t, one)
			back(t)
		})
		t.Run(service+" is cut off", func(t *testing.T) {
			network := w.project + "_back"
			must[string](t)(w.command("docker", "network", "disconnect", network, one))
			away(t)
			must[string](t)(w.command("docker", "network", "connect", "--alias", service, network, one))
			back(t)
		})
	}
	tr.finish(t, &w)
}

func TestEveryAcceptedViewIsThereAfterRedisHasCrashed(t *testing.T) {
	w.begin(t)
	pause := func(yes bool) {
		call := w.Client().Resume
		if yes {
			call = w.Client().Pause
		}
		if _, err := call(context.Background()); err != nil {
			t.Errorf("pause %v: %v", yes, err)
		}
	}
	pause(true) // accepted entries stay in the stream
	defer pause(false)
	one := w.containers(t, "redis")[0]
	ids := w.add(t, "bronze", 30, sampleSize)
	for _, id := range ids {
		ok(t, w.Post(t.Context(), id, 2500))
	}
	must[client.Waiting](t)(w.Client().Waiting(t.Context(), 0, 0)) // with the rights that the api has in Redis
	if status := must[client.Status](t)(w.Client().Status(t.Context())); len(status.Attention) == 0 {
		t.Errorf("the status does not say that relocations are paused: %+v", status)
	}
	started := w.inspect(t, one, "{{.State.StartedAt}}")
	w.crash(t, one)
	testserver.Eventually(t, "Redis is back", patience, func() error {
		if now := w.inspect(t, one, "{{.State.StartedAt}}"); now == started {
			return errors.New("it has not been started since " + started)
		}
		return w.Redis.Ping(t.Context()).Err()
	})
	entries := must[[]redis.XMessage](t)(w.Redis.XRange(t.Context(), w.Keys.Views(), "-", "+").Result())
	there := map[any]bool{}
	for _, e := range entries {
		there[e.Values["cid"]] = true
	}
	for _, id := range ids {
		if !there[id.String()] {
			t.Errorf("item %s: its accepted view is not in the stream any more", id)
		}
	}
	w.waitHealthy(t)
	pause(false)
	w.checkSettled(t)
}

func TestWhatUpSaysToTryWorks(t *testing.T) {
	w.begin(t)
	w.next++
	id := w.next
	file := filepath.Join(t.TempDir(), "video.mp4")
	ok(t, os.WriteFile(file, make([]byte, sampleSize), 0o644))
	must[string](t)(w.compose("cp", file, "relocator:/srv/tierflow/bronze/"))
	must[client.Item](t)(w.Client().Register(t.Context(), client.NewItem{CID: id, Filename: "video.mp4"}))
	ok(t, w.Post(t.Context(), id, 1964))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	must[catalog.Row](t)(w.WaitLevel(ctx, id, "silver"))
	w.checkSettled(t)
}

func TestAPausedRelocatorsWorkIsTakenOverByTheOthers(t *testing.T) {
	w.begin(t)
	w.scale(t, 2)
	one := w.containers(t, "relocator")[0]
	ids := w.add(t, "bronze", 60, sampleSize)
	for _, id := range ids {
		ok(t, w.Post(t.Context(), id, 2500))
	}
	w.pause(t, one)
	defer w.unpause(t, one)
	w.checkSettled(t)
	w.unpause(t, one)
	w.checkSettled(t) // the entries that it held change nothing any more
}

func TestFourRelocatorsShareTheWorkAndLeaveWithoutATrace(t *testing.T) {
	w.begin(t)
	w.scale(t, 4)
	consumers := must[[]string](t)(w.relocators(t.Context()))
	for _, id := range w.containers(t, "relocator") {
		host := w.inspect(t, id, "{{.Config.Hostname}}")
		if !slices.ContainsFunc(consumers, func(name string) bool { return strings.HasPrefix(name, host+"-") }) {
			t.Errorf("no consumer is named after %s: %v", host, consumers)
		}
	}
	ids := w.add(t, "bronze", 200, sampleSize)
	for i, id := range ids {
		ok(t, w.Post(t.Context(), id, 1500))
		if i == len(ids)/2 { // in the middle of the work, three are told to stop
			w.scale(t, 1)
		}
	}
	w.checkSettled(t)
	rows := must[int](t)(w.count(t.Context(), "SELECT COUNT(DISTINCT worker_id) FROM update_history WHERE cid BETWEEN ? AND ?",
		ids[0], ids[len(ids)-1]))
	if rows < 2 {
		t.Errorf("only %d relocator did all the work", rows)
	}
}

// relocators returns the names of the consumers of views.
func (w *world) relocators(ctx context.Context) (names []string, err error) {
	consumers, err := w.Redis.XInfoConsumers(ctx, w.Keys.Views(), state.GroupRelocator).Result()
	for _, c := range consumers {
		names = append(names, c.Name)
	}
	return names, err
}

// count returns the single number that a query answers.
func (w *world) count(ctx context.Context, query string, args ...any) (n int, err error) {
	err = w.DB().QueryRowContext(ctx, query, args...).Scan(&n)
	return n, err
}
