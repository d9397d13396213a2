package worker_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
)

// TestACopyThatWasChangedBeforeItsReleaseIsKeptAndReported: whoever writes to a content while it moves writes to the old
// copy, and his bytes are nowhere else.
func TestACopyThatWasChangedBeforeItsReleaseIsKeptAndReported(t *testing.T) {
	w := newWorld(t)
	w.relocator("r1")
	w.committer()
	copied, linked, touched := w.content(1, "copied"), w.content(2, "linked"), w.content(3, "touched")
	w.file("bronze", "hls/1.ts", []byte("one"))
	w.file("bronze", "hls/2.ts", []byte("two"))
	w.exec("INSERT INTO contents (cid, content_level, filename) VALUES (4, 'bronze', 'hls')")
	w.post(1, 5000)
	w.post(2, 1500)
	w.post(3, 5000)
	w.post(4, 5000)
	for id, level := range map[int]string{1: "gold", 2: "silver", 3: "gold", 4: "gold"} {
		w.eventually("the row is changed", func() error {
			row, err := w.cat.Content(t.Context(), item.ID(id))
			if err == nil && row.Level != level {
				err = errors.New("it names " + row.Level)
			}
			return err
		})
	}
	bronze := w.roots["bronze"]
	w.file("bronze", "copied", []byte("changed by its owner"))
	w.file("bronze", "linked.new", []byte("replaced by its owner"))
	w.file("bronze", "hls/2.ts", []byte("TWO"))
	now := time.Now()
	if err := errors.Join(os.Rename(bronze+"/linked.new", bronze+"/linked"), os.Chtimes(bronze+"/touched", now, now)); err != nil {
		t.Fatal(err)
	}
	w.releaser("r1")
	got := map[string]redis.XMessage{}
	for _, m := range w.dead(3) {
		got[m.Values["cid"].(string)] = m
		if m.Values["reason"] != "changed" || m.Values["stage"] != "release" || !strings.Contains(m.Values["error"].(string), "kept") {
			t.Errorf("dead: %v", m.Values)
		}
	}
	for _, cid := range []string{"1", "2", "4"} {
		if _, ok := got[cid]; !ok {
			t.Errorf("content %s is not in dead", cid)
		}
	}
	for path, want := range map[string]string{"bronze/copied": "changed by its owner", "gold/copied": string(copied),
		"bronze/linked": "replaced by its owner", "silver/linked": string(linked),
		"bronze/hls/2.ts": "TWO", "gold/hls/2.ts": "two"} {
		level, name, _ := strings.Cut(path, "/")
		if p, err := os.ReadFile(w.roots[level] + "/" + name); err != nil || string(p) != want {
			t.Errorf("%s: %d bytes, %v", path, len(p), err)
		}
	}
	w.settled()
	w.lies(3, "gold", touched)

	// Its owner decides for the new bytes, and has the order carried out once more.
	if err := os.WriteFile(w.roots["gold"]+"/copied", []byte("changed by its owner"), 0o644); err != nil {
		t.Fatal(err)
	}
	fields := []string{}
	for _, k := range []string{"event_id", "cid", "from", "to", "filename", "generation", "outcome", "committed_at"} {
		fields = append(fields, k, got["1"].Values[k].(string))
	}
	if err := w.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: w.store.Keys().Committed(), Values: fields}).Err(); err != nil {
		t.Fatal(err)
	}
	w.settled()
	w.lies(1, "gold", []byte("changed by its owner"))
}

func TestAnotherFileOfTheSameNameIsNotClearedAsAStray(t *testing.T) {
	w := newWorld(t)
	body := w.content(1, "a")
	w.file("silver", "a", []byte("an operator's"))
	w.file("gold", "a", body)
	w.releaser("r1")
	for _, level := range []string{"silver", "gold"} { // what verify --repair asks for, for a duplicate
		if err := w.store.Stray(t.Context(), event.Committed{ID: 1, To: level, Filename: "a", CommittedAt: time.Now()}); err != nil {
			t.Fatal(err)
		}
	}
	if m := w.dead(1)[0]; m.Values["reason"] != "changed" || m.Values["to"] != "silver" {
		t.Errorf("dead: %v", m.Values)
	}
	w.settled()
	if p, err := os.ReadFile(w.roots["silver"] + "/a"); err != nil || string(p) != "an operator's" {
		t.Errorf("the operator's file: %q, %v", p, err)
	}
	if err := os.Remove(w.roots["silver"] + "/a"); err != nil {
		t.Fatal(err)
	}
	w.lies(1, "bronze", body)
}
