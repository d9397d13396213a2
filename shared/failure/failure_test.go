package failure_test

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/failure"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m) }

const maxAttempts = 3

// What becomes of an entry, as the table below says it.
const (
	waits          = "waits"
	waitsForServer = "waits for a server"
	waitsForTier   = "waits for a tier"
	nextAttempt    = "next attempt"
	deadLetter     = "dead letter"
)

// table has every kind of fault. The three columns differ for a changed copy alone.
var table = []struct {
	kind                      fault.Kind
	relocate, release, commit string
}{
	{fault.Malformed, deadLetter, deadLetter, deadLetter},
	{fault.Unknown, deadLetter, deadLetter, deadLetter},
	{fault.Conflict, deadLetter, deadLetter, deadLetter},
	{fault.Unprocessable, deadLetter, deadLetter, deadLetter},
	{fault.MissingFile, deadLetter, deadLetter, deadLetter},
	{fault.InvalidName, deadLetter, deadLetter, deadLetter},
	{fault.Unsupported, deadLetter, deadLetter, deadLetter},
	{fault.Changed, nextAttempt, deadLetter, nextAttempt},
	{fault.Suspect, nextAttempt, nextAttempt, nextAttempt},
	{fault.Internal, nextAttempt, nextAttempt, nextAttempt},
	{fault.TierRefused, waitsForTier, waitsForTier, waitsForTier},
	{fault.NoSpace, waitsForTier, waitsForTier, waitsForTier},
	{fault.Lost, waits, waits, waits},
	{fault.Busy, waits, waits, waits},
	{fault.Unavailable, waitsForServer, waitsForServer, waitsForServer},

	// Only an HTTP call fails with one of these.
	{fault.NotFound, nextAttempt, nextAttempt, nextAttempt},
	{fault.MethodNotAllowed, nextAttempt, nextAttempt, nextAttempt},
	{fault.TooLarge, nextAttempt, nextAttempt, nextAttempt},
	{fault.UnsupportedMedia, nextAttempt, nextAttempt, nextAttempt},
	{fault.Unauthorized, nextAttempt, nextAttempt, nextAttempt},
	{fault.Forbidden, nextAttempt, nextAttempt, nextAttempt},
	{fault.RateLimited, nextAttempt, nextAttempt, nextAttempt},
	{fault.BacklogFull, nextAttempt, nextAttempt, nextAttempt},
}

// each calls f for every kind and stage of the table.
func each(f func(stage failure.Stage, kind fault.Kind, want string)) {
	for _, row := range table {
		f(failure.Relocate, row.kind, row.relocate)
		f(failure.Release, row.kind, row.release)
		f(failure.Commit, row.kind, row.commit)
	}
}

func TestTheTableHasEveryKindOfFault(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../fault/fault.go", nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	declared := map[fault.Kind]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if name, ok := v.Type.(*ast.Ident); ok && name.Name == "Kind" {
			value, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			declared[fault.Kind(value)] = true
		}
		return true
	})
	for _, row := range table {
		if !declared[row.kind] {
			t.Errorf("%s is no kind of package fault", row.kind)
		}
		delete(declared, row.kind)
	}
	for kind := range declared {
		t.Errorf("the table does not say what becomes of %s", kind)
	}
}

func TestEveryKindHasItsActionAndOnlyRetriesAreExhausted(t *testing.T) {
	actions := map[string]failure.Action{waits: failure.Wait, waitsForServer: failure.WaitForServer, waitsForTier: failure.WaitForTier,
		nextAttempt: failure.Retry, deadLetter: failure.DeadLetter}
	each(func(stage failure.Stage, kind fault.Kind, want string) {
		for attempt := int64(1); attempt <= maxAttempts+1; attempt++ {
			wantAction, wantReason := actions[want], ""
			switch {
			case want == deadLetter:
				wantReason = string(kind)
			case want == nextAttempt && attempt >= maxAttempts:
				wantAction, wantReason = failure.DeadLetter, failure.Exhausted
			}
			if action, reason := failure.Decide(stage, kind, attempt, maxAttempts); action != wantAction || reason != wantReason {
				t.Errorf("%s, %s, attempt %d: action %d, reason %q; want %d, %q", stage, kind, attempt, action, reason, wantAction, wantReason)
			}
		}
	})
}

// world is a Redis with the stream of one stage.
type world struct {
	t     *testing.T
	rdb   redis.UniversalClient
	store *state.Store
	stage failure.Stage
	key   string
	group string

	serverFailed atomic.Int64
	counted      sync.Map // reasons of dead letters
}

func newWorld(t *testing.T, stage failure.Stage) *world {
	t.Helper()
	rdb, err := state.Connect(testserver.Redis(t), -1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rdb.Close() })
	keys := state.NewKeys(testserver.Prefix(t))
	w := &world{t: t, rdb: rdb, stage: stage, store: state.NewStore(state.Options{Redis: rdb, Keys: keys, TTL: time.Hour, Lease: time.Minute})}
	switch stage {
	case failure.Relocate:
		w.key, w.group = keys.Views(), state.GroupRelocator
	case failure.Release:
		w.key, w.group = keys.Committed(), state.GroupReleaser
	case failure.Commit:
		w.key, w.group = keys.Relocated(), state.GroupCommitter
	}
	return w
}

func (w *world) handler() *failure.Handler {
	return failure.New(failure.Options{
		Store: w.store, Group: w.group, Stage: w.stage, WorkerID: "w1", MaxAttempts: maxAttempts,
		ServerFailed: func() { w.serverFailed.Add(1) }, DeadLetter: func(reason string) { w.counted.Store(reason, true) }, Log: zap.NewNop(),
	})
}

// deliver has every entry delivered once, with a field kind, and handled. It returns when that is done.
func (w *world) deliver(kinds []fault.Kind, handle func(d *stream.Delivery, kind fault.Kind)) {
	w.t.Helper()
	for i, kind := range kinds { // of different items: an item has one dead letter
		if err := w.rdb.XAdd(w.t.Context(), &redis.XAddArgs{Stream: w.key, Values: []string{"cid", fmt.Sprint(i + 1), "to", "gold", "kind", string(kind)}}).Err(); err != nil {
			w.t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(w.t.Context())
	defer stop()
	var mu sync.Mutex
	seen := map[string]bool{}
	c := stream.New(stream.Options{Redis: w.rdb, Stream: w.key, Backoff: w.store.Keys().Backoff(w.group), Walker: w.store.Keys().Walker(w.group), Group: w.group, Consumer: "w1",
		MinIdle: time.Minute, Drain: 5 * time.Second, Log: zap.NewNop(), Handle: func(ds []*stream.Delivery) {
			d := ds[0]
			mu.Lock()
			again := seen[d.ID]
			seen[d.ID] = true
			mu.Unlock()
			if again {
				d.Later(time.Hour)
				return
			}
			handle(d, fault.Kind(d.Values["kind"]))
		}})
	done := make(chan struct{})
	go func() { defer close(done); c.Run(ctx) }()
	testserver.Eventually(w.t, "every entry has been handled", 20*time.Second, func() error {
		mu.Lock()
		defer mu.Unlock()
		if len(seen) < len(kinds) {
			return fmt.Errorf("%d of %d", len(seen), len(kinds))
		}
		return nil
	})
	stop()
	<-done
}

// ends says of each kind what Redis knows of its entry: a dead letter with its reason, or how often it was tried.
func (w *world) ends() map[fault.Kind]string {
	w.t.Helper()
	found := map[fault.Kind]string{}
	dead, err := w.rdb.XRange(w.t.Context(), w.store.Keys().Dead(), "-", "+").Result()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, m := range dead {
		if m.Values["stage"] != string(w.stage) || m.Values["cid"] == nil {
			w.t.Errorf("dead letter: %v", m.Values)
		}
		found[fault.Kind(m.Values["kind"].(string))] = fmt.Sprintf("dead letter: %s", m.Values["reason"])
	}
	pending, err := w.rdb.XPendingExt(w.t.Context(), &redis.XPendingExtArgs{Stream: w.key, Group: w.group, Start: "-", End: "+", Count: 100}).Result()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, p := range pending {
		ms, err := w.rdb.XRange(w.t.Context(), w.key, p.ID, p.ID).Result()
		if err != nil || len(ms) != 1 {
			w.t.Fatalf("entry %s: %v, %v", p.ID, ms, err)
		}
		due := w.rdb.ZScore(w.t.Context(), w.store.Keys().Backoff(w.group), p.ID).Err() == nil
		found[fault.Kind(ms[0].Values["kind"].(string))] = fmt.Sprintf("pending, in back-off: %v", due)
	}
	return found
}

func TestAnEntryEndsAsTheTableSays(t *testing.T) {
	for _, stage := range []failure.Stage{failure.Relocate, failure.Release, failure.Commit} {
		t.Run(string(stage), func(t *testing.T) {
			w := newWorld(t, stage)
			h := w.handler()
			var kinds []fault.Kind
			for _, row := range table {
				kinds = append(kinds, row.kind)
			}
			w.deliver(kinds, func(d *stream.Delivery, kind fault.Kind) {
				before := w.serverFailed.Load()
				h.Failed(t.Context(), d, fault.New(kind, "work", "", errors.New("cause")))
				if called := w.serverFailed.Load() > before; called != (kind == fault.Unavailable) {
					t.Errorf("%s: a server has failed: %v", kind, called)
				}
			})
			ends := w.ends()
			each(func(s failure.Stage, kind fault.Kind, want string) {
				if s != stage {
					return
				}
				text := "pending, in back-off: false"
				switch want {
				case nextAttempt:
					text = "pending, in back-off: true"
				case deadLetter:
					text = "dead letter: " + string(kind)
					if _, ok := w.counted.Load(string(kind)); !ok {
						t.Errorf("%s was not counted", kind)
					}
				}
				if ends[kind] != text {
					t.Errorf("%s: %q, want %q", kind, ends[kind], text)
				}
			})
		})
	}
}

func TestAnEntryWhoseDeliveryWasCancelledIsLeftToOthers(t *testing.T) {
	w := newWorld(t, failure.Relocate)
	h := w.handler()
	w.deliver([]fault.Kind{fault.Malformed}, func(d *stream.Delivery, kind fault.Kind) {
		ctx, cancel := context.WithCancel(d.Context)
		cancel()
		d.Context = ctx
		h.Failed(t.Context(), d, fault.New(kind, "work", "", nil))
	})
	if end := w.ends()[fault.Malformed]; end != "pending, in back-off: false" {
		t.Error(end)
	}
}

func TestAnEntryIsPoisonousAfterFourTimesTheAttempts(t *testing.T) {
	for attempt, poisonous := range map[int64]bool{1: false, maxAttempts: false, 4 * maxAttempts: false, 4*maxAttempts + 1: true} {
		w := newWorld(t, failure.Commit)
		h := w.handler()
		w.deliver([]fault.Kind{"any"}, func(d *stream.Delivery, _ fault.Kind) {
			d.Attempt = attempt
			if got := h.Poisoned(t.Context(), d); got != poisonous {
				t.Errorf("attempt %d: poisonous: %v", attempt, got)
			} else if !got {
				d.Later(time.Hour)
			}
		})
		want := "pending, in back-off: false"
		if poisonous {
			want = "dead letter: exhausted"
		}
		if end := w.ends()["any"]; end != want {
			t.Errorf("attempt %d: %q", attempt, end)
		}
	}
}

func TestAnEntryWhoseDeadLetterCannotBeWrittenStaysPending(t *testing.T) {
	w := newWorld(t, failure.Relocate)
	h := w.handler()
	w.deliver([]fault.Kind{fault.Malformed}, func(d *stream.Delivery, kind fault.Kind) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		h.Failed(ctx, d, fault.New(kind, "work", "", nil))
	})
	if end := w.ends()[fault.Malformed]; end != "pending, in back-off: false" || w.serverFailed.Load() != 1 {
		t.Errorf("%s; %d failures of servers", end, w.serverFailed.Load())
	}
}
