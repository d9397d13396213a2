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
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/api/internal/viewcount"
	"github.com/tierflow/tierflow/shared/testenv/localserver"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// A part of the counts is less than all of them. The api would demote items by it.
func TestNoCountIsPostedWhileAPartOfTheCountsCannotBeRead(t *testing.T) {
	posted := make(chan string, 100)
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		posted <- string(body)
		fmt.Fprint(w, `{"accepted":1,"refused":[],"refused_total":0}`)
	}))
	defer api.Close()
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

	u, err := url.Parse(api.URL)
	if err != nil {
		t.Fatal(err)
	}
	port, err := localserver.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	admin := fmt.Sprintf("127.0.0.1:%d", port)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan int)
	go func() {
		done <- serve(ctx, values{poster: viewcount.Poster{API: client.New(u, "")}, dir: dir, window: 24 * time.Hour, interval: 5 * time.Millisecond,
			adminListen: admin, log: zaptest.NewLogger(t)})
	}()
	defer func() {
		cancel()
		if code := <-done; code != 0 {
			t.Errorf("exit code %d", code)
		}
	}()
	testserver.Eventually(t, "/readyz says what the counter cannot read", time.Minute, func() error {
		resp, err := http.Get("http://" + admin + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(body), "nonsense") {
			return fmt.Errorf("/readyz says %s %s (%v)", resp.Status, body, err)
		}
		return nil
	})
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

func TestTheCounterRefusesWhatItDoesNotKnow(t *testing.T) {
	for _, args := range [][]string{{"nonsense"}, {"serve", "nonsense"}, {"healthcheck", "nonsense"}, {"--nonsense"}, {"--url", "localhost:5000"}, {"--view-window", "soon"}} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), args, &out, &errs); code != 2 || out.Len() > 0 || !strings.HasPrefix(errs.String(), "counter: ") {
			t.Errorf("counter %q: exit code %d, %q, %q", args, code, out.String(), errs.String())
		}
	}
}
