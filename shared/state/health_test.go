package state_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/localserver"
)

// newPrivateWorld is newWorld on a Redis of its own, whose settings the test may change.
func newPrivateWorld(t *testing.T) *world {
	t.Helper()
	server, err := localserver.StartRedis(t.Context(), localserver.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return newWorldOn(t, server.URL(), "tierflow:")
}

// config changes a setting of every master.
func (w *world) config(name, value string) {
	w.Helper()
	cluster, ok := w.rdb.(*redis.ClusterClient)
	if !ok {
		w.must(w.rdb.ConfigSet(w.Context(), name, value).Err())
		return
	}
	w.must(cluster.ForEachMaster(w.Context(), func(ctx context.Context, node *redis.Client) error { return node.ConfigSet(ctx, name, value).Err() }))
}

func TestARedisAtMaxmemoryRefusesNewViewsAndSettlesTheRest(t *testing.T) {
	t.Run("one Redis", func(t *testing.T) { settleAtMaxmemory(t, newPrivateWorld(t)) })
	t.Run("a cluster", func(t *testing.T) {
		w := clusterWorldOn(t, ownCluster(t), -1)
		w.must(w.Agree(t.Context()))
		settleAtMaxmemory(t, w)
	})
}

// settleAtMaxmemory does everything that follows an accepted view, while every master is at its maxmemory.
func settleAtMaxmemory(t *testing.T, w *world) {
	t.Helper()
	ctx := t.Context()
	moved, stays, hopeless := view(1, 7, 1500, "silver", "bronze", "f"), view(2, 8, 5, "bronze", "bronze", "g"), view(3, 9, 1500, "silver", "bronze", "h")
	entries := map[int]string{1: w.append(moved), 2: w.append(stays), 3: w.append(hopeless), 4: w.append(view(4, 9, 1600, "silver", "bronze", "h"))}
	w.config("maxmemory", "1")

	_, err := w.Append(ctx, []event.View{view(4, 7, 2500, "gold", "bronze", "f")})
	if err == nil || !strings.Contains(err.Error(), "maxmemory") {
		t.Fatalf("a new view: %v", err)
	}
	if err := w.CheckMemory(ctx); err == nil || !strings.Contains(err.Error(), "maxmemory") {
		t.Errorf("the check says %v", err)
	}

	w.must(w.CreateRelocatorGroups(ctx))
	_, err = w.Heartbeat(ctx, state.GroupRelocator, state.Worker{ID: "me"}, time.Minute)
	w.must(err)
	w.must(w.SetPaused(ctx, true, "test"))
	w.must(w.SetPaused(ctx, false, "test"))

	// A move, from the lock to the release.
	token := state.NewToken(moved.EventID, "me", "r")
	if taken, _, err := w.Take(ctx, entries[1], 7, token, "me"); err != nil || taken != state.Mine {
		t.Fatalf("take: %v, %v", taken, err)
	}
	_, err = w.Renew(ctx, 7, token)
	w.must(err)
	st := state.NewState(moved)
	st.EntryID, st.DBLevel = entries[1], "silver"
	if emitted, err := w.Emit(ctx, st, token, event.Relocated{EventID: moved.EventID, ID: 7, From: "bronze", To: "silver", Filename: "f",
		Count: 1500, Method: "copy", WorkerID: "me", StartedAt: posted, FinishedAt: posted}); err != nil || !emitted {
		t.Fatalf("emit: %v, %v", emitted, err)
	}
	relocated := w.read(w.keys.Of(7).Relocated(), state.GroupCommitter)
	if len(relocated) != 1 {
		t.Fatalf("%d entries of relocated", len(relocated))
	}
	for _, err := range w.Finish(ctx, []state.Finished{{EntryID: relocated[0].ID, RowLevel: "silver", Event: event.Committed{
		EventID: moved.EventID, ID: 7, From: "bronze", To: "silver", Filename: "f", Generation: 1, Outcome: event.OutcomeCommitted, CommittedAt: posted}}}) {
		w.must(err)
	}
	committed := w.read(w.keys.Of(7).Committed(), state.GroupReleaser)
	if len(committed) != 1 {
		t.Fatalf("%d entries of committed", len(committed))
	}
	release := state.NewReleaseToken("me", "r2")
	if holder, err := w.Lock(ctx, 7, release); err != nil || holder != "" {
		t.Fatalf("lock: %q, %v", holder, err)
	}
	w.must(w.Released(ctx, 7, release, committed[0].ID))

	// A view that moves nothing, a stray, and a dead letter.
	token = state.NewToken(stays.EventID, "me", "r")
	_, _, err = w.Take(ctx, entries[2], 8, token, "me")
	w.must(err)
	st = state.NewState(stays)
	st.EntryID = entries[2]
	w.must(w.Settle(ctx, st, token))
	w.must(w.Stray(ctx, event.Committed{EventID: stays.EventID, ID: 8, To: "gold", Filename: "g", CommittedAt: posted}))
	for _, source := range []string{entries[3], entries[4]} {
		if dead, err := w.DeadLetter(ctx, state.GroupRelocator, "me", map[string]string{"cid": "9"}, event.Failure{Stage: "relocate",
			Reason: "missing-file", SourceStream: w.keys.Of(9).Views(), SourceID: source, FailedAt: posted}); err != nil || !dead {
			t.Fatalf("dead letter: %v, %v", dead, err)
		}
	}
	ids, _ := w.entries(w.keys.Of(9).Dead())
	if len(ids) != 1 {
		t.Fatalf("%d dead letters of one item", len(ids))
	}
	if ok, err := w.DropDeadLetter(ctx, state.Ref{Partition: w.keys.Partition(9), ID: ids[0]}); err != nil || !ok {
		t.Fatalf("drop: %v, %v", ok, err)
	}

	for _, k := range w.keys.Each() {
		for stream, group := range map[string]string{
			k.Views(): state.GroupRelocator, k.Relocated(): state.GroupCommitter, k.Committed(): state.GroupReleaser,
		} {
			if pending := w.pending(stream, group); len(pending) > 0 {
				t.Errorf("%s has pending entries: %v", stream, pending)
			}
		}
	}
	w.config("maxmemory", "0")
	w.append(view(5, 7, 2500, "gold", "silver", "f"))
	w.must(w.CheckMemory(ctx))
}

func TestARedisThatDoesNotKeepWhatItAcceptsIsNamed(t *testing.T) {
	w := newPrivateWorld(t)
	for _, c := range []struct {
		name, value, says string
	}{
		{"maxmemory-policy", "allkeys-lru", ""}, // nothing is evicted without a limit
		{"maxmemory", "100mb", "may evict keys"},
		{"maxmemory-policy", "noeviction", ""},
		{"appendonly", "no", "no append-only file"},
	} {
		w.config(c.name, c.value)
		err := w.CheckDurability(t.Context())
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s %s: %v, want %q", c.name, c.value, err, c.says)
		}
	}
}

func TestARedisThatCannotBeAskedIsNoWarning(t *testing.T) {
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1})
	t.Cleanup(func() { rdb.Close() })
	s := state.NewStore(state.Options{Redis: rdb, Keys: state.NewKeys("tierflow:")})
	if err := s.CheckMemory(t.Context()); err != nil {
		t.Error(err)
	}
	if err := s.CheckDurability(t.Context()); err != nil {
		t.Error(err)
	}
}
