package e2e_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
)

func TestARisingCountPromotes(t *testing.T) {
	w := start(t, options{})
	p := w.add(7, "bronze", 1<<20)
	want := fmt.Sprintf(`{"cid": "7", "count": "1964", "target": "silver", "db_level": "bronze", "filename": %q, `+
		`"worker_id": null, "status": "update"}`, p.Filename)
	if got := w.sentence(7, 1964); got != want {
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
	w.post(3, 1) // on the same file system
	w.waitLevel(3, "bronze")
	w.checkSettled()
}

func TestACountWithinTheRangeMovesNothing(t *testing.T) {
	w := start(t, options{})
	w.add(7, "silver", 100)
	if got := w.sentence(7, 1999); !strings.HasSuffix(got, `"status": "done"}`) {
		t.Fatalf("the answer is %s", got)
	}
	w.checkSettled()
	if n := w.moves(7); n != 0 {
		t.Fatalf("%d rows of history, want none", n)
	}
}

func TestAnUnknownItemIsRefusedAndLeavesNothing(t *testing.T) {
	w := start(t, options{})
	var p *client.Problem
	if err := w.Post(t.Context(), 404, 5000); !errors.As(err, &p) || p.Status != http.StatusNotFound || p.Kind() != fault.Unknown {
		t.Fatalf("the answer is %v", err)
	}
	if n := w.Redis.XLen(t.Context(), w.Keys.Views()).Val(); n != 0 {
		t.Fatalf("%d entries in views, want none", n)
	}
	if n := w.Redis.Exists(t.Context(), w.Keys.State(404)).Val(); n != 0 {
		t.Fatal("there is a state of an unknown item")
	}
	w.checkSettled()
}

// sentence posts a view event and returns the answer to the byte.
func (w *world) sentence(id item.ID, count item.Count) (body string) {
	w.t.Helper()
	c := w.Client()
	c.OnAnswer = func(b []byte) { body = string(b) }
	_, err := c.PostSentence(w.t.Context(), client.View{CID: id, Count: count})
	w.must("post a view event", err)
	w.Posted(id, count)
	return body
}
