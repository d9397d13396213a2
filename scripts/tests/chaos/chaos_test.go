package chaos_test

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

var soak = flag.Duration("for", 0, "how long random mixes go on with each topology; 0: a few of them")

func TestMain(m *testing.M) { withOwnMounts(func() { testserver.Main(tidy{m}) }) }

// tidy runs the tests and then removes what programs made.
type tidy struct{ *testing.M }

func (t tidy) Run() int {
	defer func() { os.RemoveAll(programsDir) }()
	return t.M.Run()
}

// library is a set of items on all levels. Two are directories, and some are so large that a fault can hit their move.
func library() []stack.Sample {
	levels := []string{"bronze", "silver", "gold"}
	var all []stack.Sample
	for id := item.ID(1); id <= 12; id++ {
		s := stack.Sample{ID: id, Filename: fmt.Sprintf("videos/%s.mp4", id), Level: levels[id%3], Size: 1 << (8 + id)}
		if id%6 == 0 {
			s.Parts = map[string]int64{"master.m3u8": 300, "low/0.ts": 50_000, "high/0.ts": 200_000}
		}
		all = append(all, s)
	}
	return all
}

func TestEachFaultInMidTrafficLosesNothingThatWasNotSaidToBeLost(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	// To save time, a fault that has nothing to do with Redis hits one of the topologies.
	hits := func(topology string, n int, f fault) bool {
		even := (uint64(n)+seed)%2 == 0
		return f.of == theRedis || f.of == wires || even == (topology == oneRedis)
	}
	for topology := range topologies {
		t.Run(topology, func(t *testing.T) {
			t.Parallel()
			t.Logf("seed %d", seed)
			r := rand.New(rand.NewPCG(seed, 0))
			w := start(t, topology, library())
			for n, f := range w.faults() {
				if !hits(topology, n, f) {
					continue
				}
				began := time.Now()
				w.note("--- %s", f.name)
				stop := w.traffic(r.Uint64(), 5*time.Millisecond)
				last(r, 300*time.Millisecond)
				for range 2 {
					w.must("a fault", w.inflict(f, r))
					last(r, 200*time.Millisecond)
				}
				accepted := stop()
				w.check()
				t.Logf("%s: %d posts were accepted, %v", f.name, accepted, time.Since(began).Round(time.Millisecond))
				if t.Failed() {
					return
				}
			}
		})
	}
}

func TestRandomMixesOfFaultsLoseNothingThatWasNotSaidToBeLost(t *testing.T) {
	t.Parallel()
	// Real processes do not shrink well, so each seed has one history.
	set := func(name, value string) {
		if err := flag.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	set("rapid.checks", "1")
	set("rapid.shrinktime", "0s")
	set("rapid.nofailfile", "true")
	seed := flag.Lookup("rapid.seed")
	given := seed.Value.String() != seed.DefValue
	for topology, least := range map[string]int{oneRedis: 2, sixNodes: 1} {
		t.Run(topology, func(t *testing.T) {
			end := time.Now().Add(*soak)
			for n := 1; (n <= least || time.Now().Before(end)) && !t.Failed(); n++ {
				if !given {
					set(seed.Name, fmt.Sprint(rand.Uint64()|1))
				}
				t.Run(fmt.Sprint("mix ", n), func(t *testing.T) {
					t.Logf("again with -run 'Random/%s' -rapid.seed=%s", topology, seed.Value)
					rapid.Check(t, func(r *rapid.T) { mix(t, topology, r) })
				})
			}
		})
	}
}

// mix is one history: traffic, with faults one after the other and several at once, and checks in between.
func mix(t *testing.T, topology string, r *rapid.T) {
	w := start(t, topology, library())
	for range rapid.IntRange(1, 2).Draw(r, "rounds") {
		stop := w.traffic(rapid.Uint64().Draw(r, "traffic"), 5*time.Millisecond)
		lossless := rapid.Bool().Draw(r, "lossless") // where counts may be lost, the ledger cannot miss one
		for range rapid.IntRange(2, 5).Draw(r, "steps") {
			var wg sync.WaitGroup
			for range rapid.SampledFrom([]int{1, 1, 2, 3}).Draw(r, "at once") {
				f := w.draw(r, lossless)
				random := rand.New(rand.NewPCG(rapid.Uint64().Draw(r, "how"), 0))
				wg.Go(func() { _ = w.inflict(f, random) }) // a fault that comes too late for its victim does nothing
			}
			wg.Wait()
		}
		stop()
		w.check()
		if t.Failed() {
			r.FailNow()
		}
	}
}

// draw draws what is hit, and then one of its faults: Redis has many more than a process.
func (w *world) draw(r *rapid.T, lossless bool) fault {
	all := slices.DeleteFunc(w.faults(), func(f fault) bool { return lossless && f.lossy })
	of := map[victim][]fault{}
	for _, f := range all {
		of[f.of] = append(of[f.of], f)
	}
	hit := rapid.SampledFrom(slices.Sorted(maps.Keys(of))).Draw(r, "victim")
	return rapid.SampledFrom(of[hit]).Draw(r, "fault")
}
