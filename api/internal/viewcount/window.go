// Package viewcount counts who views what, and tells the api: the loop from a web server's log back to the tiers.
//
//	log of views ──Log──▶ Window ──Poster──▶ POST /v1/views
//
// A view is one viewer who has read some of one content within one period of the clock. However many ranges, segments or
// playlists that took, it is one; whoever watches on into the next period is counted there as well, because that is what a
// tier has to bear. A content's count is the sum over the periods of a window that slides: it rises while the content is
// watched, and falls when nobody watches it any more. Nothing depends on the order of the lines, so that reading a log once
// more leads to the same counts.
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
	// periods is how many a window has: it slides in steps of so many parts.
	periods = 24
	// slack is how much later than its time a view may be told.
	slack = 10 * time.Second
	// maxViewers bounds the viewers that are told apart, and maxCounts the counts that are held. What is beyond is not
	// counted: some 150 MB are enough for everything.
	maxViewers = 1 << 21
	maxCounts  = 1 << 21
)

// Window counts the views of the latest time. It is for one goroutine.
type Window struct {
	period  time.Duration
	seed    maphash.Seed
	counts  map[int64]map[item.ID]item.Count // by period
	size    int                              // of all counts
	viewers map[int64]map[uint64]struct{}    // of the periods that are open
	known   int                              // all viewers
	total   map[item.ID]item.Count
	changed map[item.ID]struct{} // their total is not what it was when they were last told
	now     time.Time
	oldest  int64 // period of the window
	newest  int64
	closed  time.Time // what was before is decided

	NoRoom int64 // views that are not counted because too many are
}

// NewWindow makes a window of so much time, at least 24 ms.
func NewWindow(length time.Duration) *Window {
	return &Window{
		period: length / periods, seed: maphash.MakeSeed(), counts: map[int64]map[item.ID]item.Count{},
		viewers: map[int64]map[uint64]struct{}{}, total: map[item.ID]item.Count{}, changed: map[item.ID]struct{}{},
	}
}

func (w *Window) at(t time.Time) int64 { return t.UnixNano() / int64(w.period) }

// end is when a period is over.
func (w *Window) end(period int64) time.Time { return time.Unix(0, (period+1)*int64(w.period)) }

// See counts a view. What is older than the window says only that the content was known once: its count, which may be
// 0 now, is told again.
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
	_, _ = h.Write(viewer) // it never fails
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

// due are the open periods that were over for long enough at the last Slide, the oldest first.
func (w *Window) due() []int64 {
	var due []int64
	for _, period := range slices.Sorted(maps.Keys(w.viewers)) {
		if !w.end(period).Add(slack).After(w.now) {
			due = append(due, period)
		}
	}
	return due
}

// close ends a period: nothing is counted in it any more.
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

// Changed are the contents whose count has changed since it was last told, in order, and their counts.
func (w *Window) Changed() []client.View {
	views := make([]client.View, 0, len(w.changed))
	for _, id := range slices.Sorted(maps.Keys(w.changed)) {
		views = append(views, client.View{CID: id, Count: w.total[id]})
	}
	return views
}

// Told says that a content's count is known where it has to be, or that nobody wants to know it.
func (w *Window) Told(id item.ID) { delete(w.changed, id) }

// restore adds what a period that is over has counted. It may be longer or shorter than periods are now.
func (w *Window) restore(start time.Time, id item.ID, n item.Count) {
	w.add(w.at(start), id, n)
}

// open is when the oldest period begins that is still counted; now where there is none.
func (w *Window) open() time.Time {
	oldest := w.newest
	for period := range w.viewers {
		oldest = min(oldest, period)
	}
	return w.end(oldest - 1)
}
