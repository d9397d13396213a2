package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/api/internal/viewcount"
	"github.com/tierflow/tierflow/shared/testenv/localserver"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// startAPI starts an api that accepts every post, and sends the bodies of the posts to posted.
func startAPI(t *testing.T) (address *url.URL, posted <-chan string) {
	t.Helper()
	bodies := make(chan string, 1000)
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		bodies <- string(body)
		fmt.Fprint(w, `{"accepted":1,"refused":[],"refused_total":0}`)
	}))
	t.Cleanup(api.Close)
	address, err := url.Parse(api.URL)
	if err != nil {
		t.Fatal(err)
	}
	return address, bodies
}

// start starts a counter of the views in a folder, until the test ends. says waits until its /readyz has a status and words.
func start(t *testing.T, api *url.URL, dir string, read func() viewcount.Reading) (says func(status int, words string)) {
	t.Helper()
	port, err := localserver.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	admin := fmt.Sprintf("127.0.0.1:%d", port)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan int)
	go func() {
		done <- serve(ctx, values{poster: viewcount.Poster{API: client.New(api, "")}, dir: dir, window: 24 * time.Hour, interval: 5 * time.Millisecond,
			adminListen: admin, log: zaptest.NewLogger(t), read: read})
	}()
	t.Cleanup(func() {
		cancel()
		if code := <-done; code != 0 {
			t.Errorf("exit code %d", code)
		}
	})
	return func(status int, words string) {
		t.Helper()
		testserver.Eventually(t, words, time.Minute, func() error {
			resp, err := http.Get("http://" + admin + "/readyz")
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != status || !strings.Contains(string(body), words) {
				return fmt.Errorf("/readyz says %s %s (%v)", resp.Status, body, err)
			}
			return nil
		})
	}
}

// A part of the counts is less than all of them. The api would demote items by it.
func TestNoCountIsPostedWhileAPartOfTheCountsCannotBeRead(t *testing.T) {
	api, posted := startAPI(t)
	dir := t.TempDir()
	hour := time.Now().Truncate(time.Hour)
	counts := func(ago time.Duration, body string) {
		t.Helper()
		name := fmt.Sprintf("%d-%d.counts", hour.Add(-ago).UnixMilli(), time.Hour.Milliseconds())
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	counts(3*time.Hour, "7 5\n")
	counts(2*time.Hour, "nonsense\n")

	says := start(t, api, dir, viewcount.ReadMachine)
	says(http.StatusServiceUnavailable, "nonsense")
	counts(2*time.Hour, "7 3\n")
	select {
	case got := <-posted:
		if want := "{\"cid\":7,\"count\":8}\n"; got != want {
			t.Errorf("the first post is %q, want %q", got, want)
		}
	case <-time.After(time.Minute):
		t.Error("nothing was posted")
	}
}

// With a clock that is a year ahead, every view is too old to count.
func TestACounterWhoseClockIsSetPostsNothingAndKeepsItsLog(t *testing.T) {
	api, posted := startAPI(t)
	dir := t.TempDir()
	views := filepath.Join(dir, "views-1.log")
	if err := os.WriteFile(views, fmt.Appendf(nil, "%d.0 7 viewer\n", time.Now().Unix()), 0o600); err != nil {
		t.Fatal(err)
	}
	var ahead atomic.Int64
	read := func() viewcount.Reading {
		r := viewcount.ReadMachine()
		r.Wall = r.Wall.Add(time.Duration(ahead.Load()))
		return r
	}
	says := start(t, api, dir, read)
	if got := <-posted; got != "{\"cid\":7,\"count\":1}\n" {
		t.Fatal(got)
	}
	const year = 365 * 24 * time.Hour
	for _, by := range []time.Duration{year, -year} {
		ahead.Store(int64(by))
		says(http.StatusServiceUnavailable, "the clock was set by")
		ahead.Store(0)
		says(http.StatusOK, "ready")
	}
	if len(posted) > 0 {
		t.Errorf("posted: %s", <-posted)
	}
	if _, err := os.Stat(views); err != nil {
		t.Error(err)
	}
}

func TestTheCounterRefusesWhatItDoesNotKnow(t *testing.T) {
	for _, args := range [][]string{{"nonsense"}, {"serve", "nonsense"}, {"healthcheck", "nonsense"}, {"--nonsense"}, {"--url", "localhost:5000"}, {"--view-window", "soon"}} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), args, &out, &errs); code != 2 || out.Len() > 0 || !strings.HasPrefix(errs.String(), "counter: ") {
			t.Errorf("counter %q: exit code %d, %q, %q", args, code, out.String(), errs.String())
		}
	}
}
