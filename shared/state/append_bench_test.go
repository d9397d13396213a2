package state_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// BenchmarkAppend appends groups of 256 events with their states, a connection for each partition (two for a single one),
// as the queues of the api do.
func BenchmarkAppend(b *testing.B) {
	for _, c := range []struct {
		name, url  string
		partitions int
	}{
		{"one Redis", testserver.Redis(b), 1}, {"one Redis", testserver.Redis(b), 4}, {"one Redis", testserver.Redis(b), 16},
		{"cluster of six", testserver.RedisCluster(b).URL(), 4}, {"cluster of six", testserver.RedisCluster(b).URL(), 16},
	} {
		b.Run(fmt.Sprintf("%s, %d partitions", c.name, c.partitions), func(b *testing.B) {
			rdb, err := state.ConnectMany(c.url, -1, c.partitions+2)
			if err != nil {
				b.Fatal(err)
			}
			defer rdb.Close()
			keys := state.NewKeys(testserver.ClusterPrefix()).Partitioned(c.partitions)
			s := state.NewStore(state.Options{Redis: rdb, Keys: keys, TTL: ttl, Lease: lease})
			groups := make([][]event.View, max(c.partitions, 2))
			for group := range groups {
				for id := item.ID(1); len(groups[group]) < 256; id++ {
					if keys.Partition(id) == group%c.partitions {
						groups[group] = append(groups[group], view(int(id), id, 1500, "silver", "bronze", fmt.Sprintf("videos/%d.mp4", id)))
					}
				}
			}
			ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
			defer cancel()
			if err := s.Agree(ctx); err != nil {
				b.Fatal(err)
			}
			var left, done atomic.Int64
			left.Store(int64(b.N))
			b.ResetTimer()
			var wg sync.WaitGroup
			for _, group := range groups {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						ids, err := s.Append(ctx, group)
						if err != nil {
							b.Error(err)
							return
						}
						done.Add(int64(len(ids)))
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			b.ReportMetric(float64(done.Load())/b.Elapsed().Seconds(), "events/s")
			for _, k := range keys.Each() {
				if err := rdb.Del(context.WithoutCancel(ctx), k.Views()).Err(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
