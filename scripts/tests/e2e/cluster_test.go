package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/localserver"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// postMany posts a batch of random counts until every line has been accepted. It posts again what a cluster refuses while
// its shape changes, as a client would.
func (w *world) postMany(random *rand.Rand, n, lines int) {
	w.t.Helper()
	counts := map[item.ID]item.Count{}
	for range lines {
		counts[item.ID(1+random.IntN(n))] = item.Count(random.IntN(3000))
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	for id, count := range counts {
		w.postUntilAccepted(ctx, id, count)
	}
}

func (w *world) postUntilAccepted(ctx context.Context, id item.ID, count item.Count) {
	for {
		err := w.Post(ctx, id, count)
		if err == nil {
			return
		}
		var p *client.Problem
		if !errors.As(err, &p) || p.Status != http.StatusServiceUnavailable {
			w.t.Errorf("post cid=%s: %v", id, err)
			return
		}
		select {
		case <-ctx.Done():
			w.t.Errorf("post cid=%s: still refused: %v", id, err)
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (w *world) addMany(random *rand.Rand, n int) {
	w.t.Helper()
	levels := []string{"bronze", "silver", "gold"}
	samples := make([]stack.Sample, n)
	for i := range samples {
		samples[i] = stack.Sample{ID: item.ID(i + 1), Filename: fmt.Sprintf("%02d/%d.mp4", i%50, i), Level: levels[random.IntN(3)],
			Size: int64(random.IntN(4096))}
	}
	w.must("add items", w.Add(w.t.Context(), samples...))
}

// attends returns how many partitions a relocator says that it has.
func attends(ctx context.Context, v *stack.Service) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+v.Addr+"/readyz", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var body struct{ Attends []int }
	err = json.NewDecoder(resp.Body).Decode(&body)
	return len(body.Attends), err
}

func (w *world) waitAttends(v *stack.Service, want int) {
	w.t.Helper()
	testserver.Eventually(w.t, fmt.Sprintf("%s attends to %d partitions", v.Name, want), patience, func() error {
		if n, err := attends(w.t.Context(), v); err != nil || n != want {
			return fmt.Errorf("%d, %v", n, err)
		}
		return nil
	})
}

// TestOnAClusterEverythingSettles runs everything on six nodes. Two relocators share the partitions, one of them is killed
// at work, and a slot moves to another master while views come in.
func TestOnAClusterEverythingSettles(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	cluster := testserver.RedisCluster(t)
	w := start(t, options{redisURL: cluster.URL(), prefix: testserver.ClusterPrefix(), partitions: 8, relocators: 2,
		settings: map[string]string{"TIERFLOW_CONCURRENCY": "16"}})
	const n = 400
	w.addMany(random, n)
	w.waitAttends(w.Relocators[0], 4)
	w.waitAttends(w.Relocators[1], 4)
	w.postMany(random, n, 200)

	w.must("kill a relocator", w.Relocators[1].Kill())
	w.postMany(random, n, 100)
	w.waitAttends(w.Relocators[0], 8) // no partition waits for the killed one

	slot, err := cluster.Slot(t.Context(), w.Keys.In(3).Views())
	w.must("find a slot", err)
	home, err := cluster.Owner(t.Context(), slot)
	w.must("find its master", err)
	for _, to := range []int{(home + 1) % 3, home} {
		posted := make(chan struct{})
		more := rand.New(rand.NewPCG(seed, uint64(to)+1))
		go func() {
			defer close(posted)
			w.postMany(more, n, 50)
		}()
		w.must("move a slot", cluster.MoveSlot(t.Context(), slot, to, nil))
		<-posted
	}
	w.must("start it again", w.Relocators[1].Start(t.Context()))
	w.waitAttends(w.Relocators[1], 4)
	w.postMany(random, n, 100)
	w.checkSettled()
}

// ownCluster is a cluster for a test that breaks it. The cluster of the other tests must stay whole.
func ownCluster(ctx context.Context, t *testing.T) *localserver.RedisCluster {
	t.Helper()
	cluster, err := localserver.StartRedisCluster(ctx, 3, localserver.Options{AppendFsync: "no"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Close(); err != nil {
			t.Error(err)
		}
	})
	return cluster
}

// Replication is asynchronous: what a master has answered but not sent on is lost with it. Nothing else is lost. What its
// replica has when the master dies is kept, and every such count takes effect without a second post. scripts/tests/chaos
// tests what is lost under traffic.
func TestAMasterIsKilledAndTheOthersVoteItsReplicaIntoItsPlace(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cluster := ownCluster(ctx, t)
	w := start(t, options{redisURL: cluster.URL(), prefix: testserver.ClusterPrefix(), partitions: 8, relocators: 2})
	const n = 200
	w.addMany(random, n)
	w.postMany(random, n, 150)
	w.must("the replica has what was accepted", cluster.CaughtUp(ctx, 1))
	w.must("kill a master", cluster.Failover(ctx, 1))
	testserver.Eventually(t, "nothing is under way", patience, func() error { return w.Settled(t.Context()) })
	if out, code, err := w.Run(ctx, stack.Relocator, "verify", "--repair"); err != nil || code == 2 {
		t.Fatalf("verify: exit code %d, %v\n%s", code, err, out)
	}
	w.checkSettled()
	w.postMany(random, n, 50)
	w.checkSettled()
	w.must("the old master comes back", cluster.Replicas[1].Start(ctx))
	w.must("and follows", cluster.Wait(ctx))
	w.postMany(random, n, 50)
	w.checkSettled()
}

// Each master that has keys of all partitions is killed in turn: those keys have the number of partitions and the living
// workers.
func TestWhileAMasterIsAwayThePartitionsOfTheOthersGoOn(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cluster := ownCluster(ctx, t)
	w := start(t, options{redisURL: cluster.URL(), prefix: testserver.ClusterPrefix(), partitions: 8})
	ownerOf := func(key string) int {
		slot, err := cluster.Slot(ctx, key)
		w.must("find a slot", err)
		owner, err := cluster.Owner(ctx, slot)
		w.must("find its master", err)
		return owner
	}
	const n = 40
	for id := item.ID(1); id <= n; id++ {
		w.add(id, "bronze", 1000)
	}
	counts := []item.Count{1500, 2500}
	for i, key := range []string{w.Keys.Count(), w.Keys.Workers(state.GroupRelocator)} {
		dead := ownerOf(key)
		var others []item.ID
		for id := item.ID(1); id <= n; id++ {
			if ownerOf(w.Keys.Of(id).Views()) != dead {
				others = append(others, id)
			}
		}
		w.must("kill a master", cluster.Masters[dead].Kill())
		for _, id := range others {
			w.postUntilAccepted(ctx, id, counts[i])
		}
		for _, id := range others {
			w.waitLevel(id, []string{"silver", "gold"}[i])
		}
		w.must("start it", cluster.Masters[dead].Start(ctx))
		w.must("all is well", cluster.Wait(ctx))
	}
	w.checkSettled()
}

func TestServicesThatDisagreeOnTheNumberOfPartitionsSaySo(t *testing.T) {
	w := start(t, options{partitions: 4, stopped: true})
	w.must("start", w.API.Start(t.Context()))
	w.Relocators[0].Settings["TIERFLOW_PARTITIONS"] = "8"
	w.must("launch", w.Relocators[0].Launch())
	testserver.Eventually(t, "/readyz names the setting", patience, func() error {
		resp, err := http.Get("http://" + w.Relocators[0].Addr + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var body struct{ Missing map[string]string }
		if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
			return err
		}
		if resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body.Missing["redis"], "TIERFLOW_PARTITIONS") {
			return fmt.Errorf("%d %v", resp.StatusCode, body)
		}
		return nil
	})
}

// Two hosts reach two tiers each. A host that reaches both tiers of a move makes it. A move that no host can make is
// reported and waits until a host appears that can make it.
func TestMovesGoToRelocatorsThatReachTheirTiers(t *testing.T) {
	w := start(t, options{partitions: 2, relocators: 3, stopped: true})
	for i, tiers := range []string{"bronze,silver", "bronze,gold"} {
		w.Relocators[i].Settings["TIERFLOW_TIERS"] = tiers
		w.must("start", w.Relocators[i].Start(t.Context()))
	}
	w.must("start the api", w.API.Start(t.Context()))
	w.must("start the committer", w.Committer.Start(t.Context()))
	for i := range 2 {
		w.waitAttends(w.Relocators[i], 2) // each reaches other tiers, so each has all partitions
	}
	const n = 20
	for id := item.ID(1); id <= n; id++ {
		w.add(id, "bronze", 1000)
	}
	for id := item.ID(1); id <= n; id++ {
		w.post(id, []item.Count{1500, 2500}[id%2])
	}
	for id := item.ID(1); id <= n; id++ {
		w.waitLevel(id, []string{"silver", "gold"}[id%2])
	}
	w.checkSettled()

	w.post(1, 1500) // from gold to silver
	testserver.Eventually(t, "it is reported", patience, func() error {
		list, err := w.Client().Relocations(t.Context(), client.Page{})
		if err != nil {
			return err
		}
		for _, u := range list.Unreachable { // others may be listed for a moment, before a relocator is known
			if slices.Equal(u.Tiers, []string{"gold", "silver"}) {
				return nil
			}
		}
		return fmt.Errorf("unreachable: %v", list.Unreachable)
	})
	w.must("start one that reaches all", w.Relocators[2].Start(t.Context()))
	w.waitLevel(1, "silver")
	w.checkSettled()
	for id := item.ID(1); id <= n; id++ {
		rows, err := w.Catalog.History(t.Context(), id, 0, 10)
		w.must("read the history", err)
		for _, r := range rows {
			want := map[string]string{"bronze silver": "relocator-1", "bronze gold": "relocator-2", "gold silver": "relocator-3"}[r.OldLevel+" "+r.NewLevel]
			if r.WorkerID != want && r.WorkerID != "relocator-3" {
				t.Errorf("item %s: %s to %s was made by %s", id, r.OldLevel, r.NewLevel, r.WorkerID)
			}
		}
	}
}
