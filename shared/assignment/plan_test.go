package assignment

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"go.uber.org/zap"
	"pgregory.net/rapid"

	"github.com/tierflow/tierflow/shared/state"
)

func newTestAssignment(self state.Worker, partitions int) *Assignment {
	keys := state.NewKeys("p:").Partitioned(partitions)
	return New(Options{Store: state.NewStore(state.Options{Keys: keys}), Self: self, Log: zap.NewNop(),
		Consumers: func(state.Keys) []Consumer { return nil }})
}

func TestAPlanIsComputedOnlyWhenTheListOfLivingWorkersChanges(t *testing.T) {
	a := newTestAssignment(state.Worker{ID: "a"}, 4)
	var wg sync.WaitGroup
	update := func(living ...state.Worker) *plan {
		a.update(t.Context(), living, map[int]*work{}, &wg)
		return a.current()
	}
	first := update(state.Worker{ID: "a"}, state.Worker{ID: "b", Tiers: []string{"gold", "silver"}})
	for p := range 4 {
		if got := a.Capable(p, "x", "gold"); got != "b" {
			t.Errorf("partition %d: %q", p, got)
		}
	}
	if update(state.Worker{ID: "b", Tiers: []string{"silver", "gold"}}, state.Worker{ID: "a"}) != first {
		t.Error("the same workers in another order have a new plan")
	}
	for _, living := range [][]state.Worker{
		{{ID: "a"}, {ID: "b", Tiers: []string{"gold"}}},
		{{ID: "a"}, {ID: "b"}},
		{{ID: "a"}, {ID: "b"}, {ID: "c"}},
		{{ID: "a"}},
	} {
		if before := a.current(); update(living...) == before {
			t.Errorf("%v: the plan is the old one", living)
		}
	}
}

func TestCapableAnswersAsTheAssignmentOfEveryWorkerDoes(t *testing.T) {
	tierSets := [][]string{nil, {"bronze"}, {"bronze", "silver"}, {"silver", "bronze"}, {"gold", "silver", "bronze"}}
	rapid.Check(t, func(t *rapid.T) {
		partitions := rapid.IntRange(1, 20).Draw(t, "partitions")
		var living []state.Worker
		for i := range rapid.IntRange(0, 30).Draw(t, "workers") {
			living = append(living, state.Worker{ID: fmt.Sprintf("w%d", i), Tiers: rapid.SampledFrom(tierSets).Draw(t, "tiers")})
		}
		self := state.Worker{ID: "w0"}
		if len(living) > 0 {
			self = rapid.SampledFrom(living).Draw(t, "self")
		}
		living = rapid.Permutation(living).Draw(t, "order")
		a := newTestAssignment(self, partitions)
		a.replan(living)
		if got, want := a.Partitions(), partitionsOf(living, self, partitions); !slices.Equal(got, want) {
			t.Fatalf("%s has %v, not %v", self.ID, got, want)
		}
		tiers := rapid.SampledFrom([][]string{nil, {"bronze"}, {"gold"}, {"bronze", "silver"}}).Draw(t, "needed")
		key := rapid.StringN(1, 8, -1).Draw(t, "key")
		for p := range partitions {
			if got, want := a.Capable(p, key, tiers...), capable(living, self, partitions, p, key, tiers); got != want {
				t.Fatalf("partition %d: %q, not %q", p, got, want)
			}
		}
	})
}

// capable computes the answer from the assignment of every worker, one by one.
func capable(living []state.Worker, self state.Worker, n, partition int, key string, tiers []string) string {
	var able []string
	for _, w := range living {
		if w.ID != self.ID && w.Reaches(tiers...) && slices.Contains(partitionsOf(living, w, n), partition) {
			able = append(able, w.ID)
		}
	}
	if len(able) == 0 {
		return ""
	}
	slices.Sort(able)
	return able[weight(key, 0)%uint64(len(able))]
}

// partitionsOf computes the partitions of one worker among those that reach the same tiers.
func partitionsOf(living []state.Worker, w state.Worker, n int) (own []int) {
	var ids []string
	for _, o := range living {
		if tierSet(o) == tierSet(w) {
			ids = append(ids, o.ID)
		}
	}
	slices.Sort(ids)
	at := slices.Index(ids, w.ID)
	if at < 0 {
		return nil
	}
	if len(ids) > n {
		return []int{spread(len(ids), n, func(w, p int) uint64 { return weight(ids[w], p) })[at]}
	}
	for p, w := range spread(n, len(ids), func(p, w int) uint64 { return weight(ids[w], p) }) {
		if w == at {
			own = append(own, p)
		}
	}
	return own
}
