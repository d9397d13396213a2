package service

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/metrics"
	"github.com/tierflow/tierflow/relocator/internal/testdisk"
	"github.com/tierflow/tierflow/relocator/internal/tierhealth"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// tierIs waits until the relocator reports a tier so.
func (p *pipeline) tierIs(level, of string, also func(state.TierReport) bool) (r state.TierReport) {
	p.Helper()
	testserver.Eventually(p, level+" is "+of, time.Minute, func() error {
		services, err := p.store.Services(p.Context(), time.Minute)
		if err != nil {
			return err
		}
		tier, ok := state.Tiers(services)[level]
		if r = tier.TierReport; !ok || r.State != of || also != nil && !also(r) {
			return fmt.Errorf("%+v", services)
		}
		return nil
	})
	return r
}

func wellAs(r state.TierReport) bool { return r.Reason == "" && r.Waiting == 0 && r.FreeBytes > 0 }

func TestARelocatorReportsTheFiguresAndTheStateOfEachTier(t *testing.T) {
	const size = 16 << 20
	disk := testdisk.Memory(t, fmt.Sprint(size))
	p := newPipeline(t, disk)
	_, stop := serveNow(t)
	gold := p.tierIs("gold", state.TierOK, wellAs)
	if gold.TotalBytes != size || gold.UsedBytes+gold.FreeBytes != size || gold.TotalInodes <= gold.FreeInodes || gold.FreeInodes <= 0 {
		t.Errorf("figures of an empty tier: %+v", gold)
	}
	p.tierIs("silver", state.TierOK, nil)
	p.tierIs("bronze", state.TierOK, nil)

	// It is filled by somebody else: nothing has moved there yet.
	filler := disk + "/filler"
	if err := fill(filler); err != nil {
		t.Fatal(err)
	}
	full := p.tierIs("gold", state.TierFull, func(r state.TierReport) bool { return r.FreeBytes == 0 })
	if !strings.Contains(full.Reason, "must stay free") || full.Since.Before(gold.Since) {
		t.Errorf("%+v", full)
	}
	p.post(3, 100_000, "gold")
	p.tierIs("gold", state.TierFull, func(r state.TierReport) bool { return r.Waiting == 3 })
	p.moved(len(p.post(2, 100, "silver")))
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	p.moved(5)
	p.tierIs("gold", state.TierOK, wellAs)

	testdisk.Run(t, "mount", "-o", "remount,ro", disk)
	p.tierIs("gold", state.TierReadOnly, nil)
	testdisk.Run(t, "mount", "-o", "remount,rw", disk)
	p.tierIs("gold", state.TierOK, nil)

	testdisk.Detach(t, disk)
	if r := p.tierIs("gold", state.TierAway, nil); !strings.Contains(r.Reason, "there is no .tierflow/tier.json") {
		t.Errorf("%+v", r)
	}
	p.tierIs("silver", state.TierOK, nil)
	stop()
	services, err := p.store.Services(t.Context(), time.Minute)
	if err != nil || len(state.Tiers(services)) != 0 {
		t.Errorf("after the end: %+v, %v", services, err)
	}
}

// fill makes a file that takes all room.
func fill(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 64<<10))
	}
	return nil
}

func TestARelocatorReportsATierWithoutAnIdentityAndOneOfAnotherLevel(t *testing.T) {
	p := newPipeline(t, t.TempDir())
	db := p.cat.DB()
	if _, err := db.Exec("UPDATE level SET tier_id = '' WHERE content_level = 'silver'"); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("UPDATE level SET tier_id = 'another' WHERE content_level = 'gold'"); err != nil {
		t.Fatal(err)
	}
	_, stop := serveNow(t)
	p.tierIs("silver", state.TierNoIdentity, nil)
	p.tierIs("gold", state.TierRefused, nil)
	p.tierIs("bronze", state.TierOK, nil)
	stop()
}

func TestATierThatHangsIsReportedAsHangingAndTheOthersAreNot(t *testing.T) {
	disk, _ := testdisk.Disk(t, "ext4", 64<<20)
	p := newPipeline(t, disk)
	_, stop := serveNow(t)
	p.tierIs("gold", state.TierOK, nil)
	thaw := testdisk.Freeze(t, disk)
	p.post(30, 100, "gold")
	p.tierIs("gold", state.TierHanging, func(r state.TierReport) bool { return r.TotalBytes > 0 && r.Waiting == 30 })
	p.tierIs("silver", state.TierOK, nil)
	p.moved(len(p.post(3, 100, "silver")))
	thaw()
	p.moved(33)
	p.tierIs("gold", state.TierOK, wellAs)
	stop()
}

// Nothing moves, so no write shows it.
func TestAnIdleTierThatIsFrozenOrWasMadeReadOnlyAfterAnErrorIsReported(t *testing.T) {
	disk, _ := testdisk.Disk(t, "ext4", 64<<20)
	p := newPipeline(t, disk)
	identity := disk + "/.tierflow/tier.json"
	before, err := os.Stat(identity)
	if err != nil {
		t.Fatal(err)
	}
	_, stop := serveNow(t)
	p.tierIs("gold", state.TierOK, nil)
	thaw := testdisk.Freeze(t, disk)
	p.tierIs("gold", state.TierHanging, nil)
	p.tierIs("silver", state.TierOK, nil)
	thaw()
	p.tierIs("gold", state.TierOK, nil)
	if after, err := os.Stat(identity); err != nil || !after.ModTime().Equal(before.ModTime()) {
		t.Errorf("the looks have changed the identity: %v, %v", after, err)
	}

	testdisk.Run(t, "mount", "-o", "remount,errors=remount-ro", disk)
	source, err := exec.Command("findmnt", "-no", "SOURCE", disk).Output()
	if err != nil {
		t.Fatal(err)
	}
	trigger := "/sys/fs/ext4/" + filepath.Base(strings.TrimSpace(string(source))) + "/trigger_fs_error"
	if err := os.WriteFile(trigger, []byte("a test"), 0o200); err != nil {
		t.Fatal(err)
	}
	p.tierIs("gold", state.TierReadOnly, func(r state.TierReport) bool { return strings.Contains(r.Reason, "read-only file system") })
	stop()
}

func TestALookThatHangsIsReportedAndHoldsUpNoOther(t *testing.T) {
	p := newPipeline(t, t.TempDir())
	release := make(chan struct{})
	var hangs atomic.Bool
	fs := fsys.FS{Hook: func(step fsys.Step, path string) error {
		if step == fsys.LookSpace && strings.HasSuffix(path, "/gold") && hangs.Load() {
			<-release
		}
		return nil
	}}
	free := sync.OnceFunc(func() { close(release) })
	defer free()
	health := tierhealth.New(t.Context(), tierhealth.Options{Levels: p.cat.Policy, Look: func(policy.Level) error { return nil },
		Probe: func(policy.Level) error { return nil }, Slow: func(time.Duration) []string { return nil },
		Metrics: metrics.New(prometheus.NewRegistry()), Log: zap.NewNop()})
	check := &tiersCheck{catalog: p.cat, fs: fs, health: health, warn: func(error) {}, tiers: map[string]*tierCheck{}}
	states := func() (found string) {
		for _, r := range check.seen.reports(health.Status(), func(string) int { return 0 }) {
			found += r.Level + " " + r.State + " "
		}
		return strings.TrimSpace(found)
	}
	if err := check.do(t.Context()); err != nil || states() != "bronze ok silver ok gold ok" {
		t.Fatalf("%s, %v", states(), err)
	}
	hangs.Store(true)
	testserver.Eventually(t, "gold hangs", time.Minute, func() error {
		if err := check.do(t.Context()); err == nil {
			return errors.New("the check passes")
		}
		if got := states(); got != "bronze ok silver ok gold hanging" {
			return errors.New(got)
		}
		return nil
	})
	hangs.Store(false)
	free()
	testserver.Eventually(t, "gold is well", time.Minute, func() error {
		if err := check.do(t.Context()); err != nil || states() != "bronze ok silver ok gold ok" {
			return fmt.Errorf("%s, %w", states(), err)
		}
		return nil
	})
}
