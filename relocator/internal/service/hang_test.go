package service

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/relocator/internal/testdisk"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// pipeline plays the api, and sees what a relocator emits.
type pipeline struct {
	*testing.T
	cat   *catalog.Catalog
	root  string
	rdb   redis.UniversalClient
	store *state.Store
	next  int // cid
}

// newPipeline makes a database and three tiers. gold leads to another disk.
func newPipeline(t *testing.T, gold string) *pipeline {
	t.Helper()
	cat, root := environment(t)
	if err := os.Symlink(gold, root+"/gold"); err != nil {
		t.Fatal(err)
	}
	migrate(t, cat, root)
	if code, _, errs := call(t.Context(), "init-tiers"); code != 0 {
		t.Fatal(errs)
	}
	rdb, err := state.Connect(os.Getenv("TIERFLOW_REDIS_URL"), 3)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rdb.Close() })
	keys := state.NewKeys(os.Getenv("TIERFLOW_REDIS_PREFIX"))
	return &pipeline{T: t, cat: cat, root: root, rdb: rdb, store: state.NewStore(state.Options{Redis: rdb, Keys: keys, TTL: time.Hour, Lease: time.Minute})}
}

// counts that call for a level.
var counts = map[string]item.Count{"bronze": 0, "silver": 1500, "gold": 5000}

// post makes items of a size on bronze, and posts a count for each that calls for a level.
func (p *pipeline) post(n, size int, level string) (cids []string) {
	p.Helper()
	for range n {
		p.next++
		name := fmt.Sprint("item-", p.next)
		if err := os.WriteFile(p.root+"/bronze/"+name, make([]byte, size), 0o644); err != nil {
			p.Fatal(err)
		}
		if _, err := p.cat.DB().Exec("INSERT INTO contents (cid, content_level, filename) VALUES (?, 'bronze', ?)", p.next, name); err != nil {
			p.Fatal(err)
		}
		_, err := p.store.Append(p.Context(), []event.View{{EventID: fmt.Sprintf("00000000-0000-7000-8000-%012d", p.next), ID: item.ID(p.next),
			Count: counts[level], Target: level, DBLevel: "bronze", Filename: name, PostedAt: time.Now()}})
		if err != nil {
			p.Fatal(err)
		}
		cids = append(cids, fmt.Sprint(p.next))
	}
	return cids
}

// emitted are the items that were moved, in their order.
func (p *pipeline) emitted() (cids []string) {
	p.Helper()
	msgs, err := p.rdb.XRange(p.Context(), p.store.Keys().Relocated(), "-", "+").Result()
	if err != nil {
		p.Fatal(err)
	}
	for _, m := range msgs {
		cids = append(cids, m.Values["cid"].(string))
	}
	return cids
}

// moved waits until so many moves were emitted.
func (p *pipeline) moved(n int) (cids []string) {
	p.Helper()
	testserver.Eventually(p, fmt.Sprintf("%d moves", n), time.Minute, func() error {
		if cids = p.emitted(); len(cids) < n {
			return fmt.Errorf("%d", len(cids))
		}
		return nil
	})
	return cids
}

// metric waits for a line of /metrics.
func (p *pipeline) metric(line string) {
	p.Helper()
	testserver.Eventually(p, line, 30*time.Second, func() error {
		resp, err := http.Get("http://" + os.Getenv("TIERFLOW_ADMIN_LISTEN") + "/metrics")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var b strings.Builder
		if err := resp.Write(&b); err != nil {
			return err
		}
		if !strings.Contains(b.String(), line) {
			return fmt.Errorf("not there")
		}
		return nil
	})
}

func TestATierThatHangsHoldsUpNoOtherAndIsNamed(t *testing.T) {
	disk, _ := testdisk.Disk(t, "ext4", 64<<20)
	p := newPipeline(t, disk)
	t.Setenv("TIERFLOW_CONCURRENCY", "16")
	readyz, stop := serveNow(t)
	p.post(1, 100, "gold")
	p.moved(1)
	thaw := testdisk.Freeze(t, disk)
	p.post(30, 100, "gold")
	others := p.post(20, 100, "silver")
	p.moved(1 + len(others))
	testserver.Eventually(t, "readyz names the tier", 30*time.Second, func() error {
		if code, body := readyz(); code != 503 || !strings.Contains(body, "level gold hangs: no file operation there has returned since") {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	p.metric(`tierflow_relocator_tier_state{level="gold",state="hanging"} 1`)
	p.metric(`tierflow_relocator_waiting{reason="tier-hanging"} `)
	others = append(others, p.post(100, 100, "silver")...)
	p.moved(1 + len(others))
	thaw()
	p.moved(1 + 30 + len(others))
	p.metric(`tierflow_relocator_tier_state{level="gold",state="usable"} 1`)
	if n := p.rdb.XLen(t.Context(), p.store.Keys().Dead()).Val(); n != 0 {
		t.Errorf("%d dead letters", n)
	}
	stop()
}

func TestSmallMovesDoNotWaitForLargeOnes(t *testing.T) {
	p := newPipeline(t, testdisk.Memory(t, "64m"))
	t.Setenv("TIERFLOW_CONCURRENCY", "16")
	t.Setenv("TIERFLOW_BANDWIDTH", "2MiB")
	_, stop := serveNow(t)
	p.post(40, 1<<20, "gold")
	p.metric(`tierflow_relocator_waiting{reason="slot"} `)
	small := append(p.post(1, 64, "silver"), p.post(3, 20_000, "gold")...) // links and copies
	first := p.moved(10)
	for _, cid := range small {
		if !slices.Contains(first, cid) {
			t.Errorf("%s is not among the first 10 of 44: %v", cid, first)
		}
	}
	stop()
}
