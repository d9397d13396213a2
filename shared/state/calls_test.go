package state_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// lockAll locks the items at the same time, so that scripts share pipelines, and returns the errors.
func (w *world) lockAll(ctx context.Context, ids []item.ID, token func(item.ID) state.Token) []error {
	w.Helper()
	errs := make([]error, len(ids))
	var wg sync.WaitGroup
	for i, id := range ids {
		wg.Go(func() {
			who, err := w.Lock(ctx, id, token(id))
			if err == nil && who != "" {
				err = fmt.Errorf("item %s is locked by %s", id, who)
			}
			errs[i] = err
		})
	}
	wg.Wait()
	return errs
}

// mates are n items of the partition of item 1.
func (w *world) mates(n int) []item.ID {
	ids := []item.ID{1}
	for len(ids) < n {
		ids = append(ids, w.mate(ids[len(ids)-1]))
	}
	return ids
}

// While a slot moves, its old node sends some commands on (ASK), and afterwards all of them (MOVED). Each script runs, and its
// caller gets its own result.
func TestScriptsThatShareAPipelineFollowTheirSlot(t *testing.T) {
	cluster := testserver.RedisCluster(t)
	w := clusterWorld(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ids := w.mates(60)
	slot, err := cluster.Slot(ctx, w.keys.Of(1).Views())
	w.must(err)
	home, err := cluster.Owner(ctx, slot)
	w.must(err)
	for round, to := range []int{(home + 1) % 3, home} {
		token := func(id item.ID) state.Token { return state.NewToken(uuid(int(id)), "me", fmt.Sprint("r", round)) }
		check := func(when string, ids []item.ID) {
			t.Helper()
			for i, err := range w.lockAll(ctx, ids, token) {
				if err != nil {
					t.Errorf("%s: item %s: %v", when, ids[i], err)
				}
			}
		}
		check("before", ids[:20])
		w.must(cluster.MoveSlot(ctx, slot, to, func() { check("while the slot moves", ids[10:40]) }))
		check("afterwards", ids)
		holders, err := w.Holders(ctx, ids)
		w.must(err)
		for i, id := range ids {
			if holders[i] != token(id) {
				t.Errorf("item %s is locked by %q", id, holders[i])
			}
			w.must(w.Unlock(ctx, id, token(id)))
		}
	}
}

// The scripts may be sent again, so a broken connection is no error for their callers.
func TestScriptsOfABrokenPipelineAreSentAgain(t *testing.T) {
	cluster := testserver.RedisCluster(t)
	w := clusterWorld(t, 3)
	ids := w.mates(30)
	slot, err := cluster.Slot(t.Context(), w.keys.Of(1).Views())
	w.must(err)
	home, err := cluster.Owner(t.Context(), slot)
	w.must(err)
	gate := testserver.ClusterGate(t, cluster, cluster.Masters[home])
	w = clusterWorld(t, 3) // knows the gate
	for round := range 5 {
		token := func(id item.ID) state.Token { return state.NewToken(uuid(int(id)), "me", fmt.Sprint("r", round)) }
		done := gate.CutReply(w.keys.Lock(ids[round]))
		errs := w.lockAll(t.Context(), ids, token)
		<-done
		if i := slices.IndexFunc(errs, func(err error) bool { return err != nil }); i >= 0 {
			t.Fatalf("item %s: %v", ids[i], errs[i])
		}
		for _, id := range ids {
			w.must(w.Unlock(t.Context(), id, token(id)))
		}
	}
}
