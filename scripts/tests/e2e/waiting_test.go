package e2e_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

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
