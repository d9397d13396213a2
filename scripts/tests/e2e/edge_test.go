package e2e_test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// questions returns how many requests have asked the api which file to send.
func (w *world) questions() (n int) {
	w.t.Helper()
	metrics, err := w.Client().Get(w.t.Context(), "/metrics", nil)
	w.must("read the metrics", err)
	for line := range bytes.Lines(metrics) {
		name, value, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
		if strings.HasPrefix(name, `tierflow_http_requests_total{route="/v1/contents/:cid/file`) {
			var answered int
			_, err := fmt.Sscan(value, &answered)
			w.must("read "+name, err)
			n += answered
		}
	}
	return n
}

func TestTheWebServerAnswersWithAFileOr404AfterOneOrTwoQuestions(t *testing.T) {
	w := start(t, options{})
	w.must("add", w.Add(t.Context(),
		stack.Sample{ID: 1, Filename: "a?b.mp4", Level: "bronze", Size: 1000},
		stack.Sample{ID: 2, Filename: "hls", Level: "gold", Parts: map[string]int64{"index.m3u8": 100, "low/1.ts": 5000}},
		stack.Sample{ID: 3, Filename: "lost.mp4", Level: "silver", Size: 10}))
	w.must("lose a file", os.Remove(filepath.Join(w.tier("silver"), "lost.mp4")))
	web, views := w.nginx()
	var viewed []string
	for _, c := range []struct {
		path      string
		status    int
		questions int
		viewed    string // the cid in the log of views
	}{
		{"1/file", http.StatusOK, 1, "1"},
		{"1/file?", http.StatusOK, 1, "1"},
		{"1/file?token=x&token=y", http.StatusOK, 1, "1"},
		{"2/file/index.m3u8?_HLS_msn=273&_HLS_part=2", http.StatusOK, 1, "2"},
		{"2/file/low/1.ts", http.StatusOK, 1, "2"},
		{"1/file/part", http.StatusNotFound, 2, ""}, // it is a file, not a folder
		{"2/file/low/2.ts", http.StatusNotFound, 2, ""},
		{"2/file/low/2.ts?token=x", http.StatusNotFound, 2, ""},
		{"3/file", http.StatusNotFound, 2, ""},
		{"4/file", http.StatusNotFound, 1, ""}, // there is no such item
		{"4/file?token=x", http.StatusNotFound, 1, ""},
	} {
		before := w.questions()
		if _, err := get(t.Context(), http.DefaultClient, "http://"+web+"/v1/contents/"+c.path, "", c.status); err != nil {
			t.Error(err)
		}
		if n := w.questions() - before; n != c.questions {
			t.Errorf("%s: nginx asked the api %d times, want %d", c.path, n, c.questions)
		}
		if c.viewed != "" {
			viewed = append(viewed, c.viewed)
		}
	}
	// nginx logs a request after it has answered it.
	testserver.Eventually(t, "the log has every view and nothing else", patience, func() error {
		logs, err := filepath.Glob(filepath.Join(views, "views-*.log")) // two, when the hour has just changed
		if err != nil {
			return err
		}
		var logged []string
		for _, name := range logs {
			b, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(b)) {
				logged = append(logged, strings.Fields(line)[1])
			}
		}
		if !slices.Equal(logged, viewed) {
			return fmt.Errorf("the log has views of %v, want %v", logged, viewed)
		}
		return nil
	})
}
