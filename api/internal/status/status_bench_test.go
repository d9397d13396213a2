package status_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/api/internal/status"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m) }

// addScript appends many view events at once.
var addScript = redis.NewScript(`for i = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', 'cid', i) end return 1`)

// BenchmarkReadWithAMillionPending has 20 relocators, each with as many waiting entries as it lists.
func BenchmarkReadWithAMillionPending(b *testing.B) {
	const pending, batch, workers = 1_000_000, 10_000, 20
	ctx := b.Context()
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	rdb, err := state.Connect(testserver.Redis(b), 1)
	must(err)
	b.Cleanup(func() { rdb.Close() })
	store := state.NewStore(state.Options{Redis: rdb, Keys: state.NewKeys(testserver.Prefix(b)), TTL: time.Hour, Lease: time.Minute})
	must(store.CreateRelocatorGroups(ctx))
	for i := range pending / batch {
		must(addScript.Run(ctx, rdb, []string{store.Keys().Views()}, batch).Err())
		id := fmt.Sprint("r", i%workers)
		got, err := rdb.XReadGroup(ctx, &redis.XReadGroupArgs{Group: state.GroupRelocator, Consumer: id, Count: batch,
			Streams: []string{store.Keys().Views(), ">"}, Block: -1}).Result()
		must(err)
		if i >= workers {
			continue
		}
		_, err = store.Heartbeat(ctx, state.GroupRelocator, state.Worker{ID: id}, time.Hour)
		must(err)
		report := state.WaitingReport{Counts: map[string]int{"tier-full": batch}}
		for _, m := range got[0].Messages[:state.MaxWaiting] {
			report.Listed = append(report.Listed, state.Waiting{Stream: "views", Entry: state.Ref{ID: m.ID}, CID: "7", Reason: "tier-full",
				Error: "level gold has no room", Since: time.Now()})
		}
		must(store.WaitingAt(state.GroupRelocator, id, time.Hour).Report(ctx, report))
	}
	for i := range workers { // last: a report counts for fifteen seconds
		v := state.Service{Program: "relocator", ID: fmt.Sprint("r", i), StartedAt: time.Now()}
		for _, level := range []string{"bronze", "silver", "gold"} {
			v.Tiers = append(v.Tiers, state.TierReport{Level: level, State: state.TierFull, Reason: "level gold has no room", Since: time.Now()})
		}
		_, err = store.Report(ctx, v)
		must(err)
	}
	r := status.Reader{Store: store, Living: time.Hour, Levels: func(context.Context) ([]policy.Level, error) { return nil, nil }}
	var took []time.Duration
	for b.Loop() {
		began := time.Now()
		d, err := r.Read(ctx)
		must(err)
		took = append(took, time.Since(began))
		if d.Stages[0].Unsettled != pending || d.WaitingTotal != workers*batch || d.OldestWait == nil || len(d.Tiers) != 3 {
			b.Fatalf("%+v", d)
		}
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}
