package e2e_test

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
)

func TestARisingCountPromotes(t *testing.T) {
	w := start(t, options{})
	p := w.add(7, "bronze", 1<<20)
	want := fmt.Sprintf(`{"cid": "7", "count": "1964", "target": "silver", "db_level": "bronze", "filename": %q, `+
		`"worker_id": null, "status": "update"}`, p.Filename)
	if got := w.post(7, 1964); got != want {
		t.Fatalf("the answer is\n%s\nwant\n%s", got, want)
	}
	w.waitLevel(7, "silver")
	if _, err := os.Stat(w.path(p, "silver")); err != nil {
		t.Fatalf("MySQL says silver: %v", err)
	}
	w.post(7, 2000)
	w.waitLevel(7, "gold")
	w.checkSettled()
	if n := w.moves(7); n != 2 {
		t.Fatalf("%d rows of history, want 2", n)
	}
}

func TestAFallingCountDemotes(t *testing.T) {
	w := start(t, options{})
	w.add(7, "gold", 1<<20)
	w.post(7, 0)
	w.waitLevel(7, "bronze")
	w.checkSettled()
}

func TestADirectoryMovesAsAUnit(t *testing.T) {
	w := start(t, options{})
	w.must("add", w.Add(t.Context(), stack.Sample{ID: 3, Filename: "hls/concert", Level: "bronze",
		Parts: map[string]int64{"master.m3u8": 400, "low/0.ts": 200_000, "low/1.ts": 0, "high/0.ts": 1_000_000}}))
	w.post(3, 5000) // to another file system, where there is one
	w.waitLevel(3, "gold")
	w.post(3, 1000)
	w.waitLevel(3, "silver")
	w.post(3, 1) // on the same one
	w.waitLevel(3, "bronze")
	w.checkSettled()
}

func TestACountWithinTheRangeMovesNothing(t *testing.T) {
	w := start(t, options{})
	w.add(7, "silver", 100)
	if got := w.post(7, 1999); !strings.HasSuffix(got, `"status": "done"}`) {
		t.Fatalf("the answer is %s", got)
	}
	w.checkSettled()
	if n := w.moves(7); n != 0 {
		t.Fatalf("%d rows of history, want none", n)
	}
}

func TestAnUnknownContentIsRefusedAndLeavesNothing(t *testing.T) {
	w := start(t, options{})
	a, err := w.Post(t.Context(), 404, 5000)
	w.must("post", err)
	if a.Status != http.StatusNotFound || !strings.Contains(a.Body, "/problems/unknown-content") {
		t.Fatalf("the answer is %d %s", a.Status, a.Body)
	}
	if n := w.Redis.XLen(t.Context(), w.Keys.Views()).Val(); n != 0 {
		t.Fatalf("%d entries in views, want none", n)
	}
	if n := w.Redis.Exists(t.Context(), w.Keys.Content(404)).Val(); n != 0 {
		t.Fatal("there is a state of an unknown content")
	}
	w.checkSettled()
}
