package e2e_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/item"
)

// TestTenThousandItemsSettleToExactlyWhatTheirLastCountsCallFor runs everything: two file systems, two relocators, random
// counts, and a verify that finds nothing.
func TestTenThousandItemsSettleToExactlyWhatTheirLastCountsCallFor(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	w := start(t, options{relocators: 2, settings: map[string]string{"TIERFLOW_CONCURRENCY": "16", "TIERFLOW_MIN_IDLE": "10s"}})
	const n = 10_000
	levels := []string{"bronze", "silver", "gold"}
	samples := make([]stack.Sample, n)
	for i := range samples {
		samples[i] = stack.Sample{ID: item.ID(i + 1), Filename: fmt.Sprintf("%02d/%d.mp4", i%50, i), Level: levels[random.IntN(3)],
			Size: int64(random.IntN(4096))}
	}
	w.must("add items", w.Add(t.Context(), samples...))
	for range 15 {
		views := make([]client.View, 1000)
		for i := range views {
			views[i] = client.View{CID: item.ID(1 + random.IntN(n)), Count: item.Count(random.IntN(3000))}
		}
		w.must("post a batch", w.PostAll(t.Context(), views))
	}
	w.checkSettled()
	if out, code, err := w.Run(t.Context(), stack.Relocator, "verify", "--digest"); err != nil || code != 0 {
		t.Errorf("relocator verify: exit code %d, %v\n%s", code, err, out)
	}
}
