package e2e_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// setLevels sets the levels as they are, with more fields for some of them.
func (w *world) setLevels(more map[string]string) {
	w.t.Helper()
	levels, err := w.Catalog.Levels(w.t.Context())
	w.must("read the levels", err)
	var list []string
	for _, l := range levels {
		ends := map[string]string{"bronze": `"min_counts":0,"max_counts":999`, "silver": `"min_counts":1000,"max_counts":1999`, "gold": `"min_counts":2000`}
		list = append(list, fmt.Sprintf(`{"level":%q,"path":%q,%s%s}`, l.Name, l.Path, ends[l.Name], more[l.Name]))
	}
	_, err = w.Client().SetLevels(w.t.Context(), []byte(`{"levels":[`+strings.Join(list, ",")+`]}`))
	w.must("set the levels", err)
}

func (w *world) exec(statement string, args ...any) {
	w.t.Helper()
	_, err := w.DB().ExecContext(w.t.Context(), statement, args...)
	w.must(statement, err)
}

// eventuallyRow waits until a row is as check wants it, while time passes for the reviews.
func (w *world) eventuallyRow(id item.ID, what string, passes bool, check func(catalog.Row) bool) {
	w.t.Helper()
	testserver.Eventually(w.t, what, patience, func() error {
		row, err := w.Catalog.Row(w.t.Context(), id)
		if err != nil || check(row) {
			return err
		}
		if passes {
			w.exec("UPDATE contents SET review_at = review_at - INTERVAL 20 MINUTE WHERE cid = ?", id)
		}
		return fmt.Errorf("%+v", row)
	})
}

// rests brings items to gold, which keeps them for an hour, and lets their counts fall.
func (w *world) rests(ids ...item.ID) {
	w.t.Helper()
	w.setLevels(map[string]string{"gold": `,"min_residency":3600`})
	for _, id := range ids {
		w.add(id, "bronze", 1000)
		w.post(id, 5000)
	}
	for _, id := range ids {
		w.waitLevel(id, "gold")
		w.post(id, 5)
	}
	for _, id := range ids {
		w.eventuallyRow(id, "the review is known", false, func(r catalog.Row) bool {
			return r.Level == "gold" && r.ViewCount == 5 && r.ReviewAt.Equal(r.Updated.Add(time.Hour))
		})
	}
}

// anHourPasses lets residencies and pins end, of the items whose ids have this rest.
func (w *world) anHourPasses(rest, of int) {
	w.exec("UPDATE contents SET update_time = update_time - INTERVAL 1 HOUR, pinned_until = pinned_until - INTERVAL 1 HOUR,"+
		" review_at = review_at - INTERVAL 1 HOUR WHERE cid % ? = ?", of, rest)
}

func noReview(r catalog.Row) bool { return r.ReviewAt.IsZero() }

func TestTheEndOfAResidencyMovesAnItemThatNobodyWatches(t *testing.T) {
	w := start(t, options{})
	w.rests(1)
	w.checkSettled()
	w.anHourPasses(0, 1)
	w.waitLevel(1, "bronze")
	w.eventuallyRow(1, "nothing is left to review", true, noReview)
	w.checkSettled()
}

func TestTheEndOfAPinMovesAnItemThatNobodyWatches(t *testing.T) {
	w := start(t, options{})
	w.add(1, "bronze", 1000)
	w.post(1, 5)
	until := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	_, err := w.Client().Pin(t.Context(), 1, client.Pin{Level: "gold", Until: &until})
	w.must("pin", err)
	w.waitLevel(1, "gold")
	w.eventuallyRow(1, "the pin's end is the review", true, func(r catalog.Row) bool { return r.ReviewAt.Equal(r.PinEnds) })
	w.anHourPasses(0, 1)
	w.waitLevel(1, "bronze")
	w.eventuallyRow(1, "nothing is left to review", true, noReview)
	w.checkSettled()
}

func TestALevelThatDrainsIsEmptiedByReviews(t *testing.T) {
	w := start(t, options{})
	for id := item.ID(1); id <= 5; id++ {
		w.add(id, "bronze", 1000)
		w.post(id, 5000)
	}
	for id := item.ID(1); id <= 5; id++ {
		w.waitLevel(id, "gold")
	}
	w.setLevels(map[string]string{"gold": `,"state":"draining"`})
	for id := item.ID(1); id <= 5; id++ {
		w.waitLevel(id, "silver")
		w.eventuallyRow(id, "nothing is left to review", true, noReview)
	}
	w.checkSettled()
}

// Items rest on gold, and the time of some ends in each round. Somewhere around their reviews a service is killed or Redis is
// wiped. Time goes on for the reviews, and each item comes to bronze.
func TestEveryDueReviewHappensWhateverIsKilledAndWiped(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, seed))
	w := start(t, options{relocators: 2})
	var ids []item.ID
	for id := item.ID(1); id <= 30; id++ {
		ids = append(ids, id)
	}
	w.rests(ids...)
	const rounds = 8
	for round := range rounds {
		w.anHourPasses(round, rounds)
		time.Sleep(time.Duration(random.IntN(1500)) * time.Millisecond) // the api looks every second
		if random.IntN(4) == 0 {
			keys, err := w.Redis.Keys(t.Context(), strings.TrimSuffix(w.Keys.Views(), "views")+"*").Result()
			w.must("list keys", err)
			if len(keys) > 0 {
				w.must("wipe Redis", w.Redis.Del(t.Context(), keys...).Err())
			}
			continue
		}
		all := w.Services()
		victim := all[random.IntN(len(all))]
		w.must("kill "+victim.Name, victim.Kill())
		w.must("start "+victim.Name, victim.Start(t.Context()))
	}
	testserver.Eventually(t, "every item was reviewed", 2*patience, func() error {
		var left []error
		for _, id := range ids {
			row, err := w.Catalog.Row(t.Context(), id)
			if err == nil && (row.Level != "bronze" || !row.ReviewAt.IsZero()) {
				err = fmt.Errorf("%+v", row)
			}
			left = append(left, err)
		}
		w.exec("UPDATE contents SET review_at = review_at - INTERVAL 20 MINUTE")
		return errors.Join(left...)
	})
	_, _, err := w.Run(t.Context(), stack.Relocator, "verify", "--repair")
	w.must("verify --repair", err)
	w.checkSettled()
}
