package viewcount_test

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/api/internal/viewcount"
	"github.com/tierflow/tierflow/shared/item"
)

// noon begins a period of every length that divides an hour.
var noon = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

const hour = time.Hour // a period of a window of a day

func see(w *viewcount.Window, at time.Time, id item.ID, viewers ...string) {
	for _, v := range viewers {
		w.See(at, id, []byte(v))
	}
}

// counts returns all counts that have changed since the last call.
func counts(w *viewcount.Window) map[item.ID]item.Count {
	m := map[item.ID]item.Count{}
	for _, v := range w.Changed() {
		m[v.CID] = v.Count
		w.Told(v.CID)
	}
	return m
}

func check(t *testing.T, what string, w *viewcount.Window, want map[item.ID]item.Count) {
	t.Helper()
	if got := counts(w); !reflect.DeepEqual(got, want) {
		t.Errorf("%s: %v has changed, want %v", what, got, want)
	}
}

type changes = map[item.ID]item.Count

func TestAViewerCountsOnceAPeriodHoweverManyRequestsItMakes(t *testing.T) {
	w := viewcount.NewWindow(24 * hour)
	w.Slide(noon)
	see(w, noon, 7, "a", "a", "b", "a")
	see(w, noon.Add(59*time.Minute), 7, "a")
	see(w, noon, 8, "a")
	check(t, "at noon", w, changes{7: 2, 8: 1})
	see(w, noon.Add(30*time.Minute), 7, "b")
	check(t, "the same viewer once more", w, changes{})
	w.Slide(noon.Add(hour))
	see(w, noon.Add(hour), 7, "a")
	check(t, "in the next period", w, changes{7: 3})
}

func TestACountFallsWhenItsViewsLeaveTheWindow(t *testing.T) {
	w := viewcount.NewWindow(24 * hour)
	w.Slide(noon)
	see(w, noon, 7, "a", "b")
	w.Slide(noon.Add(hour))
	see(w, noon.Add(hour), 7, "c")
	check(t, "two periods", w, changes{7: 3})
	w.Slide(noon.Add(23 * hour))
	check(t, "both are in the window", w, changes{})
	w.Slide(noon.Add(24 * hour))
	check(t, "the first has left", w, changes{7: 1})
	w.Slide(noon.Add(25 * hour))
	check(t, "both have left", w, changes{7: 0})
}

func TestAChangeThatWasNotReportedIsReportedWithTheLatestCount(t *testing.T) {
	w := viewcount.NewWindow(24 * hour)
	w.Slide(noon)
	see(w, noon, 7, "a")
	if got := w.Changed(); len(got) != 1 || got[0] != (client.View{CID: 7, Count: 1}) {
		t.Fatal(got)
	}
	see(w, noon, 7, "b") // the count 0 was not reported
	check(t, "later", w, changes{7: 2})
}

// folder is a log of views that a web server writes.
type folder struct {
	t   *testing.T
	dir string
}

func (f folder) write(at time.Time, lines ...string) {
	f.t.Helper()
	name := filepath.Join(f.dir, "views-"+at.Format("2006-01-02T15")+".log")
	file, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, line := range lines {
		if _, err := io.WriteString(file, line); err != nil {
			f.t.Fatal(err)
		}
	}
	if err := file.Close(); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Chtimes(name, at, at); err != nil {
		f.t.Fatal(err)
	}
}

func (f folder) view(at time.Time, id int, viewer string) {
	f.t.Helper()
	f.write(at, fmt.Sprintf("%d.%03d %d %s\n", at.Unix(), at.Nanosecond()/1e6, id, viewer))
}

func (f folder) open() (*viewcount.Log, *viewcount.Window) {
	f.t.Helper()
	return f.openAt(noon.Add(1000 * hour))
}

func (f folder) openAt(now time.Time) (*viewcount.Log, *viewcount.Window) {
	f.t.Helper()
	w := viewcount.NewWindow(24 * hour)
	l, err := viewcount.OpenLog(f.dir, w, now)
	if err != nil {
		f.t.Fatal(err)
	}
	return l, w
}

func (f folder) read(l *viewcount.Log, now time.Time) {
	f.t.Helper()
	if err := l.Read(now); err != nil {
		f.t.Fatal(err)
	}
}

func (f folder) files() (names []string) {
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestALineCountsWhenAllOfItIsThere(t *testing.T) {
	f := folder{t, t.TempDir()}
	l, w := f.open()
	f.write(noon, fmt.Sprintf("%d.5 7 10.0.0.1 Mozilla/5.0 (a b)\n%d.5 8 10.0", noon.Unix(), noon.Unix()))
	f.read(l, noon)
	check(t, "half a line", w, changes{7: 1})
	f.write(noon, ".0.2 x\n", "nonsense\n", "1 2\n", "1.0 0 x\n", strings.Repeat("x", 100_000)+"\n", fmt.Sprintf("%d.5 9 y\n", noon.Unix()))
	f.read(l, noon)
	check(t, "the rest of it", w, changes{8: 1, 9: 1})
	if l.Malformed != 4 {
		t.Errorf("%d malformed lines", l.Malformed)
	}
}

// The log is the state: a counter that restarts at any time, once or many times, comes to the same counts.
func TestARestartChangesNoCount(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	f := folder{t, t.TempDir()}
	steady, w := f.open()
	restarted, v := f.open()
	for at := noon; at.Before(noon.Add(60 * hour)); at = at.Add(time.Duration(1+random.IntN(20)) * time.Minute) {
		if at.Before(noon.Add(30 * hour)) {
			f.view(at, 1+random.IntN(5), fmt.Sprint("viewer ", random.IntN(4)))
		}
		if random.IntN(10) == 0 {
			restarted, v = f.open()
			counts(w) // a new counter reports everything
		}
		f.read(steady, at)
		f.read(restarted, at)
		was := counts(w)
		is := counts(v)
		for id, n := range was {
			if is[id] != n {
				t.Fatalf("%v after noon: item %s has %s views, and %s after a restart", at.Sub(noon), id, n, is[id])
			}
		}
	}
}

func TestFilesThatNoCountDependsOnAreRemoved(t *testing.T) {
	f := folder{t, t.TempDir()}
	l, w := f.open()
	for h := range 72 {
		at := noon.Add(time.Duration(h) * hour)
		f.view(at, 7, "a")
		f.read(l, at.Add(time.Minute))
		counts(w)
		if err := l.Tidy(); err != nil {
			t.Fatal(err)
		}
		if n := len(f.files()); n > 24+4 {
			t.Fatalf("after %d hours there are %d files: %v", h, n, f.files())
		}
	}
	f.read(l, noon.Add(72*hour+25*hour))
	check(t, "nobody has watched for a day", w, changes{7: 0})
	if err := l.Tidy(); err != nil {
		t.Fatal(err)
	}
	if left := f.files(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestACounterThatWasAwayForLongReportsThatNobodyWatchesAnyMore(t *testing.T) {
	f := folder{t, t.TempDir()}
	l, _ := f.open()
	f.view(noon, 7, "a") // becomes a file of counts
	f.read(l, noon.Add(2*hour))
	f.view(noon.Add(2*hour), 8, "a") // stays in the log
	l, w := f.open()
	f.read(l, noon.Add(100*hour))
	check(t, "after four days", w, changes{7: 0, 8: 0})
}

// api answers posts of counts as the test sets it up.
type api struct {
	*httptest.Server
	posted []map[string]int64 // the lines of the last post
	key    string
}

func newAPI(t *testing.T, status int, body string) *api {
	a := &api{}
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.posted, a.key = nil, r.Header.Get("Authorization")
		for d := json.NewDecoder(r.Body); d.More(); {
			var v map[string]int64
			if err := d.Decode(&v); err != nil {
				t.Error(err)
				break
			}
			a.posted = append(a.posted, v)
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}))
	t.Cleanup(a.Close)
	return a
}

func (a *api) poster(t *testing.T) *viewcount.Poster {
	u, err := url.Parse(a.URL)
	if err != nil {
		t.Fatal(err)
	}
	return &viewcount.Poster{API: client.New(u, "secret")}
}

func three() *viewcount.Window {
	w := viewcount.NewWindow(24 * hour)
	w.Slide(noon)
	for id := range item.ID(3) {
		see(w, noon, id+1, "a")
	}
	return w
}

func TestCountsArePostedWithTheKeyAndOnlyWhenTheyHaveChanged(t *testing.T) {
	w := three()
	a := newAPI(t, http.StatusOK, `{"accepted":3,"refused":[],"refused_total":0}`)
	told, refused, err := a.poster(t).Post(t.Context(), w)
	if told != 3 || refused != 0 || err != nil || len(a.posted) != 3 || a.posted[2]["cid"] != 3 || a.posted[2]["count"] != 1 {
		t.Errorf("%d told, %d refused, %v: %v", told, refused, err, a.posted)
	}
	if a.key != "Bearer secret" {
		t.Errorf("the key was %q", a.key)
	}
	check(t, "after the post", w, changes{})
}

func TestAnItemThatTheApiDoesNotKnowIsNotPostedAgain(t *testing.T) {
	w := three()
	a := newAPI(t, http.StatusOK, `{"accepted":2,"refused":[{"line":2,"type":"/problems/unknown-content","detail":"x"}],"refused_total":1}`)
	told, refused, err := a.poster(t).Post(t.Context(), w)
	if told != 2 || refused != 1 || err != nil {
		t.Errorf("%d told, %d refused, %v", told, refused, err)
	}
	check(t, "after the post", w, changes{})
}

func TestCountsThatTheApiCouldNotTakeArePostedAgain(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		body   string
		left   changes
	}{
		"it is away for one line":   {200, `{"accepted":2,"refused":[{"line":2,"type":"/problems/unavailable","detail":"MySQL"}]}`, changes{2: 1}},
		"it stops in the middle":    {503, `{"detail":"Redis","accepted":1,"refused":[],"lines_done":1}`, changes{2: 1, 3: 1}},
		"it is full":                {503, `{"detail":"backlog"}`, changes{1: 1, 2: 1, 3: 1}},
		"its key was taken away":    {401, `{"detail":"no such key"}`, changes{1: 1, 2: 1, 3: 1}},
		"something else is there":   {200, `<html>`, changes{1: 1, 2: 1, 3: 1}},
		"something else is broken":  {502, `<html>`, changes{1: 1, 2: 1, 3: 1}},
		"it answers for more lines": {503, `{"detail":"x","lines_done":9}`, changes{}},
	} {
		t.Run(name, func(t *testing.T) {
			w := three()
			if _, _, err := newAPI(t, c.status, c.body).poster(t).Post(t.Context(), w); err == nil {
				t.Error("there was no error")
			}
			check(t, "after the post", w, c.left)
		})
	}
}
