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

func TestAProgramReportsWhatItMissesAndThatItEnds(t *testing.T) {
	rdb, err := state.Connect(testserver.Redis(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rdb.Close() })
	store := state.NewStore(state.Options{Redis: rdb, Keys: state.NewKeys(testserver.Prefix(t)), TTL: time.Hour, Lease: time.Minute})
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
		presence.Run(ctx, store, ready, state.Service{Program: "committer", ID: "c1", Version: "1.2.3"}, zap.NewNop())
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
