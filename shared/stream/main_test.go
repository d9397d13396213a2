package stream_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/stream"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m) }

const (
	// soon is far more than anything here takes, on a slow machine too.
	soon = 20 * time.Second
	// short lets entries be taken over within a test; long keeps time from having a part in it.
	short = 300 * time.Millisecond
	long  = time.Minute
)

// world is one stream with one group, on a real Redis.
type world struct {
	*testing.T
	rdb    *redis.Client // of the test itself
	url    string
	stream string
	over   chan struct{} // closed when the test ends: no handler waits for it any more
	end    func()
}

func newWorld(t *testing.T) *world {
	t.Helper()
	t.Parallel() // most of the time of a test is waiting
	return newWorldAlone(t)
}

// newWorldAlone is for a test that looks at the whole process.
func newWorldAlone(t *testing.T) *world {
	t.Helper()
	w := &world{T: t, url: testserver.Redis(t), over: make(chan struct{})}
	w.end = sync.OnceFunc(func() { close(w.over) })
	w.stream = testserver.Prefix(t) + "s"
	w.rdb = w.client(w.url)
	return w
}

func (w *world) client(url string) *redis.Client {
	w.Helper()
	o, err := redis.ParseURL(url)
	if err != nil {
		w.Fatal(err)
	}
	o.MaxRetries = -1
	o.ContextTimeoutEnabled = true
	c := redis.NewClient(o)
	w.Cleanup(func() { c.Close() })
	return c
}

// add appends n entries; their field "n" counts from 0.
func (w *world) add(n int) (ids []string) {
	w.Helper()
	cmds, err := w.rdb.Pipelined(w.Context(), func(p redis.Pipeliner) error {
		for i := range n {
			p.XAdd(w.Context(), &redis.XAddArgs{Stream: w.stream, Values: []string{"n", fmt.Sprint(i)}})
		}
		return nil
	})
	if err != nil {
		w.Fatal(err)
	}
	for _, c := range cmds {
		ids = append(ids, c.(*redis.StringCmd).Val())
	}
	return ids
}

func (w *world) group(name string) {
	w.Helper()
	if err := w.rdb.XGroupCreateMkStream(w.Context(), w.stream, name, "0").Err(); err != nil {
		w.Fatal(err)
	}
}

// read makes entries pending with a consumer that does nothing more: one that has crashed.
func (w *world) read(group, consumer string, n int64) (ids []string) {
	w.Helper()
	s, err := w.rdb.XReadGroup(w.Context(), &redis.XReadGroupArgs{
		Group: group, Consumer: consumer, Streams: []string{w.stream, ">"}, Count: n, Block: time.Millisecond,
	}).Result()
	if err != nil {
		w.Fatal(err)
	}
	for _, m := range s[0].Messages {
		ids = append(ids, m.ID)
	}
	return ids
}

func (w *world) ack(ids ...string) {
	w.Helper()
	if err := w.rdb.XAck(context.WithoutCancel(w.Context()), w.stream, "g", ids...).Err(); err != nil {
		w.Error(err)
	}
}

func (w *world) pending() []redis.XPendingExt {
	w.Helper()
	p, err := w.rdb.XPendingExt(w.Context(), &redis.XPendingExtArgs{
		Stream: w.stream, Group: "g", Start: "-", End: "+", Count: 100_000,
	}).Result()
	if err != nil {
		w.Fatal(err)
	}
	return p
}

func (w *world) pendingOf(id string) redis.XPendingExt {
	w.Helper()
	for _, p := range w.pending() {
		if p.ID == id {
			return p
		}
	}
	return redis.XPendingExt{}
}

// count makes an entry of a consumer one that was delivered so many times.
func (w *world) count(id, consumer string, n int64) {
	w.Helper()
	if err := w.rdb.Do(w.Context(), "XCLAIM", w.stream, "g", consumer, 0, id, "RETRYCOUNT", n, "JUSTID").Err(); err != nil {
		w.Fatal(err)
	}
}

// nothingIsLeft waits until every entry was delivered and settled.
func (w *world) nothingIsLeft() {
	w.Helper()
	testserver.Eventually(w, "everything is settled", soon, func() error {
		groups, err := w.rdb.XInfoGroups(w.Context(), w.stream).Result()
		if err != nil {
			return err
		}
		info, err := w.rdb.XInfoStream(w.Context(), w.stream).Result()
		if err != nil {
			return err
		}
		for _, g := range groups {
			if g.Name == "g" && g.Pending == 0 && g.LastDeliveredID == info.LastGeneratedID {
				return nil
			}
		}
		return fmt.Errorf("groups %+v, last id %s", groups, info.LastGeneratedID)
	})
}

// running is a consumer at work.
type running struct {
	*stream.Consumer
	w       *world
	stop    context.CancelFunc // asks it to stop
	stopped chan struct{}      // closed when Run has returned
	client  *hook
}

// run starts a consumer of the group "g"; it is stopped at the end of the test.
func (w *world) run(o stream.Options) *running {
	w.Helper()
	if o.Redis == nil {
		o.Redis = w.client(w.url)
	}
	h := &hook{}
	o.Redis.AddHook(h)
	if o.Stream == "" {
		o.Stream = w.stream
	}
	if o.Group == "" {
		o.Group = "g"
	}
	if o.Backoff == "" {
		o.Backoff = w.stream + ":backoff"
	}
	if o.Walker == "" {
		o.Walker = w.stream + ":walker"
	}
	if o.Consumer == "" {
		o.Consumer = "me"
	}
	if o.MinIdle == 0 {
		o.MinIdle = short
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(w.Context()))
	r := &running{Consumer: stream.New(o), w: w, stop: stop, stopped: make(chan struct{}), client: h}
	go func() {
		defer close(r.stopped)
		r.Run(ctx)
	}()
	w.Cleanup(func() {
		w.end()
		stop()
		r.wait()
	})
	return r
}

// wait waits until Run has returned.
func (r *running) wait() {
	r.w.Helper()
	select {
	case <-r.stopped:
	case <-time.After(soon):
		r.w.Fatal("the consumer does not stop")
	}
}

// upkeeps waits for n whole rounds of upkeep that begin from now on. Looking at the consumers is their last step.
func (r *running) upkeeps(n int) {
	r.w.Helper()
	r.client.await(r.w, "xinfo consumers", n+1)
}

// hook tells a test which commands a client has sent and had answered.
type hook struct {
	mu    sync.Mutex
	seen  map[string]int
	names []string // in their order; those that may wait are called so
}

// await waits for a command to be answered n times from now on.
func (h *hook) await(w *world, command string, n int) {
	w.Helper()
	h.reach(w, command, h.count(command)+n)
}

// reach waits until a command has been answered n times.
func (h *hook) reach(w *world, command string, n int) {
	w.Helper()
	testserver.Eventually(w, fmt.Sprintf("%d times %s", n, command), soon, func() error {
		if c := h.count(command); c < n {
			return fmt.Errorf("%d are missing", n-c)
		}
		return nil
	})
}

func (h *hook) count(command string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.seen[command]
}

// total is how many commands were answered.
func (h *hook) total() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.names)
}

func (h *hook) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

func (h *hook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.seen == nil {
			h.seen = map[string]int{}
		}
		if len(cmd.Args()) > 1 && (err == nil || errors.Is(err, redis.Nil)) {
			h.seen[cmd.Name()]++
			name := cmd.Name()
			if slices.Contains(cmd.Args(), "block") {
				name += " block"
			}
			h.names = append(h.names, name)
			h.seen[fmt.Sprintf("%v %v", cmd.Args()[0], cmd.Args()[1])]++
		}
		return err
	}
}

func (h *hook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// work is a delivery that a handler has given to the test. The handler returns after the test has answered.
type work struct {
	*stream.Delivery
	answer chan func(d *stream.Delivery)
}

// handler makes a handler of single entries that waits for the test, and reports progress meanwhile.
func (w *world) handler() (stream.Handler, <-chan work) {
	got := make(chan work, 1000)
	return func(ds []*stream.Delivery) {
		for _, d := range ds {
			h := work{d, make(chan func(*stream.Delivery), 1)}
			got <- h
			w.answerOf(h)(d)
		}
	}, got
}

func (w *world) answerOf(h work) func(*stream.Delivery) {
	for {
		select {
		case f := <-h.answer:
			return f
		case <-w.over:
			return func(*stream.Delivery) {}
		case <-time.After(short / 10):
			h.Progress()
		}
	}
}

func next[T any](w *world, got <-chan T) T {
	w.Helper()
	select {
	case x := <-got:
		return x
	case <-time.After(soon):
		w.Fatal("the handler got no entry")
		panic("not reached")
	}
}

func none[T any](w *world, got <-chan T) {
	w.Helper()
	select {
	case x := <-got:
		w.Fatalf("%+v was begun", x)
	default:
	}
}

// settle acks and lets the handler end.
func (w *world) settle(h work) {
	w.ack(h.ID)
	h.answer <- (*stream.Delivery).Settled
}

// obedient waits for the end of its context and calls nothing.
func obedient(d *stream.Delivery) { <-d.Context.Done() }

// settleAll settles the entries that handlers get, which must be exactly these, in any order.
func (w *world) settleAll(got <-chan work, ids []string) {
	w.Helper()
	var seen []string
	for range ids {
		h := next(w, got)
		seen = append(seen, h.ID)
		w.settle(h)
	}
	slices.Sort(seen)
	if want := slices.Sorted(slices.Values(ids)); !slices.Equal(seen, want) {
		w.Fatalf("got %v, want %v", seen, want)
	}
}
