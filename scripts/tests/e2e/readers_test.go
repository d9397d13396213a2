package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/testenv/child"
	"github.com/tierflow/tierflow/shared/testenv/localserver"
)

// served is an item that is read while it moves.
type served struct {
	id    item.ID
	name  string
	files map[string][]byte // by sub-path, "" for a file
}

// audience reads items in every possible way, for as long as they move.
type audience struct {
	t     *testing.T
	w     *world
	grace time.Duration
	items []served
	web   string // address of nginx

	reads [4]atomic.Int64 // by way
	late  atomic.Int64    // reads that came later than the grace, of an item that had moved on
	bad   atomic.Int64
}

var waysToRead = []string{"MySQL", "location", "nginx", "nginx, a range"}

// start starts the given number of readers of each kind. stop ends them.
func (a *audience) start(each int) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for way := range waysToRead {
		for range each {
			client := &http.Client{Transport: &http.Transport{}} // a client of its own keeps its connections
			wg.Go(func() {
				defer client.CloseIdleConnections()
				for ctx.Err() == nil && a.bad.Load() < 10 {
					a.read(ctx, client, way)
				}
			})
		}
	}
	stop = func() { cancel(); wg.Wait() }
	a.t.Cleanup(stop)
	return stop
}

func (a *audience) read(ctx context.Context, client *http.Client, way int) {
	s := a.items[rand.IntN(len(a.items))]
	sub, want := "", []byte(nil)
	for sub, want = range s.files { // any of them
		break
	}
	began := time.Now()
	before, err := lookUp(a.w.DB(), s.id)
	if err != nil {
		a.fail("look up item %s: %v", s.id, err)
		return
	}
	var got []byte
	switch waysToRead[way] {
	case "MySQL":
		got, err = os.ReadFile(filepath.Join(before.path, s.name, sub))
	case "location":
		var path string
		if path, err = a.location(ctx, client, s.id); err == nil {
			got, err = os.ReadFile(filepath.Join(path, sub))
		}
	case "nginx":
		got, err = a.fetch(ctx, client, s, sub, "", http.StatusOK)
	case "nginx, a range":
		from := rand.IntN(len(want))
		to := from + rand.IntN(len(want)-from)
		got, err = a.fetch(ctx, client, s, sub, fmt.Sprintf("bytes=%d-%d", from, to), http.StatusPartialContent)
		want = want[from : to+1]
	}
	took := time.Since(began)
	if ctx.Err() != nil {
		return
	}
	a.reads[way].Add(1)
	if err == nil && bytes.Equal(got, want) {
		return
	}
	after, lerr := lookUp(a.w.DB(), s.id)
	if lerr == nil && after != before && took > a.grace {
		a.late.Add(1)
		return
	}
	a.fail("by %s, item %s (%q, %q) was not found whole %v after the look-up: %v; %d bytes of %d; the row was %+v and is %+v (%v)",
		waysToRead[way], s.id, s.name, sub, took, err, len(got), len(want), before, after, lerr)
}

func (a *audience) fail(format string, args ...any) {
	a.bad.Add(1)
	a.t.Errorf(format, args...)
}

func (a *audience) location(ctx context.Context, client *http.Client, id item.ID) (path string, err error) {
	b, err := get(ctx, client, "http://"+a.w.API.Addr+"/v1/contents/"+id.String()+"/location", "", http.StatusOK)
	if err != nil {
		return "", err
	}
	var l struct {
		Path string `json:"path"`
	}
	return l.Path, json.Unmarshal(b, &l)
}

func (a *audience) fetch(ctx context.Context, client *http.Client, s served, sub, bytesRange string, status int) ([]byte, error) {
	address := "http://" + a.web + "/v1/contents/" + s.id.String() + "/file"
	for _, part := range strings.Split(sub, "/") {
		if sub != "" {
			address += "/" + url.PathEscape(part)
		}
	}
	return get(ctx, client, address, bytesRange, status)
}

func get(ctx context.Context, client *http.Client, address, bytesRange string, status int) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	if bytesRange != "" {
		req.Header.Set("Range", bytesRange)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != status {
		err = fmt.Errorf("GET %s: %s, want %d", address, resp.Status, status)
	}
	return b, err
}

// nginx starts a web server in front of the stack, as docs/nginx.conf describes it. It returns the web server's address and
// the folder of its log of views.
func (w *world) nginx() (addr, views string) {
	w.t.Helper()
	program, err := exec.LookPath("nginx")
	w.must("find nginx (Debian's nginx-light)", err)
	root, err := stack.Root()
	w.must("find the clone", err)
	conf, err := os.ReadFile(filepath.Join(root, "docs/nginx.conf"))
	w.must("read the configuration", err)
	port, err := localserver.FreePort()
	w.must("find a port", err)
	addr = fmt.Sprintf("127.0.0.1:%d", port)
	dir := w.t.TempDir()
	for _, folder := range []string{"tmp", "views"} {
		w.must("make a folder", os.Mkdir(filepath.Join(dir, folder), 0o755))
	}
	text := strings.NewReplacer("127.0.0.1:5000", w.API.Addr, "127.0.0.1:8080", addr, "/srv/tierflow/bronze/", w.tier("bronze")+"/",
		"/srv/tierflow/silver/", w.tier("silver")+"/", "/srv/tierflow/gold/", w.tier("gold")+"/").Replace(string(conf))
	if os.Getuid() == 0 {
		text = "user root;\n" + text // only root can read the test's folders
	}
	file := filepath.Join(dir, "nginx.conf")
	w.must("write the configuration", os.WriteFile(file, []byte(text), 0o644))
	p := child.New(child.Options{Name: "nginx", Log: filepath.Join(dir, "output.log"),
		Command: func() *exec.Cmd { return exec.Command(program, "-p", dir, "-c", file, "-g", "daemon off;") },
		Ready: func(ctx context.Context, _ int) error {
			_, err := get(ctx, http.DefaultClient, "http://"+addr+"/", "", http.StatusNotFound) // nothing is there
			return err
		}})
	w.must("start nginx", p.Start(w.t.Context()))
	w.t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			w.t.Error(err)
		}
		if b, err := os.ReadFile(filepath.Join(dir, "error.log")); w.t.Failed() {
			w.t.Logf("nginx: %s (%v)", b[max(0, len(b)-4000):], err)
		}
	})
	return addr, filepath.Join(dir, "views")
}

// hostile are names that a web server, or a URL, could misread.
var hostile = []string{`a b/ü%?#&;=+'"\.mp4`, "line\nbreak\ttab.mp4", "%2e%2e/%2f.mp4", "..hidden/...mp4", "a?b=c/&d#e.mp4", "http:/x//"[:7] + "@[::1]"}

func TestReadersOfItemsThatMoveAllTheTimeFindEveryFileWhole(t *testing.T) {
	const moves = 2000
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	a := &audience{t: t, grace: 2 * time.Second}
	a.w = start(t, options{relocators: 2, settings: map[string]string{
		"TIERFLOW_RELEASE_GRACE": a.grace.String(), "TIERFLOW_MIN_IDLE": "10s", "TIERFLOW_LOG_LEVEL": "warn"}})
	for n := range 24 {
		s := served{id: item.ID(n + 1), name: fmt.Sprintf("%d/x.mp4", n+1)}
		sample := stack.Sample{ID: s.id, Level: "bronze"}
		paths := []string{""}
		switch {
		case n < len(hostile):
			s.name = hostile[n]
			sample.Size = 10_000
		case n%3 == 0:
			sample.Parts = map[string]int64{"index.m3u8": 100, "low/a b%.ts": 50_000}
			paths = []string{"index.m3u8", "low/a b%.ts"}
		default:
			sample.Size = 1 + random.Int64N(300_000)
		}
		sample.Filename = s.name
		a.w.must("add", a.w.Add(t.Context(), sample))
		s.files = map[string][]byte{}
		for _, sub := range paths {
			b, err := os.ReadFile(filepath.Join(a.w.tier("bronze"), s.name, sub))
			a.w.must("read", err)
			s.files[sub] = b
		}
		a.items = append(a.items, s)
	}
	a.web, _ = a.w.nginx()
	stop := a.start(2)
	committed := func() (n int) {
		a.w.must("count the moves", a.w.DB().QueryRow("SELECT COUNT(*) FROM update_history").Scan(&n))
		return n
	}
	levels, wanted := []string{"bronze", "silver", "gold"}, map[item.ID]string{}
	arrived := func() (n int) {
		a.w.must("read the rows", a.w.Catalog.Each(t.Context(), func(row catalog.Row) error {
			if row.Level == wanted[row.ID] {
				n++
			}
			return nil
		}))
		return n
	}
	began := time.Now()
	for committed() < moves && !t.Failed() {
		var views []client.View
		for _, s := range a.items {
			level := random.IntN(len(levels))
			wanted[s.id] = levels[level]
			views = append(views, client.View{CID: s.id, Count: item.Count(level * 1000)})
		}
		a.w.must("post", a.w.PostAll(t.Context(), views))
		a.w.must("wait", until(patience, func() error { // most items are there: go on to the next batch
			if n := arrived(); n < len(a.items)*3/4 {
				return fmt.Errorf("%d of %d items are where they should be", n, len(a.items))
			}
			return nil
		}))
	}
	took := time.Since(began)
	stop()
	a.w.checkSettled()
	t.Logf("%d moves in %v; %d readers came later than the grace, to an item that had moved on", committed(), took.Round(time.Second), a.late.Load())
	for way, name := range waysToRead {
		t.Logf("by %s: %d reads", name, a.reads[way].Load())
		if a.reads[way].Load() < 100 {
			t.Errorf("by %s, there were only %d reads", name, a.reads[way].Load())
		}
	}
}
