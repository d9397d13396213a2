package release_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/relocator/internal/relocatortest"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
)

// Who writes to an item while it moves writes to the old copy, and these bytes are nowhere else.
func TestAReleaseKeepsAndReportsACopyThatWasChanged(t *testing.T) {
	w := relocatortest.New(t)
	w.Relocator("r1")
	w.Committer()
	copied, linked, touched := w.Item(1, "copied"), w.Item(2, "linked"), w.Item(3, "touched")
	w.File("bronze", "hls/1.ts", []byte("one"))
	w.File("bronze", "hls/2.ts", []byte("two"))
	w.Exec("INSERT INTO contents (cid, content_level, filename) VALUES (4, 'bronze', 'hls')")
	w.Post(1, 5000)
	w.Post(2, 1500)
	w.Post(3, 5000)
	w.Post(4, 5000)
	for id, level := range map[int]string{1: "gold", 2: "silver", 3: "gold", 4: "gold"} {
		w.Eventually("the row is changed", func() error {
			row, err := w.Catalog.Row(t.Context(), item.ID(id))
			if err == nil && row.Level != level {
				err = errors.New("it names " + row.Level)
			}
			return err
		})
	}
	bronze := w.Roots["bronze"]
	w.File("bronze", "copied", []byte("changed by its owner"))
	w.File("bronze", "linked.new", []byte("replaced by its owner"))
	w.File("bronze", "hls/2.ts", []byte("TWO"))
	now := time.Now()
	if err := errors.Join(os.Rename(bronze+"/linked.new", bronze+"/linked"), os.Chtimes(bronze+"/touched", now, now)); err != nil {
		t.Fatal(err)
	}
	w.Releaser("r1")
	got := map[string]redis.XMessage{}
	for _, m := range w.DeadLetters(3) {
		got[m.Values["cid"].(string)] = m
		if m.Values["reason"] != "changed" || m.Values["stage"] != "release" || !strings.Contains(m.Values["error"].(string), "not removed") {
			t.Errorf("dead: %v", m.Values)
		}
	}
	for _, cid := range []string{"1", "2", "4"} {
		if _, ok := got[cid]; !ok {
			t.Errorf("item %s is not in dead", cid)
		}
	}
	for path, want := range map[string]string{"bronze/copied": "changed by its owner", "gold/copied": string(copied),
		"bronze/linked": "replaced by its owner", "silver/linked": string(linked),
		"bronze/hls/2.ts": "TWO", "gold/hls/2.ts": "two"} {
		level, name, _ := strings.Cut(path, "/")
		if p, err := os.ReadFile(w.Roots[level] + "/" + name); err != nil || string(p) != want {
			t.Errorf("%s: %d bytes, %v", path, len(p), err)
		}
	}
	w.Settled()
	w.Lies(3, "gold", touched)

	// The owner decides for the new bytes, and has the release tried once more.
	if err := os.WriteFile(w.Roots["gold"]+"/copied", []byte("changed by its owner"), 0o644); err != nil {
		t.Fatal(err)
	}
	fields := []string{}
	for _, k := range []string{"event_id", "cid", "from", "to", "filename", "generation", "outcome", "committed_at"} {
		fields = append(fields, k, got["1"].Values[k].(string))
	}
	if err := w.Redis.XAdd(t.Context(), &redis.XAddArgs{Stream: w.Store.Keys().Committed(), Values: fields}).Err(); err != nil {
		t.Fatal(err)
	}
	w.Settled()
	w.Lies(1, "gold", []byte("changed by its owner"))
}

func TestAReleaseKeepsAnotherFileOfTheSameName(t *testing.T) {
	w := relocatortest.New(t)
	body := w.Item(1, "a")
	w.File("silver", "a", []byte("an operator's"))
	w.File("gold", "a", body)
	w.Releaser("r1")
	for _, level := range []string{"silver", "gold"} { // what verify --repair asks for, for a duplicate
		if err := w.Store.Stray(t.Context(), event.Committed{ID: 1, To: level, Filename: "a", CommittedAt: time.Now()}); err != nil {
			t.Fatal(err)
		}
	}
	if m := w.DeadLetters(1)[0]; m.Values["reason"] != "changed" || m.Values["to"] != "silver" {
		t.Errorf("dead: %v", m.Values)
	}
	w.Settled()
	if p, err := os.ReadFile(w.Roots["silver"] + "/a"); err != nil || string(p) != "an operator's" {
		t.Errorf("the operator's file: %q, %v", p, err)
	}
	if err := os.Remove(w.Roots["silver"] + "/a"); err != nil {
		t.Fatal(err)
	}
	w.Lies(1, "bronze", body)
}
