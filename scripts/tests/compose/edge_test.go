package compose_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// fetch requests an item, or a range of it, from the edge, as a viewer does.
func (w *world) fetch(ctx context.Context, id item.ID, viewer, bytesRange string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+w.edge+"/v1/contents/"+id.String()+"/file", nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", viewer)
	want := http.StatusOK
	if bytesRange != "" {
		req.Header.Set("Range", "bytes="+bytesRange)
		want = http.StatusPartialContent
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != want {
		err = fmt.Errorf("item %s: %s", id, resp.Status)
	}
	return b, err
}

func TestAnItemMovesUpWhileItIsWatchedAndDownWhenItIsNot(t *testing.T) {
	w.begin(t)
	const silver, gold = 50, 100 // above the number of steps of the window: one viewer alone never gets there
	w.levels(t, silver, gold)
	w.profile(t, "edge", "edge", "counter")
	w.checkHardened(t, "edge", "counter")
	ids := w.add(t, "bronze", 3, sampleSize)
	watched, dragged, ignored := ids[0], ids[1], ids[2]
	row := must[catalog.Row](t)(w.Catalog.Row(t.Context(), watched))
	whole := must[[]byte](t)(os.ReadFile(filepath.Join(w.local("/srv/tierflow/bronze"), row.Filename)))

	// One viewer reads all the time, the whole file and a part of it. Others come and go.
	ctx, cancel := context.WithCancel(t.Context())
	var viewers sync.WaitGroup
	var reads atomic.Int64
	defer func() { cancel(); viewers.Wait() }()
	read := func(viewer, bytesRange string, want []byte) {
		time.Sleep(2 * time.Millisecond) // a stream of views, not a load test
		b, err := w.fetch(ctx, watched, viewer, bytesRange)
		if ctx.Err() == nil && (err != nil || !bytes.Equal(b, want)) {
			t.Errorf("%s read %d bytes of the watched item: %v", viewer, len(b), err)
			cancel()
		}
		reads.Add(1)
	}
	viewers.Go(func() {
		for ctx.Err() == nil {
			read("one who stays", "", whole)
			read("one who stays", "100-299", whole[100:300])
		}
	})
	crowd, leave := context.WithCancel(ctx)
	viewers.Go(func() {
		for n := 0; crowd.Err() == nil; n++ {
			read(fmt.Sprint("visitor ", n), "", whole)
		}
	})
	level := func(want string) {
		t.Helper()
		wait, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		must[catalog.Row](t)(w.WaitLevel(wait, watched, want))
	}
	more(t, "read", &reads, 20)
	w.crash(t, w.containers(t, "counter")[0]) // the counter comes back, and counts what was logged meanwhile
	level("gold")
	for range 5 * silver { // one viewer who moves the slider back and forth
		if _, err := w.fetch(ctx, dragged, "one who drags", "0-99"); err != nil {
			t.Fatal(err)
		}
	}
	testserver.Eventually(t, "the viewer is counted", patience, func() error {
		text, err := w.Redis.Get(t.Context(), w.Keys.State(dragged)).Result()
		if err != nil {
			return err
		}
		st, err := state.Parse(text)
		if err == nil && st.Count >= silver {
			t.Errorf("one viewer counts as %s views", st.Count)
		}
		return err
	})
	leave()
	level("bronze")
	cancel()
	viewers.Wait()
	t.Logf("%d reads", reads.Load())
	for _, id := range []item.ID{dragged, ignored} {
		if moves := must[int](t)(w.count(t.Context(), "SELECT COUNT(*) FROM update_history WHERE cid = ?", id)); moves > 0 {
			t.Errorf("item %s was moved %d times", id, moves)
		}
	}
}

func TestTheEdgeServesItemsAndNothingElse(t *testing.T) {
	w.begin(t)
	w.profile(t, "edge", "edge", "counter")
	id := w.add(t, "bronze", 1, sampleSize)[0]
	for _, c := range []struct {
		method, path string
		want         int
	}{
		{http.MethodGet, "/v1/contents/" + id.String() + "/file", 200},
		{http.MethodHead, "/v1/contents/" + id.String() + "/file", 200},
		{http.MethodGet, "/v1/contents/" + id.String() + "/file?token=x", 200},
		{http.MethodGet, "/v1/contents/" + id.String() + "/file/part", 404},
		{http.MethodGet, "/v1/contents/999999/file", 404},
		{http.MethodGet, "/v1/contents/" + id.String() + "/file/../location", 404},
		{http.MethodPost, "/v1/contents/" + id.String() + "/file", 403},
		{http.MethodGet, "/v1/contents/" + id.String(), 404},
		{http.MethodDelete, "/v1/contents/" + id.String(), 404},
		{http.MethodGet, "/v1/contents", 404},
		{http.MethodGet, "/v1/levels", 404},
		{http.MethodPost, "/v1/pause", 404},
		{http.MethodGet, "/tiers/bronze/.tierflow/tier.json", 404},
		{http.MethodGet, "/", 404},
	} {
		req := must[*http.Request](t)(http.NewRequestWithContext(t.Context(), c.method, "http://"+w.edge, strings.NewReader("")))
		req.URL.Opaque = "//" + w.edge + c.path // unchanged, with its dots
		resp := must[*http.Response](t)(http.DefaultClient.Do(req))
		_ = resp.Body.Close()
		if resp.StatusCode != c.want {
			t.Errorf("%s %s: %d, want %d", c.method, c.path, resp.StatusCode, c.want)
		}
	}
	// The api gets a new container. The web server finds it at its new address.
	must[string](t)(w.compose("up", "--detach", "--wait", "--no-deps", "--force-recreate", "api"))
	testserver.Eventually(t, "the edge finds the api", patience, func() error {
		_, err := w.fetch(t.Context(), id, "visitor", "")
		return err
	})
}
