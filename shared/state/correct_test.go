package state_test

import (
	"testing"
	"time"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/state"
)

func TestARowIsCorrectedOnlyUnderTheLockAndOnce(t *testing.T) {
	w := newWorld(t)
	const eventID = "0192f0c0-0000-7000-8000-000000000000"
	token := state.NewToken(eventID, "verify", "abc")
	r := event.Relocated{EventID: eventID, ID: 7, From: "bronze", To: "gold", Filename: "a", Method: "found", WorkerID: "verify",
		StartedAt: time.Now(), FinishedAt: time.Now()}
	if ok, err := w.Store.Correct(t.Context(), token, r); ok || err != nil {
		t.Fatalf("without the lock: %v, %v", ok, err)
	}
	if who, err := w.Store.Lock(t.Context(), 7, token); who != "" || err != nil {
		t.Fatal(who, err)
	}
	for range 2 { // the second is a repeat after a lost reply
		if ok, err := w.Store.Correct(t.Context(), token, r); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	if n := w.rdb.XLen(t.Context(), w.keys.Of(7).Relocated()).Val(); n != 1 {
		t.Errorf("%d entries", n)
	}
	other := state.NewToken(eventID, "verify", "xyz")
	if who, err := w.Store.Lock(t.Context(), 7, other); who == "" || err != nil {
		t.Errorf("the lock was free before the commit: %v", err)
	}
}
