package presence_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/admin"
	"github.com/tierflow/tierflow/shared/presence"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m) }

// newStore makes a Store on a Redis of the test's own.
func newStore(t *testing.T) *state.Store {
	t.Helper()
	rdb, err := state.Connect(testserver.Redis(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rdb.Close() })
	return state.NewStore(state.Options{Redis: rdb, Keys: state.NewKeys(testserver.Prefix(t)), TTL: time.Hour, Lease: time.Minute})
}

func TestAProgramReportsWhatItMissesAndThatItEnds(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	var away atomic.Bool
	ready := admin.NewReady(zap.NewNop(), admin.Check{Name: "mysql", Do: func(context.Context) error {
		if away.Load() {
			return errors.New("MySQL is away")
		}
		return nil
	}})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan struct{})
	go ready.Run(ctx)
	go func() {
		defer close(done)
		presence.New(store, state.Service{Program: "committer", ID: "c1", Version: "1.2.3"}, "", zap.NewNop()).Run(ctx, ready, presence.Parts{})
	}()
	want := func(what string, ok func([]state.Service) bool) {
		t.Helper()
		testserver.Eventually(t, what, 30*time.Second, func() error {
			services, err := store.Services(t.Context(), time.Minute)
			if err != nil || !ok(services) {
				return fmt.Errorf("%+v, %w", services, err)
			}
			return nil
		})
	}
	want("it is ready", func(s []state.Service) bool {
		return len(s) == 1 && s[0].Program == "committer" && s[0].ID == "c1" && s[0].Version == "1.2.3" && s[0].Alive &&
			len(s[0].Missing) == 0 && !s[0].StartedAt.IsZero()
	})
	away.Store(true)
	want("it misses MySQL", func(s []state.Service) bool { return len(s) == 1 && s[0].Missing["mysql"] == "MySQL is away" })
	stop()
	<-done
	want("it has ended", func(s []state.Service) bool { return len(s) == 0 })
}

func TestTheStatesOfTiersAndRatesAreReportedAsTheyChange(t *testing.T) {
	store := newStore(t)
	ready := admin.NewReady(zap.NewNop())
	var full atomic.Bool
	var moves atomic.Int64
	parts := presence.Parts{
		Tiers: func() []state.TierReport {
			moves.Add(100)
			if full.Load() {
				return []state.TierReport{{Level: "gold", State: state.TierFull}}
			}
			return []state.TierReport{{Level: "gold", State: state.TierOK, TierFigures: state.TierFigures{TotalBytes: moves.Load()}}}
		},
		Totals: func() map[string]int64 { return map[string]int64{state.RateMoves: moves.Load()} },
	}
	go presence.New(store, state.Service{Program: "relocator", ID: "r1"}, "", zap.NewNop()).Run(t.Context(), ready, parts)
	want := func(what, tier string) {
		t.Helper()
		testserver.Eventually(t, what, 30*time.Second, func() error {
			services, err := store.Services(t.Context(), time.Minute)
			if err != nil || len(services) != 1 || len(services[0].Tiers) != 1 || services[0].Tiers[0].State != tier || services[0].Rates[state.RateMoves] <= 0 {
				return fmt.Errorf("%+v, %w", services, err)
			}
			return nil
		})
	}
	want("the tier is well", state.TierOK)
	full.Store(true)
	want("it is full", state.TierFull)
	full.Store(false)
	want("it is well again", state.TierOK)
}

// process is a program that reports itself.
type process struct {
	*presence.Reporter
	ready *admin.Ready
	stop  func()
}

func start(t *testing.T, store *state.Store, id string) *process {
	t.Helper()
	r := presence.New(store, state.Service{Program: "relocator", ID: id}, "give it another id", zap.NewNop())
	p := &process{Reporter: r, ready: admin.NewReady(zap.NewNop(), admin.Check{Name: "worker-id", Do: r.CheckAlone, Warn: true})}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { p.ready.Run(ctx) })
	wg.Go(func() { p.Run(ctx, p.ready, presence.Parts{}) })
	p.stop = func() { cancel(); wg.Wait() }
	t.Cleanup(p.stop)
	return p
}

// warns waits until the process warns, or does not.
func (p *process) warns(t *testing.T, what string, want bool) {
	t.Helper()
	testserver.Eventually(t, what, 2*time.Minute, func() error {
		if warning := p.ready.Warnings()["worker-id"]; (warning != "") != want {
			return fmt.Errorf("it says %q", warning)
		}
		return nil
	})
}

func TestTwoProcessesWithOneIDBothWarnUntilOneOfThemEnds(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	a, other := start(t, store, "r1"), start(t, store, "r2")
	b := start(t, store, "r1")
	a.warns(t, "the first one warns", true)
	b.warns(t, "the second one warns", true)
	for _, want := range []string{"another relocator has the id r1", "give it another id"} {
		if err := a.CheckAlone(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, without %q", err, want)
		}
	}
	testserver.Eventually(t, "who asks for the services sees it", 30*time.Second, func() error {
		services, err := store.Services(t.Context(), time.Minute)
		if err != nil || len(services) != 2 || services[0].Warnings["worker-id"] == "" || len(services[1].Warnings) != 0 {
			return fmt.Errorf("%+v, %w", services, err)
		}
		return nil
	})
	b.stop()
	a.warns(t, "the first one is alone again", false)
	if err := other.CheckAlone(t.Context()); err != nil {
		t.Errorf("a process with an id of its own: %v", err)
	}
}

func TestARestartWithTheSameIDIsNoSecondProcess(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	// A process of an older version, which was killed: its report stays, and has no instance.
	if _, err := store.Report(t.Context(), state.Service{Program: "relocator", ID: "r1"}); err != nil {
		t.Fatal(err)
	}
	p := start(t, store, "r1")
	var reports int
	last := time.Duration(-1)
	testserver.Eventually(t, "it has reported itself three times", 2*time.Minute, func() error {
		services, err := store.Services(t.Context(), time.Minute)
		if err != nil || len(services) != 1 {
			return fmt.Errorf("%+v, %w", services, err)
		}
		if p.CheckAlone(t.Context()) != nil {
			t.Fatal("it warns")
		}
		if age := services[0].Age; services[0].Instance != "" {
			if age < last || last < 0 {
				reports++
			}
			last = age
		}
		if reports < 3 {
			return fmt.Errorf("%d reports", reports)
		}
		return nil
	})
}
