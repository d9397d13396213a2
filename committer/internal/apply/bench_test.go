package apply_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tierflow/tierflow/committer/internal/apply"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
)

// BenchmarkApply commits batches as large as the committer's.
func BenchmarkApply(b *testing.B) {
	const size = 500
	d := newDatabase(b, 0)
	values := make([]string, 0, 20*size)
	for id := range cap(values) {
		values = append(values, fmt.Sprintf("(%d, 'bronze', '%s')", id+1, filename(item.ID(id+1))))
	}
	d.exec("INSERT INTO contents (cid, content_level, filename) VALUES " + strings.Join(values, ", "))
	a := apply.New(d.DB())
	now := time.Now()
	for n := 0; b.Loop(); n++ {
		round, part := n/20, n%20
		levels := []string{"bronze", "silver"}
		entries := make([]event.Relocated, size)
		for i := range entries {
			id := item.ID(part*size + i + 1)
			entries[i] = event.Relocated{EventID: fmt.Sprintf("01934567-89ab-7cde-8%03x-%012x", round, int64(id)), ID: id, From: levels[round%2],
				To: levels[1-round%2], Filename: filename(id), Generation: int64(round), Count: item.Count(n), Bytes: 16 << 10,
				Method: "link", WorkerID: "bench", StartedAt: now, FinishedAt: now}
		}
		for _, r := range a.Apply(context.Background(), entries) {
			if r.Err != nil || r.Outcome != event.OutcomeCommitted {
				b.Fatalf("%+v", r)
			}
		}
	}
	b.ReportMetric(float64(size*b.N)/b.Elapsed().Seconds(), "commits/s")
}
