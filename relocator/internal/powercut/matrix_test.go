package powercut_test

import (
	"testing"
	"time"

	"github.com/tierflow/tierflow/relocator/internal/mover"
)

// checkAll checks every cut of a run with every possible state of the servers. firstOnly: stop at the first violation.
func (r *run) checkAll(firstOnly bool) (points, checks int, violations []string, err error) {
	for i, c := range r.cuts {
		points += c.points
		for k, p := range c.states {
			variants := []state{p}
			if p.view && !p.operators { // a newer event calls for the item's present level
				p.want = p.row
				variants = append(variants, p)
			}
			for v, p := range variants {
				sweepFirst := (i+k+v)%2 == 1 && !p.uploaders
				bad, err := r.check(c, p, sweepFirst)
				if err != nil {
					return points, checks, violations, err
				}
				checks++
				violations = append(violations, bad...)
				if firstOnly && len(bad) > 0 {
					return points, checks, violations, nil
				}
			}
		}
	}
	return points, checks, violations, nil
}

// scenarios lists all moves that are tested.
func scenarios() (all []scenario) {
	for _, r := range routes {
		for _, kind := range []string{file, directory} {
			for _, source := range []string{synced, unsynced, adopted} {
				if source == adopted && len(r.disks) < 2 {
					continue
				}
				all = append(all, scenario{route: r, kind: kind, source: source})
				if source == synced {
					all = append(all, scenario{route: r, kind: kind, source: source, shared: true})
				}
				if source == synced && r.method == mover.Linked {
					all = append(all, scenario{route: r, kind: kind, source: source, full: true})
				}
				if source != adopted && kind == file {
					all = append(all, scenario{route: r, kind: kind, source: source, shared: true, whole: true})
				}
				if source != unsynced && r.method == mover.Copied {
					all = append(all, scenario{route: r, kind: kind, source: source, stream: true})
				}
				// Unsynced data of one file behaves like that of many. Between two disks, the target's file system never
				// writes the source's data.
				if source == synced || kind == file && (source == adopted || len(r.disks) == 1) {
					all = append(all, scenario{route: r, kind: kind, source: source, busy: true})
				}
			}
		}
	}
	return all
}

func TestAPowerCutAtAnyStepOfAMoveLosesNothingAndLeavesNothing(t *testing.T) {
	total, booted, violated := 0, 0, 0
	begin := time.Now()
	for _, s := range scenarios() {
		t.Run(s.String(), func(t *testing.T) {
			begin := time.Now()
			r, err := record(s, mutation{})
			if err != nil {
				t.Fatal(err)
			}
			defer r.discard()
			recorded := time.Since(begin)
			points, checks, violations, err := r.checkAll(false)
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range violations {
				t.Error(v)
			}
			t.Logf("%d crash points, %d states of the disks, booted %d times, %d violations; %v + %v", points, len(r.cuts),
				checks, len(violations), recorded.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))
			if s.full && !r.refused {
				t.Error("the release made no folder: nothing was tested")
			}
			if len(r.cuts) < 5 {
				t.Errorf("the disks had only %d states: the hook or the counters of the disks do not work", len(r.cuts))
			}
			total, booted, violated = total+points, booted+checks, violated+len(violations)
		})
	}
	t.Logf("%d crash points, booted %d times, %d violations, %v", total, booted, violated, time.Since(begin).Round(time.Second))
}
