package presence

import (
	"testing"
	"time"

	"github.com/tierflow/tierflow/shared/state"
)

func TestWhatIsMissingAndTheStateOfATierAreReportedAtOnceAndFiguresAreNot(t *testing.T) {
	was := reporting(state.TierOK, "", 5)
	missing := was
	missing.Missing = map[string]string{"redis": "away"}
	for name, c := range map[string]struct {
		now  state.Service
		want bool
	}{
		"nothing":  {reporting(state.TierOK, "", 5), false},
		"figures":  {reporting(state.TierOK, "", 4), false},
		"a reason": {reporting(state.TierOK, "why", 5), false},
		"a state":  {reporting(state.TierFull, "", 5), true},
		"no tier":  {state.Service{}, true},
		"missing":  {missing, true},
	} {
		if got := changed(was, c.now); got != c.want {
			t.Errorf("%s changes: %v", name, got)
		}
	}
}

func reporting(of, reason string, free int64) state.Service {
	return state.Service{Tiers: []state.TierReport{{Level: "gold", State: of, Reason: reason, TierFigures: state.TierFigures{FreeBytes: free}}}}
}

func TestRatesAreAveragesOfTheLastMinute(t *testing.T) {
	var r rates
	start := time.Unix(1_000_000, 0)
	counted := int64(1000) // what was counted before the first look is no rate
	for second := range 200 {
		if second > 0 && second <= 100 {
			counted += 6
		}
		got := r.add(start.Add(time.Duration(second)*time.Second), map[string]int64{"views": counted})["views"]
		want := map[int]float64{0: 0, 1: 6, 30: 6, 100: 6, 130: 3, 160: 0, 199: 0}
		if w, ok := want[second]; ok && got != w {
			t.Errorf("after %d s: %v, want %v", second, got, w)
		}
		if len(r.samples) > 62 {
			t.Fatalf("%d samples", len(r.samples))
		}
	}
}
