package e2e_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// slowly makes a copy of big take seconds, so that a test can act while the copy is under way.
var slowly = map[string]string{"TIERFLOW_BANDWIDTH": "8MiB"}

const big = 24 << 20

// startBigMove posts a count that moves a big item to another file system, and returns when the worker copies it.
func (w *world) startBigMove(id item.ID, worker string) {
	w.t.Helper()
	w.add(id, "bronze", big)
	w.post(id, 5000)
	w.waitCopying(id, worker)
}

// waitCopying waits until the worker has the item's lock and the temporary of its attempt is on the target.
func (w *world) waitCopying(id item.ID, worker string) {
	w.t.Helper()
	testserver.Eventually(w.t, worker+" is copying", patience, func() error {
		lock, err := w.Redis.Get(context.Background(), w.Keys.Lock(id)).Result()
		if err != nil || !strings.HasPrefix(lock, "relocating ") || !strings.Contains(lock, " "+worker+" ") {
			return fmt.Errorf("the lock is %q (%v)", lock, err)
		}
		left, err := os.ReadDir(w.tier("gold") + "/.tierflow/tmp")
		if err != nil || len(left) == 0 {
			return fmt.Errorf("no temporary is there (%v)", err)
		}
		return nil
	})
}

func (w *world) tier(level string) string {
	w.t.Helper()
	levels, err := w.Catalog.Levels(context.Background())
	w.must("read the levels", err)
	for _, l := range levels {
		if l.Name == level {
			return l.Path
		}
	}
	w.t.Fatalf("there is no level %s", level)
	return ""
}

func TestTwoRelocatorsShareTheWorkAndMoveNothingTwice(t *testing.T) {
	w := start(t, options{relocators: 2})
	const n = 60
	for id := item.ID(1); id <= n; id++ {
		w.add(id, "bronze", 200_000)
	}
	for id := item.ID(1); id <= n; id++ {
		w.post(id, 1000+item.Count(id%2)*1000)
	}
	w.checkSettled()
	for id := item.ID(1); id <= n; id++ {
		if m := w.moves(id); m != 1 {
			t.Errorf("item %s was moved %d times", id, m)
		}
	}
}

func TestWhatAKilledRelocatorHeldIsDoneByAnother(t *testing.T) {
	w := start(t, options{relocators: 2, settings: slowly, stopped: true})
	w.startAll(t, "relocator-2")
	w.startBigMove(1, "relocator-1")
	w.must("kill", w.Relocators[0].Kill())
	w.must("start", w.Relocators[1].Start(t.Context()))
	w.checkSettled() // its temporary is swept, too
	if n := w.moves(1); n != 1 {
		t.Errorf("%d rows of history", n)
	}
}

func TestARelocatorThatWakesUpLateChangesNothing(t *testing.T) {
	w := start(t, options{relocators: 2, settings: slowly, stopped: true})
	w.startAll(t, "relocator-2")
	w.startBigMove(1, "relocator-1")
	w.must("pause", w.Relocators[0].Pause())
	w.must("start", w.Relocators[1].Start(t.Context()))
	w.waitLevel(1, "gold") // the other relocator moves it after the lease
	w.post(1, 1)           // and back, while the first relocator still sleeps
	w.waitLevel(1, "bronze")
	w.must("resume", w.Relocators[0].Resume())
	w.checkSettled()
	if n := w.moves(1); n != 2 {
		t.Errorf("%d rows of history, want 2", n)
	}
}

func TestACommitterThatIsKilledAgainAndAgainLosesNothingAndCommitsNothingTwice(t *testing.T) {
	w := start(t, options{})
	const n = 80
	for id := item.ID(1); id <= n; id++ {
		w.add(id, "bronze", 1000)
	}
	for round := item.Count(1); round <= 4; round++ {
		for id := item.ID(1); id <= n; id++ {
			w.post(id, 1000*(1+(round+item.Count(id))%2)) // silver and gold in turn
			if id == n/2 {
				w.must("kill", w.Committer.Kill())
				w.must("start", w.Committer.Launch())
			}
		}
	}
	w.checkSettled()
	var twice int
	w.must("count", w.DB().QueryRow("SELECT COUNT(*) - COUNT(DISTINCT event_id) FROM update_history").Scan(&twice))
	if twice != 0 {
		t.Errorf("%d relocations have more than one row of history", twice)
	}
}

func TestEventsThatWaitForACommitterAreCommittedWhenOneComes(t *testing.T) {
	w := start(t, options{})
	w.must("kill", w.Committer.Kill())
	w.add(1, "bronze", 1000)
	w.post(1, 1500)
	w.waitStream(w.Keys.Relocated(), 1)
	settled, err := w.Client().UpdateSentence(t.Context(), 1)
	if err != nil || settled {
		t.Errorf("before the commit: settled %v (%v)", settled, err)
	}
	w.must("start", w.Committer.Start(t.Context()))
	w.waitLevel(1, "silver")
	settled, err = w.Client().UpdateSentence(t.Context(), 1)
	if err != nil || !settled {
		t.Errorf("after the commit: settled %v (%v)", settled, err)
	}
	w.checkSettled()
}

func (w *world) waitStream(key string, n int64) {
	w.t.Helper()
	testserver.Eventually(w.t, fmt.Sprintf("%d entries in %s", n, key), patience, func() error {
		if got, err := w.Redis.XLen(context.Background(), key).Result(); err != nil || got < n {
			return fmt.Errorf("%d there (%v)", got, err)
		}
		return nil
	})
}

// startAll starts all services but those named.
func (w *world) startAll(t *testing.T, but ...string) {
	t.Helper()
	for _, v := range w.Services() {
		if !strings.Contains(" "+strings.Join(but, " ")+" ", " "+v.Name+" ") {
			w.must("start "+v.Name, v.Start(t.Context()))
		}
	}
}

func TestSIGTERMDuringAMoveFinishesItWithinTheDrainTime(t *testing.T) {
	w := start(t, options{settings: slowly})
	w.startBigMove(1, "relocator-1")
	code, err := w.Relocators[0].Terminate(t.Context())
	w.must("terminate", err)
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
	w.waitLevel(1, "gold") // there is no other relocator to do it
	w.must("start", w.Relocators[0].Start(t.Context()))
	w.checkSettled()
}

func TestSIGTERMHandsBackWhatDoesNotEndWithinTheDrainTime(t *testing.T) {
	w := start(t, options{relocators: 2, stopped: true, settings: map[string]string{
		"TIERFLOW_BANDWIDTH": "4MiB", "TIERFLOW_DRAIN": "300ms", "TIERFLOW_MIN_IDLE": "30s"}})
	w.startAll(t, "relocator-2")
	w.startBigMove(1, "relocator-1")
	began := time.Now()
	code, err := w.Relocators[0].Terminate(t.Context())
	w.must("terminate", err)
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
	if left, err := os.ReadDir(w.tier("gold") + "/.tierflow/tmp"); err != nil || len(left) != 0 {
		t.Errorf("left in tmp: %v (%v)", left, err)
	}
	w.must("start", w.Relocators[1].Start(t.Context()))
	w.waitCopying(1, "relocator-2")
	if d := time.Since(began); d > 25*time.Second { // nobody waited for the entry to become idle
		t.Errorf("the other relocator began after %v", d)
	}
	w.checkSettled()
}
