package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/testenv/localserver"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestARedisAtMaxmemoryRefusesNewViewsAndMakesEveryAcceptedMove(t *testing.T) {
	t.Run("one Redis", func(t *testing.T) {
		server, err := localserver.StartRedis(t.Context(), localserver.Options{Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { server.Close() })
		w := start(t, options{redisURL: server.URL(), prefix: "tierflow:"})
		w.moveAtMaxmemory(func(bytes string) error { return w.Redis.ConfigSet(t.Context(), "maxmemory", bytes).Err() })
	})
	t.Run("a cluster", func(t *testing.T) {
		cluster := ownCluster(t.Context(), t)
		w := start(t, options{redisURL: cluster.URL(), prefix: testserver.ClusterPrefix(), partitions: 8})
		w.moveAtMaxmemory(func(bytes string) error {
			return w.Redis.(*redis.ClusterClient).ForEachMaster(t.Context(), func(ctx context.Context, node *redis.Client) error {
				return node.ConfigSet(ctx, "maxmemory", bytes).Err()
			})
		})
	})
}

// moveAtMaxmemory accepts views, has Redis reach its maxmemory, and waits for every move.
func (w *world) moveAtMaxmemory(limit func(bytes string) error) {
	t := w.t
	t.Helper()
	maxmemory := func(bytes string) { t.Helper(); w.must("set maxmemory", limit(bytes)) }
	w.must("kill", w.Relocators[0].Kill())
	const n = 200
	for id := item.ID(1); id <= n; id++ {
		w.add(id, "bronze", 1000)
		w.post(id, 1500)
	}
	maxmemory("1")
	status, retryAfter, body := w.postWithHeader(1, 5000)
	if status != http.StatusServiceUnavailable || retryAfter == "" || !strings.Contains(body, "maxmemory") {
		t.Fatalf("a new view: %d %s, Retry-After %q", status, body, retryAfter)
	}
	w.must("start", w.Relocators[0].Start(t.Context()))
	for id := item.ID(1); id <= n; id++ {
		w.waitLevel(id, "silver")
	}
	for _, s := range w.Services() {
		w.waitWarning(s, "redis-memory", "maxmemory")
	}
	// CheckSettled reads in a transaction, which Redis refuses at maxmemory. So this reads the groups one by one.
	for _, k := range w.Keys.Each() {
		for _, stream := range []string{k.Views(), k.Relocated(), k.Committed()} {
			testserver.Eventually(t, stream+" is settled at maxmemory", patience, func() error {
				groups, err := w.Redis.XInfoGroups(t.Context(), stream).Result()
				if err == nil && (len(groups) != 1 || groups[0].Pending > 0 || groups[0].Lag > 0) {
					err = fmt.Errorf("%+v", groups)
				}
				return err
			})
		}
	}

	maxmemory("0")
	w.checkSettled()
	for _, s := range w.Services() {
		w.waitWarning(s, "redis-memory", "")
	}
	w.post(1, 5000)
	w.waitLevel(1, "gold")
	w.checkSettled()
}

// waitWarning waits until a service's /readyz is 200 and has a warning with this text, or no warning where the text is "".
func (w *world) waitWarning(s *stack.Service, name, says string) {
	w.t.Helper()
	testserver.Eventually(w.t, s.Name+" warns of "+name, patience, func() error {
		resp, err := http.Get("http://" + s.Addr + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var body struct{ Warnings map[string]string }
		if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
			return err
		}
		warning, there := body.Warnings[name]
		if resp.StatusCode != http.StatusOK || there != (says != "") || !strings.Contains(warning, says) {
			return fmt.Errorf("%d %v", resp.StatusCode, body)
		}
		return nil
	})
}
