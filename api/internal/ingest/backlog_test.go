package ingest

import (
	"testing"

	"github.com/tierflow/tierflow/shared/fault"
)

func TestAnEventWhoseAppendRunsWhileTheBacklogIsReadStaysCounted(t *testing.T) {
	b := backlog{limit: 1}
	if err := b.admit(1); err != nil {
		t.Fatal(err)
	}
	says := func(n int64) func() (int64, error) { return func() (int64, error) { return n, nil } }
	if err := b.refresh(says(0)); err != nil { // Redis counts before the event arrives there
		t.Fatal(err)
	}
	b.appended.Add(1)
	if err := b.admit(1); fault.KindOf(err) != fault.BacklogFull {
		t.Errorf("one event is there, the limit is one, and the next: %v", err)
	}
	for _, c := range []struct{ unsettled, known int64 }{{1, 1}, {0, 0}} { // still there; settled
		if err := b.refresh(says(c.unsettled)); err != nil {
			t.Fatal(err)
		}
		if known := b.known.Load() + b.since.Load(); known != c.known {
			t.Errorf("Redis says %d, and the backlog knows %d", c.unsettled, known)
		}
	}
}
