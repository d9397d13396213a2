package ingest_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/tierflow/tierflow/api/internal/ingest"
	"github.com/tierflow/tierflow/api/internal/lookup"
	"github.com/tierflow/tierflow/api/internal/reevaluate"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// BenchmarkAppend does what the handler of single posts calls: it looks up one of 10,000 items, makes the event, and
// appends it. It has as many callers at once as fill two calls. ./scripts/bench ingest runs it beside redis-benchmark.
func BenchmarkAppend(b *testing.B) {
	const items = 10_000
	uuid.EnableRandPool() // as the service does
	db, err := catalog.Open(testserver.MySQL(b), catalog.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Migrate(b.Context()); err != nil {
		b.Fatal(err)
	}
	rows := make([]string, items)
	for i := range rows {
		rows[i] = fmt.Sprintf("(%d,'bronze','videos/%d.mp4')", i+1, i+1)
	}
	_, err = db.DB().ExecContext(b.Context(), "INSERT INTO contents (cid, content_level, filename) VALUES "+strings.Join(rows, ","))
	if err != nil {
		b.Fatal(err)
	}
	find := lookup.New(lookup.Options{Catalog: db, Log: zap.NewNop(), Metrics: prometheus.NewRegistry()})
	rdb, err := state.Connect(testserver.Redis(b), -1)
	if err != nil {
		b.Fatal(err)
	}
	defer rdb.Close()
	store := state.NewStore(state.Options{Redis: rdb, Keys: state.NewKeys(testserver.Prefix(b)), TTL: time.Hour, Lease: time.Minute})
	if err := store.Agree(b.Context()); err != nil {
		b.Fatal(err)
	}
	batcher := ingest.New(ingest.Options{Store: store, MaxBacklog: 1 << 30, Metrics: prometheus.NewRegistry()})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { find.Run(ctx) })
	running.Go(batcher.Run)
	defer running.Wait()
	defer cancel()
	defer batcher.Stop()

	var callers sync.WaitGroup
	var next atomic.Int64
	b.ResetTimer()
	for range 2 * ingest.MaxGroup {
		callers.Go(func() {
			for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
				found, err := find.Find(ctx, item.ID(n%items+1))
				if err == nil {
					err = batcher.Append(reevaluate.NewView(found.Row, found.Policy, item.Count(n)))
				}
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	callers.Wait()
	b.StopTimer()
	if n := rdb.XLen(b.Context(), store.Keys().Views()).Val(); n != int64(b.N) {
		b.Fatalf("%d entries of %d events", n, b.N)
	}
}
