package state_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/localserver"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

const partitions = 16

// clusterWorld is a Store on a real cluster, with all groups of all partitions.
func clusterWorld(t *testing.T, maxRetries int) *world {
	t.Helper()
	return clusterWorldOn(t, testserver.RedisCluster(t), maxRetries)
}

// ownCluster is a cluster whose settings the test may change.
func ownCluster(t *testing.T) *localserver.RedisCluster {
	t.Helper()
	cluster, err := localserver.StartRedisCluster(t.Context(), 3, localserver.Options{AppendFsync: "no"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cluster.Close() })
	return cluster
}

func clusterWorldOn(t *testing.T, cluster *localserver.RedisCluster, maxRetries int) *world {
	t.Helper()
	rdb, err := state.Connect(cluster.URL(), maxRetries)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rdb.Close() })
	w := &world{T: t, rdb: rdb, keys: state.NewKeys(testserver.ClusterPrefix()).Partitioned(partitions)}
	w.Store = state.NewStore(state.Options{Redis: rdb, Keys: w.keys, TTL: ttl, Lease: lease})
	for _, k := range w.keys.Each() {
		w.must(rdb.XGroupCreateMkStream(t.Context(), k.Views(), state.GroupRelocator, "0").Err())
		w.must(rdb.XGroupCreateMkStream(t.Context(), k.Relocated(), state.GroupCommitter, "0").Err())
		w.must(rdb.XGroupCreateMkStream(t.Context(), k.Committed(), state.GroupReleaser, "0").Err())
	}
	return w
}

// mate is another item of the same partition.
func (w *world) mate(id item.ID) item.ID {
	other := id + 1
	for w.keys.Partition(other) != w.keys.Partition(id) {
		other++
	}
	return other
}

// relocate takes an item through every script of a relocator, up to the entry that the committer gets.
func (w *world) relocate(id item.ID) state.Finished {
	w.Helper()
	ctx := w.Context()
	k := w.keys.Of(id)
	ids, err := w.Append(ctx, []event.View{view(1, id, 1500, "silver", "bronze", "f"), view(2, w.mate(id), 1, "bronze", "bronze", "g")})
	w.must(err)
	newest, err := w.AppendIf(ctx, ids[0], view(3, id, 1600, "silver", "bronze", "f"))
	w.must(err)
	w.read(k.Views(), state.GroupRelocator)
	token := state.NewToken(uuid(3), "w", "r")
	if taken, _, err := w.Take(ctx, ids[0], id, token, "w"); err != nil || taken != state.Settled {
		w.Fatalf("an old event: %v, %v", taken, err)
	}
	if taken, _, err := w.Take(ctx, newest, id, token, "w"); err != nil || taken != state.Mine {
		w.Fatalf("the newest: %v, %v", taken, err)
	}
	w.must(w.SetProgress(ctx, id, state.Progress{EventID: uuid(3), UpdatedAt: posted}))
	if ok, err := w.Renew(ctx, id, token); err != nil || !ok {
		w.Fatal(ok, err)
	}
	if s, ok, err := w.Get(ctx, id); err != nil || !ok || s.WorkerID != "w" {
		w.Fatal(s, ok, err)
	}
	st := state.NewState(view(3, id, 1600, "silver", "bronze", "f"))
	st.EntryID = newest
	if ok, err := w.Emit(ctx, st, token, moved(view(3, id, 1600, "silver", "bronze", "f"), "silver")); err != nil || !ok {
		w.Fatal(ok, err)
	}
	settle := state.NewState(view(2, w.mate(id), 1, "bronze", "bronze", "g"))
	settle.EntryID = ids[1]
	w.must(w.Settle(ctx, settle, "none"))
	if p := w.pending(k.Views(), state.GroupRelocator); len(p) != 0 {
		w.Fatalf("item %s: %v are pending", id, p)
	}
	entry := w.read(k.Relocated(), state.GroupCommitter)[0].ID
	w.must(w.Stray(ctx, event.Committed{ID: id, To: "gold", Filename: "f", CommittedAt: posted}))
	return state.Finished{EntryID: entry, RowLevel: "silver",
		Event: event.Committed{EventID: uuid(3), ID: id, From: "bronze", To: "silver", Filename: "f", Outcome: event.OutcomeCommitted, CommittedAt: posted}}
}

// releaseAndRetry takes an item through every script of a release and of a dead letter, and forgets another item of its
// partition.
func (w *world) releaseAndRetry(id item.ID) {
	w.Helper()
	ctx := w.Context()
	k := w.keys.Of(id)
	for _, m := range w.read(k.Committed(), state.GroupReleaser) {
		owner, err := item.ParseID(m.Values["cid"].(string))
		w.must(err)
		if who, err := w.Lock(ctx, owner, "t"); err != nil || who != "" {
			w.Fatalf("%q, %v", who, err)
		}
		w.must(w.Unlock(ctx, owner, "t"))
		w.must(w.Released(ctx, owner, "t", m.ID))
	}
	ids, err := w.Append(ctx, []event.View{view(4, id, 5, "bronze", "silver", "f")})
	w.must(err)
	ids = append(ids, w.append(view(5, id, 5, "bronze", "silver", "f")))
	w.read(k.Views(), state.GroupRelocator)
	for _, source := range ids {
		if ok, err := w.DeadLetter(ctx, state.GroupRelocator, "me", map[string]string{"cid": id.String()},
			event.Failure{Stage: "relocate", SourceStream: k.Views(), SourceID: source, FailedAt: posted}); err != nil || !ok {
			w.Fatal(ok, err)
		}
	}
	dead, _ := w.entries(k.Dead())
	if len(dead) != 1 {
		w.Fatalf("%d dead letters of one item", len(dead))
	}
	r, err := w.RetryView(ctx, state.Ref{Partition: w.keys.Partition(id), ID: dead[0]}, ids[1], "", view(6, id, 5, "bronze", "silver", "f"))
	if err != nil || r.EntryID == "" {
		w.Fatalf("%+v, %v", r, err)
	}
	other, err := w.rdb.XAdd(ctx, &redis.XAddArgs{Stream: k.Dead(), Values: []string{"a", "b"}}).Result()
	w.must(err)
	if r, err := w.Retry(ctx, state.Ref{Partition: w.keys.Partition(id), ID: other}, k.Committed(), []string{"cid", id.String()}); err != nil || r.EntryID == "" {
		w.Fatalf("%+v, %v", r, err)
	}
	_, err = w.Lock(ctx, w.mate(id), "mine")
	w.must(err)
	if ours, err := w.Forget(ctx, w.mate(id), "mine", true); err != nil || !ours {
		w.Fatal(ours, err)
	}
	if c, err := w.CopiesUnderWay(ctx, w.mate(id)); err != nil {
		w.Fatal(c, err)
	}
}

// Redis Cluster refuses a script whose keys are in different slots, so a script that runs is the proof.
func TestOnAClusterEveryScriptTouchesOneSlot(t *testing.T) {
	w := clusterWorld(t, -1)
	ctx := t.Context()
	w.must(w.Agree(ctx))
	finished := map[int][]state.Finished{} // by partition
	for id := item.ID(1); id <= 40; id++ { // over all partitions
		p := w.keys.Partition(id)
		finished[p] = append(finished[p], w.relocate(id))
	}
	// First with a script that no node knows.
	w.must(w.rdb.(*redis.ClusterClient).ForEachMaster(ctx, func(ctx context.Context, c *redis.Client) error { return c.ScriptFlush(ctx).Err() }))
	for p, fs := range finished {
		for i, err := range w.Finish(ctx, fs) {
			if err != nil {
				t.Fatalf("finish %d of partition %d: %v", i, p, err)
			}
		}
	}
	if flying, err := w.InFlight(ctx); err != nil || len(flying) != 40 {
		t.Fatalf("%d items are in flight, %v", len(flying), err)
	}
	for id := item.ID(1); id <= 40; id++ {
		w.releaseAndRetry(id)
	}
	// The views, and of each partition the entry of committed that was retried last: the others have been read since.
	if n, err := w.Unsettled(ctx); err != nil || n != 40+partitions {
		t.Fatalf("%d unsettled, %v", n, err)
	}
	states, err := w.GetMany(ctx, []item.ID{3, 1, 2})
	w.must(err)
	if len(states) != 3 || states[0].ID != 3 || states[1].ID != 1 || states[2].ID != 2 {
		t.Fatalf("%+v", states)
	}
	w.must(w.SetPaused(ctx, true, "me"))
	if paused, err := w.Paused(ctx); err != nil || !paused {
		t.Fatal(paused, err)
	}
}

// The client must not send a script again when the reply is lost after the script has run. In a cluster, go-redis
// repeats by default, and even with MaxRetries -1.
func TestAClusterClientThatAppendsSendsNoCommandTwice(t *testing.T) {
	cluster := testserver.RedisCluster(t)
	id := item.ID(1)
	for ; ; id++ {
		slot, err := cluster.Slot(t.Context(), state.NewKeys("p:").Partitioned(partitions).Of(id).Views())
		if err != nil {
			t.Fatal(err)
		}
		if owner, err := cluster.Owner(t.Context(), slot); err != nil {
			t.Fatal(err)
		} else if owner == 0 {
			break
		}
	}
	gate := testserver.ClusterGate(t, cluster, cluster.Masters[0])
	for _, c := range []struct {
		maxRetries, entries int
		fails               bool
	}{{-1, 1, true}, {3, 2, false}} { // the second shows a client with retries
		w := clusterWorld(t, c.maxRetries)
		views := w.keys.Of(id).Views()
		if _, err := w.Append(t.Context(), []event.View{view(1, id, 5, "silver", "bronze", "f")}); err != nil { // the script is known now
			t.Fatal(err)
		}
		done := gate.CutReply(w.keys.State(id))
		_, err := w.Append(t.Context(), []event.View{view(2, id, 6, "silver", "bronze", "f")})
		<-done
		if (err != nil) != c.fails {
			t.Errorf("retries %d: %v", c.maxRetries, err)
		}
		if n := w.length(views); n != int64(1+c.entries) {
			t.Errorf("retries %d: %d entries, want %d", c.maxRetries, n, 1+c.entries)
		}
		// The client works after the cut.
		if _, err := w.Append(t.Context(), []event.View{view(3, id, 7, "silver", "bronze", "f")}); err != nil {
			t.Error(err)
		}
	}
}

// While a slot moves, keys that are not there yet are refused (ASK, then TRYAGAIN), and afterwards the old node sends
// clients on (MOVED). An append is done once, as soon as it can be.
func TestAnAppendFollowsItsSlot(t *testing.T) {
	cluster := testserver.RedisCluster(t)
	w := clusterWorld(t, -1)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	id := item.ID(1)
	slot, err := cluster.Slot(ctx, w.keys.Of(id).Views())
	w.must(err)
	home, err := cluster.Owner(ctx, slot)
	w.must(err)
	_, err = w.Append(ctx, []event.View{view(1, id, 1, "silver", "bronze", "f")})
	w.must(err)
	for n, to := range []int{(home + 1) % 3, home} {
		done := make(chan error, 1)
		w.must(cluster.MoveSlot(ctx, slot, to, func() {
			go func() {
				_, err := w.Append(ctx, []event.View{view(10+n, w.mate(id), item.Count(n), "silver", "bronze", "g")})
				done <- err
			}()
		}))
		w.must(<-done)
		_, err := w.Append(ctx, []event.View{view(20+n, id, item.Count(n), "silver", "bronze", "f")})
		w.must(err)
	}
	_, entries := w.entries(w.keys.Of(id).Views())
	var ids []string
	for _, e := range entries {
		ids = append(ids, e["event_id"])
	}
	if want := []string{uuid(1), uuid(10), uuid(20), uuid(11), uuid(21)}; !slices.Equal(ids, want) {
		t.Fatalf("the stream has %v, want %v", ids, want)
	}
}

func TestTheURLOfASingleRedisMustNotNameANodeOfACluster(t *testing.T) {
	rdb, err := state.Connect(testserver.RedisCluster(t).Masters[0].URL(), -1)
	if err != nil {
		t.Fatal(err)
	}
	defer rdb.Close()
	s := state.NewStore(state.Options{Redis: rdb, Keys: state.NewKeys("x:"), TTL: ttl, Lease: lease})
	if err := s.Agree(t.Context()); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "redis+cluster://") {
		t.Fatal(err)
	}
}
