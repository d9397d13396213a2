package state_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

const year = 365 * 24 * time.Hour

// clockStore is a Store on a Redis whose clock the test sets.
func clockStore(t *testing.T) (redis.UniversalClient, *state.Store, func(ahead time.Duration)) {
	t.Helper()
	url, set := testserver.ClockRedis(t)
	rdb, err := state.Connect(url, 3)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rdb.Close() })
	return rdb, state.NewStore(state.Options{Redis: rdb, Keys: state.NewKeys("t:"), TTL: time.Hour, Lease: 30 * time.Second}), set
}

func TestAHeartbeatOfTheFutureIsNoSignOfLife(t *testing.T) {
	for _, by := range []time.Duration{time.Hour, year} {
		_, store, set := clockStore(t)
		beat := func(id string) (ids []string) {
			t.Helper()
			living, err := store.Heartbeat(t.Context(), "g", state.Worker{ID: id}, 20*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range living {
				ids = append(ids, w.ID)
			}
			slices.Sort(ids)
			return ids
		}
		set(by)
		beat("dead")
		if got := beat("alive"); fmt.Sprint(got) != "[alive dead]" {
			t.Fatalf("with the clock ahead: %v", got)
		}
		set(0)
		if got := beat("alive"); fmt.Sprint(got) != "[alive]" {
			t.Errorf("%v back: %v", by, got)
		}
		set(by)
		if got := beat("other"); fmt.Sprint(got) != "[other]" {
			t.Errorf("%v ahead: %v", by, got)
		}
		if got := beat("alive"); fmt.Sprint(got) != "[alive other]" {
			t.Errorf("%v ahead, the next heartbeat: %v", by, got)
		}
	}
}

func TestALockFromBeforeTheClockWentBackEndsSoon(t *testing.T) {
	rdb, store, set := clockStore(t)
	lasts := func() time.Duration {
		t.Helper()
		d, err := rdb.PTTL(t.Context(), store.Keys().Lock(7)).Result()
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	ids, err := store.Append(t.Context(), []event.View{{EventID: "e", ID: 7, Count: 1500, Target: "silver", DBLevel: "bronze", Filename: "a", PostedAt: time.Now()}})
	if err != nil {
		t.Fatal(err)
	}
	entry := ids[0]
	for name, other := range map[string]func() (bool, error){
		"a relocator": func() (bool, error) {
			taken, _, err := store.Take(t.Context(), entry, 7, "relocating e other r", "other")
			return taken == state.Busy, err
		},
		"a releaser": func() (bool, error) {
			holder, err := store.Lock(t.Context(), 7, "releasing other r")
			return holder != "", err
		},
	} {
		set(year)
		if taken, _, err := store.Take(t.Context(), entry, 7, "relocating e dead r", "dead"); err != nil || taken != state.Mine {
			t.Fatal(taken, err)
		}
		set(0)
		if d := lasts(); d < year/2 {
			t.Fatalf("%v are left: the clock did not go back", d)
		}
		busy, err := other()
		if err != nil || !busy {
			t.Fatalf("%s: busy: %v, %v", name, busy, err)
		}
		if d := lasts(); d > 2*time.Minute {
			t.Errorf("%s: the lock of a dead worker lasts %v", name, d)
		}
		if ours, err := store.Renew(t.Context(), 7, "relocating e dead r"); err != nil || !ours {
			t.Errorf("%s: a holder that lives cannot renew its lock: %v", name, err)
		}
		if err := store.Unlock(t.Context(), 7, "relocating e dead r"); err != nil {
			t.Fatal(err)
		}
	}
}
