// Package viewcount counts who views what and posts the counts to the api. It closes the loop from a web server's log back
// to the tiers.
//
//	log of views ──Log──▶ Window ──Poster──▶ POST /v1/views
//
// A view is one viewer who has read some part of one item within one period of the clock. It counts once, however many
// ranges, segments or playlists it took. A viewer who watches on into the next period counts there as well, because that is
// the load on the tier. An item's count is the sum over the periods of a sliding window. The count rises while the item is
// watched, and falls when nobody watches it any more. Nothing depends on the order of the lines, so reading a log again
// leads to the same counts.
package viewcount

import (
	"hash/maphash"
	"maps"
	"slices"
	"time"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/shared/item"
)

const (
	// periods is the number of periods in a window. The window slides by one period at a time.
	periods = 24
	// slack is how late a view may be reported.
	slack = 10 * time.Second
	// maxViewers is how many viewers are told apart, and maxCounts is how many counts are held. Views beyond these limits
	// are not counted. Some 150 MB are enough for everything.
	maxViewers = 1 << 21
	maxCounts  = 1 << 21
)

// Window counts the views of a sliding span of time. Only one goroutine may use it.
type Window struct {
	period  time.Duration
	seed    maphash.Seed
	counts  map[int64]map[item.ID]item.Count // by period
	size    int                              // the number of all counts
	viewers map[int64]map[uint64]struct{}    // of the periods that are open
	known   int                              // the number of all viewers
	total   map[item.ID]item.Count
	changed map[item.ID]struct{} // items whose total has changed since it was last reported
	now     time.Time
	oldest  int64 // oldest period of the window
	newest  int64
	closed  time.Time // everything before this time is final

	NoRoom int64 // views that are not counted because a limit is reached
}

// NewWindow makes a window of this length, at least 24 ms.
func NewWindow(length time.Duration) *Window {
	return &Window{
		period: length / periods, seed: maphash.MakeSeed(), counts: map[int64]map[item.ID]item.Count{},
		viewers: map[int64]map[uint64]struct{}{}, total: map[item.ID]item.Count{}, changed: map[item.ID]struct{}{},
	}
}

func (w *Window) at(t time.Time) int64 { return t.UnixNano() / int64(w.period) }

// end returns when a period is over.
func (w *Window) end(period int64) time.Time { return time.Unix(0, (period+1)*int64(w.period)) }

// See counts a view. A view that is older than the window counts nothing, but it shows that the item had a count once. The
// count of such an item, which may be 0 now, is reported again.
func (w *Window) See(at time.Time, id item.ID, viewer []byte) {
	period := w.at(at)
	if period > w.at(w.now.Add(slack)) {
		period = w.newest // a clock was set
	}
	if period < w.oldest {
		w.changed[id] = struct{}{}
		return
	}
	if at.Before(w.closed) {
		return
	}
	var h maphash.Hash
	h.SetSeed(w.seed)
	maphash.WriteComparable(&h, id)
	_, _ = h.Write(viewer) // Write never fails
	key := h.Sum64()
	if _, seen := w.viewers[period][key]; seen {
		return
	}
	if w.known >= maxViewers || w.size >= maxCounts && w.counts[period][id] == 0 {
		w.NoRoom++
		return
	}
	if w.viewers[period] == nil {
		w.viewers[period] = map[uint64]struct{}{}
	}
	w.viewers[period][key] = struct{}{}
	w.known++
	w.add(period, id, 1)
}

func (w *Window) add(period int64, id item.ID, n item.Count) {
	of := w.counts[period]
	if of == nil {
		of = map[item.ID]item.Count{}
		w.counts[period] = of
	}
	if of[id] == 0 {
		w.size++
	}
	of[id] += n
	w.total[id] += n
	w.changed[id] = struct{}{}
}

// Slide moves the window to now.
func (w *Window) Slide(now time.Time) {
	w.now = now
	w.newest = w.at(now)
	w.oldest = w.newest - periods + 1
	for period, of := range w.counts {
		if period >= w.oldest {
			continue
		}
		for id, n := range of {
			if w.total[id] -= n; w.total[id] == 0 {
				delete(w.total, id)
			}
			w.changed[id] = struct{}{}
		}
		w.size -= len(of)
		delete(w.counts, period)
	}
	for period := range w.viewers {
		if period < w.oldest {
			w.forget(period)
		}
	}
}

// due returns the open periods that had ended long enough before the last Slide, oldest first.
func (w *Window) due() []int64 {
	var due []int64
	for _, period := range slices.Sorted(maps.Keys(w.viewers)) {
		if !w.end(period).Add(slack).After(w.now) {
			due = append(due, period)
		}
	}
	return due
}

// close ends a period: no view counts in it any more.
func (w *Window) close(period int64) {
	w.forget(period)
	if end := w.end(period); end.After(w.closed) {
		w.closed = end
	}
}

func (w *Window) forget(period int64) {
	w.known -= len(w.viewers[period])
	delete(w.viewers, period)
}

// Changed returns the items whose counts have changed since they were last reported, by id, with their counts.
func (w *Window) Changed() []client.View {
	views := make([]client.View, 0, len(w.changed))
	for _, id := range slices.Sorted(maps.Keys(w.changed)) {
		views = append(views, client.View{CID: id, Count: w.total[id]})
	}
	return views
}

// Told records that an item's count was reported, or that it need not be.
func (w *Window) Told(id item.ID) { delete(w.changed, id) }

// restore adds a count of a period that is over. That period may be longer or shorter than periods are now.
func (w *Window) restore(start time.Time, id item.ID, n item.Count) {
	w.add(w.at(start), id, n)
}

// open returns when the oldest period begins that still counts views, or now where there is none.
func (w *Window) open() time.Time {
	oldest := w.newest
	for period := range w.viewers {
		oldest = min(oldest, period)
	}
	return w.end(oldest - 1)
}
