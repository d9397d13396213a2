package relocate

import (
	"fmt"
	"testing"
	"time"

	"github.com/tierflow/tierflow/shared/stream"
)

// A new event of the item comes every millisecond.
func TestARowIsWrittenEveryThreeSecondsWhilePostsComeAndOnceMoreSoonAfterTheirEnd(t *testing.T) {
	var p paces
	now := time.Unix(1_000_000, 0)
	writes := 0
	for range 28_500 {
		p.posted(now)
		if p.wait(1, now) <= 0 {
			p.wrote(1, now)
			writes++
		}
		now = now.Add(time.Millisecond)
	}
	if writes != 10 {
		t.Errorf("%d writes in 28.5 seconds", writes)
	}
	now = now.Add(quietAfter)
	if wait := p.wait(1, now); wait > 0 {
		t.Errorf("after the end, the last count waits for %s", wait)
	}
	p.wrote(1, now)
	p.posted(now)
	if wait := p.wait(1, now); wait <= everySecond {
		t.Errorf("after an early write, the next count waits for %s", wait)
	}
	for early := 1; ; early++ {
		now = now.Add(quietAfter)
		if p.wait(1, now) > 0 {
			if early > 3 {
				t.Errorf("%d counts are written early", early)
			}
			break
		}
		p.wrote(1, now)
		p.posted(now)
	}
	if wait := p.wait(2, now); wait > 0 {
		t.Errorf("the first count of another item waits for %s", wait)
	}
}

func TestARowIsWrittenNowAndThenThoughEachEventIsSupersededWhenItIsRead(t *testing.T) {
	var p paces
	now := time.Unix(1_000_000, 0)
	var writes []time.Time
	for range 20_000 {
		p.posted(now)
		if p.overdue(1, now) {
			p.wrote(1, now)
			writes = append(writes, now)
		}
		now = now.Add(time.Millisecond)
	}
	if len(writes) != 3 {
		t.Errorf("written at %v, not every five seconds", writes)
	}
}

func TestTheEventsThatWaitAreKnownUntilTheyComeBackOrAreSuperseded(t *testing.T) {
	var p paces
	a, b, c := &stream.Delivery{ID: "1-0"}, &stream.Delivery{ID: "2-0"}, &stream.Delivery{ID: "10-0"}
	p.waits(1, b)
	if p.returned(1, a) || p.superseded(1, a) != nil || p.superseded(2, c) != nil || p.waiting != 1 {
		t.Errorf("%d wait", p.waiting)
	}
	if p.superseded(1, c) != b || p.waiting != 0 {
		t.Errorf("%d wait", p.waiting)
	}
	p.waits(1, c)
	if !p.returned(1, c) || p.returned(1, c) || p.waiting != 0 {
		t.Errorf("%d wait", p.waiting)
	}
	p.waits(1, a)
	p.waiting = maxWaiting
	if p.wrote(1, time.Now()); p.wait(1, time.Now()) > 0 {
		t.Error("one more waits than may")
	}
}

func TestItemsWithoutEventsAreForgotten(t *testing.T) {
	var p paces
	now := time.Unix(1_000_000, 0)
	p.posted(now)
	for id := range 100 {
		switch id % 3 {
		case 0:
			p.wrote(1, now)
		case 1:
			p.overdue(2, now)
		default:
			p.waits(3, &stream.Delivery{ID: fmt.Sprint(id, "-0")})
		}
	}
	for range 3 {
		now = now.Add(2 * forgetPace)
		p.posted(now)
	}
	if p.posted(now.Add(100 * time.Second)); len(p.of) != 0 || p.waiting != 0 {
		t.Errorf("%d items are remembered, %d wait", len(p.of), p.waiting)
	}
}
