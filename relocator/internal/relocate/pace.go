package relocate

import (
	"time"

	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/stream"
)

const (
	// everySecond is how far the writes of a row's counts are apart on average, at least.
	everySecond = time.Second
	// whilePosted is how far they are apart while posts come. A newer count waits for the rest of it, and supersedes the one that
	// waits. So most counts of an item that is posted often cost no write.
	whilePosted = 3 * time.Second
	// overdueAfter is how long a row may keep its count while newer ones come and each is superseded when it is read, because the
	// consumer is behind. A write would make it fall behind further.
	overdueAfter = 5 * time.Second
	// quietAfter: when no view event has come for so long, the newest counts wait no longer, where the row was not written twice in
	// the last second. So all is settled soon after posting ends.
	quietAfter = 150 * time.Millisecond
	// maxWaiting bounds how many counts wait. Beyond it, they are written at once.
	maxWaiting = 8000
	// forgetPace is how long an event that waits is remembered after it was due. Its consumer has lost it by then.
	forgetPace = 10 * time.Second
)

// pace is when an item's count may be written.
type pace struct {
	wrote time.Time        // when it was written last
	next  time.Time        // a second after that, and later where it was written early
	since time.Time        // when an event was first superseded after the last write; zero: none was
	waits *stream.Delivery // the newest event, which waits until then
}

// paces are those of the items of one partition that had events a short while ago. The caller sees to it that no two goroutines
// use them at once.
type paces struct {
	of      map[item.ID]*pace
	waiting int       // how many have an event that waits
	last    time.Time // when the last new event was read
	pruned  time.Time
}

func (p *paces) get(id item.ID) *pace {
	if p.of == nil {
		p.of = map[item.ID]*pace{}
	}
	one := p.of[id]
	if one == nil {
		one = &pace{}
		p.of[id] = one
	}
	return one
}

// returned reports whether an event is back that has waited.
func (p *paces) returned(id item.ID, d *stream.Delivery) bool {
	one := p.of[id]
	if one == nil || one.waits != d {
		return false
	}
	p.drop(one)
	return true
}

// superseded returns the event of the item that waits, where it is older than this one, and forgets it; else nil.
func (p *paces) superseded(id item.ID, by *stream.Delivery) *stream.Delivery {
	one := p.of[id]
	if one == nil || one.waits == nil || !newer(by, one.waits) {
		return nil
	}
	d := one.waits
	p.drop(one)
	return d
}

func (p *paces) drop(one *pace) {
	one.waits = nil
	p.waiting--
}

// waits notes that an event waits.
func (p *paces) waits(id item.ID, d *stream.Delivery) {
	one := p.get(id)
	if one.waits == nil {
		p.waiting++
	}
	one.waits = d
}

// wait returns how long the newest event of an item must wait until its count may be written.
func (p *paces) wait(id item.ID, now time.Time) time.Duration {
	one := p.of[id]
	if one == nil || p.waiting >= maxWaiting {
		return 0
	}
	next := one.wrote.Add(whilePosted)
	if p.quiet(now) {
		next = one.next.Add(-everySecond)
	}
	return next.Sub(now)
}

// quiet reports whether posting seems to have ended.
func (p *paces) quiet(now time.Time) bool { return now.Sub(p.last) >= quietAfter }

// overdue reports whether a superseded event is to be written all the same. It is where no count was written for a second since
// the first event was superseded. While posts come all the time, each event is superseded when it is read.
func (p *paces) overdue(id item.ID, now time.Time) bool {
	one := p.get(id)
	if one.since.IsZero() {
		one.since = now
	}
	return now.Sub(one.since) >= overdueAfter && !now.Before(one.next)
}

// wrote notes that the count of an item was written.
func (p *paces) wrote(id item.ID, now time.Time) {
	one := p.get(id)
	if one.next.Before(now) {
		one.next = now
	}
	one.next, one.wrote, one.since = one.next.Add(everySecond), now, time.Time{}
}

// posted notes that new events were read, and forgets items that have none.
func (p *paces) posted(now time.Time) {
	p.last = now
	if now.Sub(p.pruned) < everySecond {
		return
	}
	p.pruned = now
	for id, one := range p.of {
		old := now.Sub(one.next)
		if old > forgetPace && one.waits != nil { // its consumer has lost it
			p.drop(one)
		}
		if old > whilePosted && one.waits == nil && (one.since.IsZero() || now.Sub(one.since) > forgetPace) {
			delete(p.of, id)
		}
	}
}

// hurry lets the events begin that wait, where their counts may be written once posting has ended.
func (p *paces) hurry(now time.Time) {
	for id, one := range p.of {
		if one.waits != nil && p.wait(id, now) <= 0 {
			one.waits.Hurry()
		}
	}
}
