package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// waitCount waits until the row has the count, and returns the id of its entry.
func (w *world) waitCount(id item.ID, count item.Count) (entry string) {
	w.t.Helper()
	testserver.Eventually(w.t, fmt.Sprintf("the row of %s has the count %s", id, count), patience, func() error {
		row, err := w.Catalog.Row(context.Background(), id)
		if err == nil && row.ViewCount != count {
			err = fmt.Errorf("it has %s", row.ViewCount)
		}
		entry = row.CountEntry
		return err
	})
	return entry
}

// waitEmitted waits until n moves were emitted.
func (w *world) waitEmitted(n int64) { w.t.Helper(); w.waitStream(w.Keys.Relocated(), n) }

// expire does what time does: the lock of the item and, where the state says done and is settled, its state go.
func (w *world) expire(keys ...string) {
	w.t.Helper()
	w.must("expire", w.Redis.Del(w.t.Context(), keys...).Err())
}

// verifyClean runs relocator verify, which must find nothing.
func (w *world) verifyClean() {
	w.t.Helper()
	if out, code, err := w.Run(w.t.Context(), stack.Relocator, "verify", "--digest"); err != nil || code != 0 {
		w.t.Errorf("relocator verify: exit code %d, %v\n%s", code, err, out)
	}
}

// emitGold gives item 1 a count on bronze, and then has a move to gold emitted that no committer commits.
func (w *world) emitGold() {
	w.t.Helper()
	w.add(1, "bronze", 1000)
	w.post(1, 5)
	w.waitCount(1, 5)
	w.must("kill the committer", w.Committer.Kill())
	w.post(1, 5000)
	w.waitEmitted(1)
}

// settleLower has a lower count settle in place, as if the lease of the emitted move had passed, and its state expire.
func (w *world) settleLower() {
	w.t.Helper()
	w.expire(w.Keys.Lock(1))
	w.post(1, 10)
	w.waitCount(1, 10)
	testserver.Eventually(w.t, "the lower count is settled", patience, func() error {
		if d, err := w.Redis.TTL(context.Background(), w.Keys.State(1)).Result(); err != nil || d < 0 {
			return fmt.Errorf("its state lives for %s (%v)", d, err)
		}
		return nil
	})
	w.expire(w.Keys.State(1))
}

func TestALowerCountThatSettledInPlaceFencesAnEmittedMove(t *testing.T) {
	w := start(t, options{})
	w.emitGold()
	w.settleLower()
	w.must("start the committer", w.Committer.Start(t.Context()))
	w.checkSettled()
	w.waitCount(1, 10)
	if n := w.moves(1); n != 0 {
		t.Errorf("%d moves were committed", n)
	}
	w.verifyClean()
}

func TestARetriedDeadLetterReplacesNoNewerCount(t *testing.T) {
	t.Run("a move", func(t *testing.T) {
		w := start(t, options{})
		w.emitGold()
		w.settleLower()
		// The committer could not commit it: the entry waits in dead.
		entries, err := w.Redis.XRange(t.Context(), w.Keys.Relocated(), "-", "+").Result()
		w.must("read", err)
		w.dead(entries[0].Values, w.Keys.Relocated(), entries[0].ID, "commit")
		w.must("settle it", w.Redis.XTrimMaxLen(t.Context(), w.Keys.Relocated(), 0).Err())
		w.must("start the committer", w.Committer.Start(t.Context()))
		if status := w.retryFirst(); status != http.StatusAccepted {
			t.Errorf("retry: %d", status)
		}
		w.checkSettled()
		w.waitCount(1, 10)
		if n := w.moves(1); n != 0 {
			t.Errorf("%d moves were committed", n)
		}
	})
	t.Run("a view", func(t *testing.T) {
		w := start(t, options{})
		p := w.add(1, "bronze", 1000)
		there := filepath.Join(w.tier("gold"), p.Filename)
		w.must("make the folder", os.MkdirAll(filepath.Dir(there), 0o755))
		w.must("take the name", os.WriteFile(there, []byte("something else"), 0o644))
		w.post(1, 5000)
		w.waitStream(w.Keys.Dead(), 1)
		w.must("free the name", os.Remove(there))
		w.post(1, 10)
		w.waitCount(1, 10)
		w.expire(w.Keys.State(1))
		if status := w.retryFirst(); status != http.StatusConflict {
			t.Errorf("retry: %d", status)
		}
		w.must("drop it", w.Redis.Del(t.Context(), w.Keys.Dead()).Err())
		w.checkSettled()
	})
}

// dead makes a dead letter.
func (w *world) dead(entry map[string]any, source, id, stage string) {
	w.t.Helper()
	args := []any{"XADD", w.Keys.Dead(), "*"}
	for k, v := range entry {
		args = append(args, k, v)
	}
	args = append(args, "stage", stage, "reason", "conflict", "error", "taken", "attempts", "1", "source_stream", source, "source_id", id,
		"failed_at", "2026-01-01T00:00:00.000000Z")
	w.must("make a dead letter", w.Redis.Do(w.t.Context(), args...).Err())
}

// retryFirst retries the first dead letter and returns the status of a refusal, 202 where there is none.
func (w *world) retryFirst() int {
	w.t.Helper()
	list, err := w.Client().DeadLetters(w.t.Context(), client.Page{})
	w.must("list dead letters", err)
	if len(list.Dead) == 0 {
		w.t.Fatal("no dead letter")
	}
	_, err = w.Client().Retry(w.t.Context(), list.Dead[0].ID)
	var problem *client.Problem
	if errors.As(err, &problem) {
		return problem.Status
	}
	w.must("retry", err)
	return http.StatusAccepted
}

func TestANewerEmittedMoveIsNotLostWhenTheCommitterIsAwayForLong(t *testing.T) {
	w := start(t, options{})
	w.emitGold()
	w.expire(w.Keys.Lock(1)) // the lease of the emitted move has passed
	w.post(1, 1500)
	w.waitEmitted(2) // from the same generation
	if d, err := w.Redis.TTL(t.Context(), w.Keys.State(1)).Result(); err != nil || d != -1 {
		t.Errorf("the state of the emitted event lives for %s (%v): it must not expire before the commit", d, err)
	}
	w.must("start the committer", w.Committer.Start(t.Context()))
	w.waitLevel(1, "silver")
	w.checkSettled()
	w.waitCount(1, 1500)
	if d, err := w.Redis.TTL(t.Context(), w.Keys.State(1)).Result(); err != nil || d <= 0 {
		t.Errorf("the state of the settled event lives for %s (%v)", d, err)
	}
}

func TestAfterAWipeWithTheClockSetBackNewCountsAreTaken(t *testing.T) {
	w := start(t, options{})
	for id := item.ID(1); id <= 2; id++ {
		w.add(id, "bronze", 1000)
	}
	// Ids of years to come: a Redis has given them out that is gone.
	_, err := w.DB().ExecContext(t.Context(), "UPDATE contents SET view_count = 7, count_entry = '99999999999999-0'")
	w.must("write ids of the future", err)
	w.post(1, 12)
	w.post(2, 1500)
	w.waitCount(1, 12)
	w.waitLevel(2, "silver")
	w.checkSettled()
	for id := item.ID(1); id <= 2; id++ {
		if row, err := w.Catalog.Row(t.Context(), id); err != nil || row.CountEntry == "99999999999999-0" || row.CountEntry == "" {
			t.Errorf("item %s: %+v, %v", id, row, err)
		}
	}
}
