package relocate_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/tierflow/tierflow/relocator/internal/relocatortest"
)

// onGold makes an item on gold, which keeps what has come to it for an hour.
func onGold(w *relocatortest.World, id int) {
	w.T.Helper()
	name := fmt.Sprintf("f%d", id)
	w.File("gold", name, []byte(name))
	w.Exec("INSERT INTO contents (cid, content_level, filename) VALUES (?, 'gold', ?)", id, name)
	w.Exec("UPDATE level SET min_residency = 3600 WHERE content_level = 'gold'")
}

// wantReview checks the row's count and its review, which is an hour after the item's arrival, or none.
func wantReview(w *relocatortest.World, id, count int, review bool) {
	w.T.Helper()
	r := w.Row(id)
	want := time.Time{}
	if review {
		want = r.Updated.Add(time.Hour)
	}
	if r.Level != "gold" || int(r.ViewCount) != count || !r.ReviewAt.Equal(want) {
		w.T.Errorf("row %+v; want count %d on gold, and the review at %s", r, count, want)
	}
}

func TestACountThatMovesNothingTakesItsReviewIntoItsRow(t *testing.T) {
	w := relocatortest.New(t)
	onGold(w, 1)
	w.Relocator("r1")
	w.Post(1, 5)
	w.Settled()
	wantReview(w, 1, 5, true)
	w.Post(1, 3000) // at home on gold
	w.Settled()
	wantReview(w, 1, 3000, false)
}

func TestAnEventThatWasToMoveAndStaysTakesItsReviewIntoItsRow(t *testing.T) {
	w := relocatortest.New(t)
	onGold(w, 1)
	w.Exec("UPDATE level SET min_residency = 0 WHERE content_level = 'gold'")
	w.Post(1, 5) // to bronze, so no batch has it
	w.Exec("UPDATE level SET min_residency = 3600 WHERE content_level = 'gold'")
	w.Relocator("r1")
	w.Settled()
	wantReview(w, 1, 5, true)
}

func TestAPinThatEndsIsTheReviewOfAnItemOnItsLevel(t *testing.T) {
	w := relocatortest.New(t)
	onGold(w, 1)
	w.Exec("UPDATE contents SET pinned_level = 'gold', pinned_until = update_time + INTERVAL 1 HOUR")
	w.Exec("UPDATE level SET min_residency = 0 WHERE content_level = 'gold'")
	w.Relocator("r1")
	w.Post(1, 5)
	w.Settled()
	wantReview(w, 1, 5, true)
}

func TestWithoutRulesARowHasNoReview(t *testing.T) {
	w := relocatortest.New(t)
	onGold(w, 1)
	w.Exec("UPDATE level SET min_residency = 0 WHERE content_level = 'gold'")
	w.Relocator("r1")
	w.Post(1, 3000)
	w.Settled()
	wantReview(w, 1, 3000, false)
}
