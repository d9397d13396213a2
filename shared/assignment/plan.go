package assignment

import (
	"cmp"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"

	"github.com/tierflow/tierflow/shared/state"
)

// plan is the assignment that follows from one list of living workers. It does not change.
type plan struct {
	living  []state.Worker   // by id
	workers [][]state.Worker // of each partition, by id
	own     []int            // partitions of the worker that made the plan, ascending
}

// newPlan computes the assignment of n partitions. own has the partitions of self, also where the tiers that the list
// gives for self are not those that self reaches.
func newPlan(living []state.Worker, self state.Worker, n int) *plan {
	p := &plan{living: byID(living), workers: make([][]state.Worker, n)}
	sets := map[string][]state.Worker{}
	for _, w := range p.living {
		sets[tierSet(w)] = append(sets[tierSet(w)], w)
	}
	for set, workers := range sets {
		ids := make([]string, len(workers))
		for i, w := range workers {
			ids[i] = w.ID
		}
		for i, partitions := range Compute(ids, n) {
			for _, partition := range partitions {
				p.workers[partition] = append(p.workers[partition], workers[i])
			}
			if set == tierSet(self) && ids[i] == self.ID {
				p.own = partitions
			}
		}
	}
	for i, workers := range p.workers {
		p.workers[i] = byID(workers)
	}
	return p
}

// madeFor reports whether the plan is the one of these workers. It is false for a nil plan.
func (p *plan) madeFor(living []state.Worker) bool {
	return p != nil && slices.EqualFunc(p.living, byID(living), func(a, b state.Worker) bool {
		return a.ID == b.ID && tierSet(a) == tierSet(b)
	})
}

func byID(workers []state.Worker) []state.Worker {
	return slices.SortedFunc(slices.Values(workers), func(a, b state.Worker) int { return cmp.Compare(a.ID, b.ID) })
}

// tierSet names the tiers that a worker reaches. Workers with the same tiers have the same name.
func tierSet(w state.Worker) string {
	if w.Tiers == nil {
		return "*"
	}
	return strings.Join(slices.Sorted(slices.Values(w.Tiers)), ",")
}

// Compute returns the partitions of each worker, ascending, of n partitions in all. The order of the workers does not
// matter to what each one gets. Few partitions change their worker when a worker joins or leaves.
func Compute(workers []string, n int) [][]int {
	order := make([]int, len(workers)) // spread depends on the order
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(workers[a], workers[b]) })
	weightOf := func(w, p int) uint64 { return weight(workers[order[w]], p) }
	partitions := make([][]int, len(workers))
	if len(workers) <= n {
		for i := range partitions {
			partitions[i] = []int{}
		}
		if len(workers) == 0 {
			return partitions
		}
		for p, w := range spread(n, len(workers), func(p, w int) uint64 { return weightOf(w, p) }) {
			partitions[order[w]] = append(partitions[order[w]], p)
		}
		return partitions
	}
	for w, p := range spread(len(workers), n, weightOf) {
		partitions[order[w]] = []int{p}
	}
	return partitions
}

// spread puts each ball into the bin of the highest weight that has room. The loads of two bins differ by one at most.
// It returns the bin of each ball.
func spread(balls, bins int, weight func(ball, bin int) uint64) []int {
	minLoad, extra := balls/bins, balls%bins // extra: how many bins may still take one more
	loads := make([]int, bins)
	of := make([]int, balls)
	for i := range balls {
		best, highest := -1, uint64(0)
		for b := range bins {
			if loads[b] > minLoad || loads[b] == minLoad && extra == 0 {
				continue
			}
			if w := weight(i, b); best < 0 || w > highest {
				best, highest = b, w
			}
		}
		if loads[best] == minLoad {
			extra--
		}
		loads[best]++
		of[i] = best
	}
	return of
}

// weight is a pseudo-random number that every worker computes alike.
func weight(worker string, p int) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(worker + "/" + strconv.Itoa(p))) // never fails
	x := h.Sum64()
	x ^= x >> 33 // FNV changes its high bits little at the end of a text: this mixes them, as MurmurHash3 does
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return x
}
