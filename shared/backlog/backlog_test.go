package backlog_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/backlog"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m) }

// scrape returns the metrics as "name{label values}": value.
func scrape(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			found[fmt.Sprintf("%s%v", strings.TrimPrefix(f.GetName(), "tierflow_"), labels)] = m.GetGauge().GetValue()
		}
	}
	return found
}

// want waits until every metric has its value.
func want(t *testing.T, reg *prometheus.Registry, values map[string]float64) {
	t.Helper()
	testserver.Eventually(t, "the metrics are right", 30*time.Second, func() error {
		found := scrape(t, reg)
		for name, value := range values {
			if got, ok := found[name]; !ok || got != value {
				return fmt.Errorf("%s is %v, want %v: %v", name, got, value, found)
			}
		}
		return nil
	})
}

func TestTheMetricsOfTheBacklogAreTrueWithoutTrafficAndAbsentWithoutRedis(t *testing.T) {
	rdb, err := state.Connect(testserver.Redis(t), -1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rdb.Close() })
	k := state.NewKeys(testserver.Prefix(t))
	store := state.NewStore(state.Options{Redis: rdb, Keys: k, TTL: time.Hour, Lease: time.Minute})
	reg := prometheus.NewRegistry()
	backlog.Register(reg, store)
	ctx := t.Context()
	want(t, reg, map[string]float64{"backlog_events[]": 0, "unsettled_entries[relocate]": 0, "oldest_unsettled_seconds[release]": 0, "dead_letters[ ]": 0})

	add := func(stream string) string {
		id, err := rdb.XAdd(ctx, &redis.XAddArgs{Stream: stream, Values: []string{"cid", "7"}}).Result()
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	views := []string{add(k.Views()), add(k.Views())}
	add(k.Relocated())
	want(t, reg, map[string]float64{"backlog_events[]": 3, "unsettled_entries[relocate]": 2, "unsettled_entries[commit]": 1})
	if err := store.CreateRelocatorGroups(ctx); err != nil {
		t.Fatal(err)
	}
	if err := rdb.XReadGroup(ctx, &redis.XReadGroupArgs{Group: state.GroupRelocator, Consumer: "w", Streams: []string{k.Views(), ">"}}).Err(); err != nil {
		t.Fatal(err)
	}
	if ok, err := store.DeadLetter(ctx, state.GroupRelocator, "w", map[string]string{"cid": "7"},
		event.Failure{Stage: "relocate", Reason: "conflict", SourceStream: k.Views(), SourceID: views[0]}); err != nil || !ok {
		t.Fatal(ok, err)
	}
	want(t, reg, map[string]float64{"backlog_events[]": 2, "unsettled_entries[relocate]": 1, "dead_letters[conflict relocate]": 1})
	if err := rdb.XAck(ctx, k.Views(), state.GroupRelocator, views[1]).Err(); err != nil {
		t.Fatal(err)
	}
	if err := rdb.Del(ctx, k.Relocated()).Err(); err != nil {
		t.Fatal(err)
	}
	want(t, reg, map[string]float64{"backlog_events[]": 0, "unsettled_entries[relocate]": 0, "oldest_unsettled_seconds[relocate]": 0})

	rdb.Close()
	testserver.Eventually(t, "the metrics are absent without Redis", 30*time.Second, func() error {
		if found := scrape(t, reg); len(found) > 0 {
			return fmt.Errorf("%v", found)
		}
		return nil
	})
}
