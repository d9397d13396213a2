package relocate_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/tierflow/tierflow/relocator/internal/relocatortest"
	"github.com/tierflow/tierflow/relocator/internal/testdisk"
)

// TestWhatATiersFileSystemCannotHoldBecomesADeadLetterAtOnce has a gold tier that folds case and cannot rename without
// replacing. The two movies have equal bytes, so that one could pass for a copy of the other.
func TestWhatATiersFileSystemCannotHoldBecomesADeadLetterAtOnce(t *testing.T) {
	w := relocatortest.NewOn(t, testdisk.Folding(t, "case"))
	w.Run()
	body := []byte("the same bytes in both")
	for id, name := range []string{"Movie.mkv", "movie.mkv", "show/1.ts"} {
		w.File("bronze", name, body)
		w.Exec("INSERT INTO contents (cid, content_level, filename) VALUES (?, 'bronze', ?)", id+1, strings.TrimSuffix(name, "/1.ts"))
	}
	w.Post(1, 1_000_000)
	w.Settled()
	w.Lies(1, "gold", body)
	w.Post(2, 1_000_000)
	w.Post(3, 1_000_000)
	got := map[string]string{}
	for _, m := range w.DeadLetters(2) {
		got[m.Values["cid"].(string)] = fmt.Sprint(m.Values["reason"], " after ", m.Values["attempts"])
	}
	if want := map[string]string{"2": "conflict after 1", "3": "unsupported after 1"}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("dead letters\n got %v\nwant %v", got, want)
	}
	w.Settled()
	w.Lies(1, "gold", body)
	holds := func(name string) {
		t.Helper()
		if es, err := os.ReadDir(w.Roots["gold"]); err != nil || len(es) != 2 || es[1].Name() != name {
			t.Errorf("gold has %v, %v", es, err)
		}
	}
	holds("Movie.mkv")
	if level := w.Row(2).Level; level != "bronze" {
		t.Errorf("the second movie is on %s", level)
	}

	// The first movie falls back to bronze, and its release on gold harms nothing. A retry would find the place free.
	w.Post(1, 0)
	w.Settled()
	w.Lies(1, "bronze", body)
	w.Post(2, 1_000_001)
	w.Settled()
	w.Lies(2, "gold", body)
	holds("movie.mkv")
}
