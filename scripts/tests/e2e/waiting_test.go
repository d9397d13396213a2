package e2e_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestRelocatorsThatAreKilledWhileATierIsAwayCostNoAttempt(t *testing.T) {
	w := start(t, options{settings: map[string]string{"TIERFLOW_MAX_ATTEMPTS": "1"}}) // four deaths with an entry in hand make it a dead letter
	const n = 20
	for id := item.ID(1); id <= n; id++ {
		w.add(id, "bronze", 1000)
	}
	gold := w.tier("gold")
	w.must("unmount", os.Rename(gold, gold+".unmounted"))
	for id := item.ID(1); id <= n; id++ {
		w.post(id, 5000)
	}
	relocator := w.Relocators[0]
	want := fmt.Sprintf("tierflow_relocator_waiting{reason=\"tier-away\"} %d\n", n)
	for range 12 {
		testserver.Eventually(t, "all wait for the tier", patience, func() error {
			resp, err := http.Get("http://" + relocator.Addr + "/metrics")
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err == nil && !strings.Contains(string(body), want) {
				err = fmt.Errorf("not there: %s", want)
			}
			return err
		})
		w.must("kill", relocator.Kill())
		w.must("start", relocator.Launch())
	}
	w.must("mount", os.Rename(gold+".unmounted", gold))
	w.checkSettled()
	dead, err := w.Redis.XLen(t.Context(), w.Keys.Dead()).Result()
	if err != nil || dead != 0 {
		t.Errorf("%d dead letters, %v", dead, err)
	}
}

// waits waits until the api lists an entry of the item with this stream and reason.
func (w *world) waits(id item.ID, stream, reason string) (found client.WaitingEntry) {
	w.t.Helper()
	testserver.Eventually(w.t, fmt.Sprintf("%s waits in %s: %s", id, stream, reason), patience, func() error {
		list, err := w.Client().Waiting(w.t.Context(), id, 0)
		for _, found = range list.Waiting {
			if found.Stream == stream && found.Reason == reason {
				return err
			}
		}
		return fmt.Errorf("%+v, %v", list, err)
	})
	return found
}

// nothingWaits waits until the api lists and counts nothing.
func (w *world) nothingWaits() {
	w.t.Helper()
	testserver.Eventually(w.t, "nothing waits", patience, func() error {
		list, err := w.Client().Waiting(w.t.Context(), 0, 0)
		if err != nil || len(list.Waiting) > 0 || list.Total != 0 {
			return fmt.Errorf("%+v, %v", list, err)
		}
		return nil
	})
}

func TestWhatWaitsIsSeenWithItsReasonByAPIAndTierctlAndIsGoneWhenItIsDone(t *testing.T) {
	w := start(t, options{})
	w.add(1, "bronze", 1000)
	gold := w.tier("gold")
	w.must("unmount", os.Rename(gold, gold+".unmounted"))
	w.post(1, 5000)
	away := w.waits(1, "views", "tier-away")
	if away.CID != "1" || !strings.Contains(away.Error, "gold") || away.NextTry != nil || away.Attempts != 0 {
		t.Errorf("%+v", away)
	}
	dir, err := stack.BuildTemp(t.Context(), stack.BuildOptions{Packages: []string{"./api/cmd/tierctl"}})
	w.must("build tierctl", err)
	defer os.RemoveAll(dir)
	out, err := exec.Command(filepath.Join(dir, "tierctl"), "--url", "http://"+w.API.Addr, "waiting", "--cid", "1").CombinedOutput()
	if err != nil || !strings.Contains(string(out), away.EntryID) || !strings.Contains(string(out), "tier-away") ||
		!strings.Contains(string(out), "1 entries wait, tier-away 1") {
		t.Errorf("%v, %s", err, out)
	}

	relocator := w.Relocators[0]
	w.must("kill", relocator.Kill())
	w.nothingWaits() // the dead one has nothing that waits
	w.must("start", relocator.Launch())
	w.waits(1, "views", "tier-away")
	w.must("mount", os.Rename(gold+".unmounted", gold))
	w.checkSettled()
	w.nothingWaits()

	_, err = w.DB().ExecContext(t.Context(), "CREATE TRIGGER refuses BEFORE INSERT ON update_history FOR EACH ROW "+
		"SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'the disk of the replica is full'")
	w.must("let MySQL refuse", err)
	w.post(1, 1)
	if refused := w.waits(1, "relocated", "server"); !strings.Contains(refused.Error, "the disk of the replica is full") || refused.NextTry == nil {
		t.Errorf("%+v", refused)
	}
	_, err = w.DB().ExecContext(t.Context(), "DROP TRIGGER refuses")
	w.must("let MySQL commit", err)
	w.checkSettled()
	w.nothingWaits()
}
