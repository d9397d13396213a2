package compose_test

import (
	"fmt"
	"testing"

	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// seesMoves waits until, since the last row of the history, some of the demo's samples have moved up and some down.
func (w *world) seesMoves(t *testing.T, last int) {
	t.Helper()
	const samples = "cid BETWEEN 1000000001 AND 1000000040 AND id > ?"
	testserver.Eventually(t, "samples move", patience, func() error {
		up, err := w.count(t.Context(), "SELECT COUNT(*) FROM update_history WHERE new_level = 'gold' AND "+samples, last)
		if err != nil {
			return err
		}
		down, err := w.count(t.Context(), "SELECT COUNT(*) FROM update_history WHERE old_level = 'gold' AND "+samples, last)
		if err == nil && (up < 2 || down < 1) {
			err = fmt.Errorf("%d have moved up and %d down", up, down)
		}
		return err
	})
}

func (w *world) lastMove(t *testing.T) int {
	t.Helper()
	return must[int](t)(w.count(t.Context(), "SELECT COALESCE(MAX(id), 0) FROM update_history"))
}

func TestTheDemosSamplesMoveUpAndDown(t *testing.T) {
	w.begin(t)
	w.levels(t, 50, 200) // of some 2,400 visits in the tests' window
	last := w.lastMove(t)
	w.profile(t, "demo", "demo")
	w.checkHardened(t, "demo")
	w.seesMoves(t, last)
}

func TestTheDemosVisitorsGoThroughTheEdge(t *testing.T) {
	if testing.Short() {
		t.Skip("the edge and the demo are also tested alone")
	}
	w.begin(t)
	w.levels(t, 50, 200)
	w.profile(t, "edge", "edge", "counter")
	last := w.lastMove(t)
	w.profile(t, "demo", "demo")
	w.seesMoves(t, last)
}
