package state_test

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/tierflow/tierflow/shared/state"
)

func TestTiersAreReadAsTheyWereReported(t *testing.T) {
	w := newWorld(t)
	v := state.Service{Program: "relocator", ID: "r1", StartedAt: posted, GraceMS: 5000, Rates: map[string]float64{state.RateMoves: 1.5},
		Tiers: []state.TierReport{
			{Level: "gold", State: state.TierFull, Reason: "no\nroom " + strings.Repeat("é", 400), Since: posted, Waiting: 93,
				TierFigures: state.TierFigures{TotalBytes: 1000, UsedBytes: 990, FreeBytes: 10, TotalInodes: 7, FreeInodes: 3, AgeMS: 40}},
			{Level: "silver", State: state.TierHanging, Since: posted},
		}}
	_, err := w.Report(t.Context(), v)
	w.must(err)
	got, err := w.Services(t.Context(), time.Minute)
	w.must(err)
	if len(got) != 1 || len(got[0].Tiers) != 2 {
		t.Fatalf("%+v", got)
	}
	long := got[0].Tiers[0].Reason
	if len(long) > 310 || !strings.HasPrefix(long, "no room é") || !strings.HasPrefix(v.Tiers[0].Reason, "no\n") {
		t.Errorf("the reason is %q", long)
	}
	got[0].Tiers[0].Reason = v.Tiers[0].Reason
	if !reflect.DeepEqual(got[0].Tiers, v.Tiers) || !reflect.DeepEqual(got[0].Rates, v.Rates) || got[0].GraceMS != 5000 {
		t.Errorf("got  %+v\nwant %+v", got[0], v)
	}
}

// report is a living relocator that has reported one tier so long ago.
func report(id string, age time.Duration, of string, free int64) state.Service {
	return state.Service{Program: "relocator", ID: id, Alive: true, Age: age, Tiers: []state.TierReport{{Level: "gold", State: of,
		Since: posted, Waiting: 2, TierFigures: state.TierFigures{TotalBytes: 100, FreeBytes: free, AgeMS: 10}}}}
}

func TestOfSeveralViewsOfATierTheWorstStateAndTheNewestFiguresCount(t *testing.T) {
	dead, blind := report("d", 0, state.TierHanging, 1), report("b", 0, state.TierAway, 0)
	dead.Alive, blind.Tiers[0].TierFigures = false, state.TierFigures{}
	longer := report("l", 2*time.Second, state.TierFull, 5)
	longer.Tiers[0].Since = posted.Add(-time.Hour)
	for name, c := range map[string]struct {
		services []state.Service
		state    string
		worker   string
		disagree bool
		free     int64
		waiting  int
	}{
		"one":                      {[]state.Service{report("a", 0, state.TierOK, 9)}, state.TierOK, "a", false, 9, 2},
		"a dead one counts not":    {[]state.Service{dead, report("a", 0, state.TierOK, 9)}, state.TierOK, "a", false, 9, 2},
		"the worst state":          {[]state.Service{report("a", 0, state.TierOK, 9), report("z", time.Second, state.TierFull, 8)}, state.TierFull, "z", true, 9, 4},
		"whatever comes first":     {[]state.Service{report("z", time.Second, state.TierFull, 8), report("a", 0, state.TierOK, 9)}, state.TierFull, "z", true, 9, 4},
		"one without figures":      {[]state.Service{blind, report("z", time.Hour, state.TierFull, 8)}, state.TierAway, "b", true, 8, 4},
		"the longest of one state": {[]state.Service{report("z", 0, state.TierFull, 8), longer}, state.TierFull, "l", false, 8, 4},
		"a state of a new version": {[]state.Service{report("z", 0, "molten", 8), report("a", 0, state.TierOK, 9)}, "molten", "z", true, 8, 4},
		"and a worse one":          {[]state.Service{report("z", 0, "molten", 8), report("a", 0, state.TierSuspect, 9)}, state.TierSuspect, "a", true, 9, 4},
		"three of which two agree": {[]state.Service{report("z", 0, state.TierFull, 8), report("a", 0, state.TierOK, 9), report("b", 0, state.TierOK, 9)}, state.TierFull, "z", true, 8, 6},
	} {
		got := state.Tiers(c.services)["gold"]
		if got.State != c.state || got.Worker != c.worker || got.Disagree != c.disagree || got.FreeBytes != c.free || got.Waiting != c.waiting {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
