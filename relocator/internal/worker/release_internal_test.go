package worker

import (
	"fmt"
	"testing"
	"time"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/stream"
)

func TestMoreReleasesThanCanBeRememberedGetThroughOneAfterTheOther(t *testing.T) {
	s := sightings{of: map[sighted]*sighting{}, grace: time.Second}
	stray, row := event.Committed{Outcome: event.OutcomeStray}, catalog.Row{Level: "gold"}
	var ds []*stream.Delivery
	for i := range maxSightings + 100 {
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
	if len(ds) > 0 || len(s.of) > 0 {
		t.Errorf("%d releases have not got through in %d rounds, %d are remembered", len(ds), rounds, len(s.of))
	}
}

func TestEntriesOfTwoStreamsAreNotTakenForEachOther(t *testing.T) {
	s := sightings{of: map[sighted]*sighting{}}
	stray := event.Committed{Outcome: event.OutcomeStray}
	a, b := &stream.Delivery{Stream: "a", ID: "1-0"}, &stream.Delivery{Stream: "b", ID: "1-0"}
	s.age(a, stray, catalog.Row{Level: "gold"})
	s.age(b, stray, catalog.Row{Level: "silver"})
	if s.age(a, stray, catalog.Row{Level: "gold"}) == 0 {
		t.Error("the other's entry has begun its grace anew")
	}
}

func TestWhatNobodyComesForIsForgottenWhereThereIsNoRoom(t *testing.T) {
	s := sightings{of: map[sighted]*sighting{}, grace: time.Second}
	for i := range maxSightings {
		s.of[sighted{"s", fmt.Sprint(i)}] = &sighting{looked: time.Now().Add(-time.Hour)}
	}
	d := &stream.Delivery{Stream: "s", ID: "new"}
	s.age(d, event.Committed{Outcome: event.OutcomeStray}, catalog.Row{})
	if len(s.of) != 1 {
		t.Errorf("%d are remembered", len(s.of))
	}
}
