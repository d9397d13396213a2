package presence_test

import (
	"context"
	"errors"
	"fmt"
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
		presence.Run(ctx, store, ready, state.Service{Program: "committer", ID: "c1", Version: "1.2.3"}, presence.Parts{}, zap.NewNop())
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
	go presence.Run(t.Context(), store, ready, state.Service{Program: "relocator", ID: "r1"}, parts, zap.NewNop())
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
