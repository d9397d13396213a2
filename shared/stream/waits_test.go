package stream_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/tierflow/tierflow/shared/stream"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// waits waits until an entry of a consumer waits with this reason, and returns what is told of it.
func (r *running) waits(id, reason string) (found stream.Wait) {
	r.w.Helper()
	testserver.Eventually(r.w, id+" waits: "+reason, soon, func() error {
		all := r.Waits(0)
		for _, found = range all {
			if found.ID == id && found.Reason == reason {
				return nil
			}
		}
		return fmt.Errorf("%+v", all)
	})
	return found
}

func TestAnEntryThatWaitsIsToldWithItsReasonUntilItIsSettled(t *testing.T) {
	w := newWorld(t)
	handle, got := w.handler()
	r := w.run(stream.Options{Handle: handle, Slots: 2, MinIdle: long})
	id := w.add(1)[0]
	h := next(w, got)
	if all := r.Waits(0); len(all) > 0 {
		t.Errorf("an entry that is worked on: %+v", all)
	}
	h.answer <- func(d *stream.Delivery) { d.Failed(errors.New("no luck")) }
	failed := r.waits(id, "")
	if failed.Cause == nil || failed.Cause.Error() != "no luck" || failed.Attempts != 1 || failed.Values["n"] != "0" || failed.Stream != w.stream ||
		time.Until(failed.Next) < 0 {
		t.Errorf("%+v", failed)
	}
	h = next(w, got)
	if all := r.Waits(0); len(all) != 1 {
		t.Errorf("while it is tried again: %+v", all)
	}
	h.answer <- func(d *stream.Delivery) { d.Reason, d.Cause = "tier-away", errors.New("gone"); d.Await() }
	awaits := r.waits(id, "tier-away")
	if !awaits.Next.IsZero() || !awaits.Since.Equal(failed.Since) || awaits.Cause.Error() != "gone" {
		t.Errorf("%+v", awaits)
	}
	if all := r.Waits(time.Hour); len(all) > 0 {
		t.Errorf("for an hour: %+v", all)
	}
	h.Wake()
	h = next(w, got)
	h.Hangs()
	r.waits(id, "hangs")
	w.settle(h)
	w.nothingIsLeft()
	testserver.Eventually(t, "nothing waits", soon, func() error {
		if all := r.Waits(0); len(all) > 0 {
			return fmt.Errorf("%+v", all)
		}
		return nil
	})
}
