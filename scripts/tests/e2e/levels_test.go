package e2e_test

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// The api posts last counts again after PUT /v1/levels. When a few of them are in the stream, Redis stops taking more, and
// the api is killed.
func TestAChangeOfLevelsSurvivesAnAPIThatIsKilledHalfWay(t *testing.T) {
	gate, url := testserver.RedisGate(t, testserver.Redis(t))
	w := start(t, options{redisURL: testserver.Redis(t), prefix: testserver.Prefix(t), stopped: true})
	w.API.Settings["TIERFLOW_REDIS_URL"] = url
	w.must("start", w.Start(t.Context()))
	const n, before = 30, 10
	for id := item.ID(1); id <= n; id++ {
		w.add(id, "bronze", 1000)
		w.post(id, 500)
	}
	w.checkSettled()

	passed, stuck := 0, make(chan struct{})
	once := sync.OnceFunc(func() { close(stuck) })
	gate.Judge(func(request []byte) testserver.Fate {
		if !bytes.Contains(request, []byte("evalsha")) || !bytes.Contains(request, []byte(":views")) {
			return testserver.Pass
		}
		if passed++; passed <= before {
			return testserver.Pass
		}
		once()
		return testserver.LoseRequest
	})
	levels, err := w.Catalog.Levels(t.Context())
	w.must("read the levels", err)
	var list []string
	for _, l := range levels {
		ends := map[string]string{"bronze": `"min_counts":0,"max_counts":99`, "silver": `"min_counts":100,"max_counts":999`, "gold": `"min_counts":1000`}
		list = append(list, fmt.Sprintf(`{"level":%q,"path":%q,%s}`, l.Name, l.Path, ends[l.Name]))
	}
	_, err = w.Client().SetLevels(t.Context(), []byte(`{"levels":[`+strings.Join(list, ",")+`]}`))
	w.must("set the levels", err)
	select {
	case <-stuck:
	case <-time.After(patience):
		t.Fatal("it has not begun")
	}
	w.must("kill the api", w.API.Kill())
	left := 0
	for id := item.ID(1); id <= n; id++ {
		v, err := w.Redis.Get(t.Context(), w.Keys.State(id)).Result()
		w.must("read a state", err)
		if st, err := state.Parse(v); err != nil || st.Target == "bronze" {
			left++
		}
	}
	if left < n-before {
		t.Fatalf("only %d of %d are left", left, n)
	}
	gate.Judge(nil)
	w.exec("UPDATE contents SET review_at = review_at - INTERVAL 2 MINUTE") // the claims of the killed api end
	w.must("start it again", w.API.Start(t.Context()))
	for id := item.ID(1); id <= n; id++ {
		w.waitLevel(id, "silver")
	}
	w.checkSettled()
	if out, code, err := w.Run(t.Context(), stack.Relocator, "verify"); err != nil || code != 0 {
		t.Errorf("verify: exit code %d, %v\n%s", code, err, out)
	}
}
