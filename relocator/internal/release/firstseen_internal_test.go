package release

import (
	"fmt"
	"testing"
	"time"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/stream"
)

func TestMoreReleasesThanFitInMemoryGetThroughInTurn(t *testing.T) {
	s := newFirstSeen(time.Second)
	stray, row := event.Committed{Outcome: event.OutcomeStray}, catalog.Row{Level: "gold"}
	var ds []*stream.Delivery
	for i := range maxSeen + 100 {
		ds = append(ds, &stream.Delivery{Stream: "s", ID: fmt.Sprintf("%d-0", i)})
	}
	rounds := 0
	for ; len(ds) > 0 && rounds < 10; rounds++ {
		var left []*stream.Delivery
		for _, d := range ds {
			if s.age(d, stray, row) > 0 { // seen before
				s.forget(d)
			} else {
				left = append(left, d)
			}
		}
		ds = left
	}
	if len(ds) > 0 || len(s.rows) > 0 {
		t.Errorf("%d releases have not got through in %d rounds, %d are remembered", len(ds), rounds, len(s.rows))
	}
}

func TestEntriesWithTheSameIDInTwoStreamsAreKeptApart(t *testing.T) {
	s := newFirstSeen(0)
	stray := event.Committed{Outcome: event.OutcomeStray}
	a, b := &stream.Delivery{Stream: "a", ID: "1-0"}, &stream.Delivery{Stream: "b", ID: "1-0"}
	s.age(a, stray, catalog.Row{Level: "gold"})
	s.age(b, stray, catalog.Row{Level: "silver"})
	if s.age(a, stray, catalog.Row{Level: "gold"}) == 0 {
		t.Error("the entry of the other stream has begun a new grace")
	}
}

func TestEntriesThatNoLongerComeAreForgottenWhenMemoryIsFull(t *testing.T) {
	s := newFirstSeen(time.Second)
	for i := range maxSeen {
		s.rows[entryKey{"s", fmt.Sprint(i)}] = &seenRow{last: time.Now().Add(-time.Hour)}
	}
	d := &stream.Delivery{Stream: "s", ID: "new"}
	s.age(d, event.Committed{Outcome: event.OutcomeStray}, catalog.Row{})
	if len(s.rows) != 1 {
		t.Errorf("%d are remembered", len(s.rows))
	}
}
