package tierhealth_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/metrics"
	"github.com/tierflow/tierflow/relocator/internal/relocatortest"
	"github.com/tierflow/tierflow/relocator/internal/testdisk"
	"github.com/tierflow/tierflow/relocator/internal/tierhealth"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestMain(m *testing.M) { relocatortest.Main(m) }

// world adds to relocatortest.World what tests of tiers need.
type world struct{ *relocatortest.World }

func newWorld(t *testing.T, gold string) world { return world{relocatortest.NewOn(t, gold)} }

// tried counts the operations of a step below a folder.
func (w world) tried(step fsys.Step, below string) *atomic.Int64 {
	var n atomic.Int64
	w.FS.Hook = func(s fsys.Step, path string) error {
		if s == step && strings.HasPrefix(path, below) {
			n.Add(1)
		}
		return nil
	}
	return &n
}

// waitForCalls waits until a step was called want times or more often.
func (w world) waitForCalls(what string, n *atomic.Int64, want int64) {
	w.T.Helper()
	w.Eventually(what, func() error {
		if got := n.Load(); got < want {
			return fmt.Errorf("%d times", got)
		}
		return nil
	})
}

// emitted lists the items that have an entry in `relocated`.
func (w world) emitted() (cids []string) {
	w.T.Helper()
	msgs, err := w.Redis.XRange(context.Background(), w.Store.Keys().Relocated(), "-", "+").Result()
	if err != nil {
		w.T.Fatal(err)
	}
	for _, m := range msgs {
		cids = append(cids, m.Values["cid"].(string))
	}
	return cids
}

// untouched checks that a move that cannot be made has left its source alone, and nothing that is visible at its target.
func (w world) untouched(name string, body []byte) {
	w.T.Helper()
	if got, err := os.ReadFile(filepath.Join(w.Roots["bronze"], name)); err != nil || string(got) != string(body) {
		w.T.Errorf("the source has %d bytes, %v", len(got), err)
	}
	if _, err := os.Lstat(filepath.Join(w.Roots["gold"], name)); !errors.Is(err, os.ErrNotExist) {
		w.T.Errorf("something is visible at the target: %v", err)
	}
	for _, cid := range w.emitted() {
		if cid == "1" {
			w.T.Error("an event was emitted")
		}
	}
	if n := w.Redis.XLen(context.Background(), w.Store.Keys().Dead()).Val(); n != 0 {
		w.T.Errorf("%d entries in dead", n)
	}
}

func (w world) suspects(want ...string) error {
	err := w.Tiers.Problems()
	if len(want) == 0 && err != nil {
		return err
	}
	for _, word := range want {
		if err == nil || !strings.Contains(err.Error(), word) {
			return fmt.Errorf("the suspects are %w, want %q", errors.Join(err, errors.New("")), word)
		}
	}
	return nil
}

// moves waits until an item has moved to a tier and its old copy is released: others go on.
func (w world) moves(id, count int, level string, body []byte) {
	w.T.Helper()
	w.Post(id, count)
	row, err := w.Catalog.Row(context.Background(), item.ID(id))
	if err != nil {
		w.T.Fatal(err)
	}
	w.Eventually(fmt.Sprintf("item %d is on %s alone", id, level), func() error {
		got, err := os.ReadFile(filepath.Join(w.Roots[level], row.Filename))
		if err == nil && string(got) != string(body) {
			err = errors.New("other bytes")
		}
		if _, serr := os.Lstat(filepath.Join(w.Roots[row.Level], row.Filename)); err == nil && serr == nil {
			err = errors.New("still on " + row.Level)
		}
		return err
	})
}

func TestAFullTierRestsWhileOthersGoOnAndItsMovesFollowWhenThereIsRoom(t *testing.T) {
	disk := testdisk.Memory(t, "2m")
	w := newWorld(t, disk)
	if err := os.WriteFile(disk+"/filler", make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	big, small := w.Item(1, "a"), w.Item(2, "b")
	big = []byte(strings.Repeat(string(big), 170)) // 1.2 MB
	w.File("bronze", "a", big)
	tried := w.tried(fsys.Reserve, w.Roots["gold"])
	wrote := atomic.Bool{}
	count := w.FS.Hook
	w.FS.Hook = func(s fsys.Step, path string) error {
		if s == fsys.WriteTemp && strings.Contains(path, "/tmp/1.") {
			wrote.Store(true)
		}
		return count(s, path)
	}
	w.Run()
	w.Post(1, 5000)
	w.waitForCalls("the tier is tried", tried, 1)
	w.Eventually("it is full", func() error {
		if s := w.Tiers.Status()["gold"]; !s.Full() {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	w.Eventually("it is tried again and again", func() error {
		if s := w.Tiers.Status()["gold"]; !s.Full() || s.Err == nil {
			t.Fatalf("meanwhile it is %+v", s)
		}
		if n := tried.Load(); n < 3 {
			return fmt.Errorf("%d times", n)
		}
		return nil
	})
	w.moves(2, 1500, "silver", small)
	w.untouched("a", big)
	if wrote.Load() {
		t.Error("bytes were copied before there was room for them")
	}
	if err := os.Remove(disk + "/filler"); err != nil {
		t.Fatal(err)
	}
	w.Settled()
	w.Lies(1, "gold", big)
	w.Lies(2, "silver", small)
}

func TestATierWhoseFsyncFailsIsSuspectAndEmitsNothingUntilTheDiskIsRepaired(t *testing.T) {
	// A disk that is smaller than it says: what it cannot take is lost when it is synced.
	host := testdisk.Memory(t, "24m")
	image := testdisk.Image(t, host, "ext4", 64<<20)
	disk := t.TempDir()
	testdisk.Mount(t, disk, "-o", "loop", image)
	w := newWorld(t, disk)
	w.Run()
	w.moves(3, 5000, "gold", w.Item(3, "c")) // the tier works
	w.Settled()
	testdisk.Run(t, "sync", "-f", disk)
	filler, err := os.Create(host + "/filler")
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = filler.Write(make([]byte, 64<<10))
	}
	filler.Close() // or its space would not come back
	small := w.Item(2, "b")
	w.Item(1, "a")
	big := []byte(strings.Repeat("not compressible, as ext4 does not compress;", 100_000)) // 4.4 MB
	w.File("bronze", "a", big)
	w.Post(1, 5000)
	w.Eventually("the tier is suspect", func() error { return w.suspects("level gold is suspect", "look at the disk") })
	w.moves(2, 1500, "silver", small)
	w.untouched("a", big)
	if err := os.Remove(host + "/filler"); err != nil {
		t.Fatal(err)
	}
	testdisk.Unmount(disk)
	_ = testdisk.Command("e2fsck", "-fy", image) // exit code 1: it has mended something
	testdisk.Mount(t, disk, "-o", "loop", image)
	w.Settled()
	w.Lies(1, "gold", big)
	w.Lies(2, "silver", small)
	if err := w.suspects(); err != nil {
		t.Errorf("after a move has succeeded: %v", err)
	}
}

func TestAReadOnlyTierIsSuspectAndItsMovesAndReleasesWaitForIt(t *testing.T) {
	disk := testdisk.Memory(t, "16m")
	w := newWorld(t, disk)
	a, b, back := w.Item(1, "a"), w.Item(2, "b"), w.Item(3, "back")
	tried := w.tried(fsys.MkdirReleased, w.Roots["gold"])
	var looks atomic.Int64
	count := w.FS.Hook
	w.FS.Hook = func(s fsys.Step, path string) error {
		if s == fsys.ProbeLink && strings.HasPrefix(path, w.Roots["gold"]) {
			looks.Add(1)
		}
		return count(s, path)
	}
	w.Run()
	w.moves(3, 5000, "gold", back)
	testdisk.Run(t, "mount", "-o", "remount,ro", disk)
	w.Post(3, 1) // reading from it is all right; to clear the old copy is not
	before := tried.Load()
	w.waitForCalls("the release is tried", tried, before+1)
	w.Eventually("the tier is suspect", func() error { return w.suspects("level gold is suspect", "read-only") })
	w.waitForCalls("the tier is looked at", &looks, looks.Load()+3)
	if n := tried.Load() - before; n != 1 {
		t.Errorf("the release was tried %d times while the tier was read-only", n)
	}
	w.Post(1, 5000)
	w.moves(2, 1500, "silver", b)
	w.untouched("a", a)
	testdisk.Run(t, "mount", "-o", "remount,rw", disk)
	w.Settled()
	w.Lies(1, "gold", a)
	w.Lies(2, "silver", b)
	w.Lies(3, "bronze", back)
	w.Eventually("it is not suspect any more", func() error { return w.suspects() })
}

// Nothing has to move to the tier when it can be written to again, so no move shows it.
func TestATierThatWasReadOnlyIsNotSuspectWhenItCanBeWrittenTo(t *testing.T) {
	disk := testdisk.Memory(t, "16m")
	w := newWorld(t, disk)
	a, before := w.Item(1, "a"), w.Item(2, "b")
	w.Run()
	w.moves(2, 5000, "gold", before)
	testdisk.Run(t, "mount", "-o", "remount,ro", disk)
	w.Post(1, 5000)
	w.Eventually("the tier is suspect", func() error { return w.suspects("level gold is suspect", "read-only") })
	w.moves(1, 1500, "silver", a)
	testdisk.Run(t, "mount", "-o", "remount,rw", disk)
	w.Eventually("it is not suspect any more", func() error { return w.suspects() })
	w.Settled()
	w.Lies(1, "silver", a)
}

func TestASuspicionEndsWhenATierThatWasClosedCanBeWrittenTo(t *testing.T) {
	for _, c := range []struct {
		name  string
		cause error
		ends  bool
	}{
		{"read-only", unix.EROFS, true},
		{"wrong permissions", unix.EACCES, true},
		{"an I/O error", unix.EIO, false}, // only a move shows that the disk works
	} {
		t.Run(c.name, func(t *testing.T) {
			var fails atomic.Bool
			tiers := tierhealth.New(t.Context(), tierhealth.Options{
				Levels: func(context.Context) (policy.Policy, error) { return policy.Policy{}, errors.New("MySQL is away") },
				Look:   func(policy.Level) error { return nil },
				Probe: func(policy.Level) error {
					if fails.Load() {
						return c.cause
					}
					return nil
				},
				Slow: func(time.Duration) []string { return nil }, Metrics: metrics.New(prometheus.NewRegistry()), Log: zap.NewNop()})
			gold := policy.Level{Name: "gold", Path: "/gold"}
			write := func() error { return tiers.Check(tierhealth.Need{Level: gold, Use: tierhealth.Write}) }
			testserver.Eventually(t, "the tier is known", 30*time.Second, write)
			fails.Store(true)
			_ = tiers.Failed(&fault.Error{Kind: fault.Suspect, Level: "gold", Err: c.cause}, gold)
			fails.Store(false)
			testserver.Eventually(t, "it can be written to", 30*time.Second, write)
			if err := tiers.Problems(); (err == nil) != c.ends {
				t.Errorf("when it can be written to: %v", err)
			}
			tiers.Worked("gold")
			if err := tiers.Problems(); err != nil {
				t.Errorf("after something has worked: %v", err)
			}
		})
	}
}

func TestAMoveIntoAnImmutableFolderBecomesADeadLetterAndLeavesTheTierAlone(t *testing.T) {
	disk, _ := testdisk.Disk(t, "ext4", 64<<20)
	w := newWorld(t, disk)
	body := w.Item(1, "locked/a")
	if err := os.Mkdir(w.Roots["gold"]+"/locked", 0o755); err != nil {
		t.Fatal(err)
	}
	testdisk.Run(t, "chattr", "+i", w.Roots["gold"]+"/locked") // not even root may
	w.Run()
	w.Post(1, 5000)
	if m := w.DeadLetters(1)[0]; m.Values["reason"] != "unsupported" || !strings.Contains(m.Values["error"].(string), "chattr -i") {
		t.Errorf("dead: %v", m.Values)
	}
	if err := errors.Join(w.suspects(), w.Tiers.Check(tierhealth.Need{Level: w.Level("gold"), Use: tierhealth.Write})); err != nil {
		t.Errorf("the tier is blamed: %v", err)
	}
	if cids := w.emitted(); len(cids) != 0 {
		t.Errorf("emitted: %v", cids)
	}
	w.Settled()
	w.Lies(1, "bronze", body)
	testdisk.Run(t, "chattr", "-i", w.Roots["gold"]+"/locked")
	w.moves(1, 5000, "gold", body)
	if err := w.suspects(); err != nil {
		t.Errorf("after a move has succeeded: %v", err)
	}
}

func TestATierThatIsAwayHoldsUpNoOtherAndItsMovesFollowWhenItIsBack(t *testing.T) {
	w := relocatortest.New(t)
	a, b := w.Item(1, "a"), w.Item(2, "b")
	away := w.Roots["gold"] + ".unmounted"
	if err := os.Rename(w.Roots["gold"], away); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(w.Roots["gold"], 0o755); err != nil { // the bare mount point
		t.Fatal(err)
	}
	w.Relocator("r1")
	w.Releaser("r1")
	w.Committer()
	w.Post(1, 5000)
	w.Post(2, 1500)
	w.Eventually("item 2 is on silver", func() error {
		if _, err := os.Stat(w.Roots["silver"] + "/b"); err != nil {
			return err
		}
		_, err := os.Stat(w.Roots["bronze"] + "/b")
		if err == nil {
			return fmt.Errorf("still on bronze as well")
		}
		return nil
	})
	if left, _ := os.ReadDir(w.Roots["gold"]); len(left) != 0 {
		t.Errorf("something was written to the bare mount point: %v", left)
	}
	if err := os.Remove(w.Roots["gold"]); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(away, w.Roots["gold"]); err != nil {
		t.Fatal(err)
	}
	w.Settled()
	w.Lies(1, "gold", a)
	w.Lies(2, "silver", b)
	if n := w.Redis.XLen(t.Context(), w.Store.Keys().Dead()).Val(); n != 0 {
		t.Errorf("%d entries in dead", n)
	}
}

func TestForWhatATierCanBeUsedDependsOnItsState(t *testing.T) {
	for _, c := range []struct {
		kind                fault.Kind
		probe               error
		read, remove, write bool
	}{
		{fault.NoSpace, nil, true, true, false},
		{fault.TierRefused, nil, false, false, false},
		{fault.Suspect, errors.New("read-only"), true, false, false},
		{fault.Suspect, nil, true, true, true}, // one item's own fault
	} {
		var probe atomic.Value
		tiers := tierhealth.New(t.Context(), tierhealth.Options{
			Levels: func(context.Context) (policy.Policy, error) { return policy.Policy{}, errors.New("MySQL is away") },
			Look:   func(policy.Level) error { return nil },
			Probe:  func(policy.Level) error { err, _ := probe.Load().(error); return err },
			Slow:   func(time.Duration) []string { return nil }, Metrics: metrics.New(prometheus.NewRegistry()), Log: zap.NewNop()})
		gold := policy.Level{Name: "gold", Path: "/gold"}
		can := func(use tierhealth.Use) bool { return tiers.Check(tierhealth.Need{Level: gold, Use: use}) == nil }
		if !can(tierhealth.Write) {
			t.Fatal("a tier that works")
		}
		if c.probe != nil {
			probe.Store(c.probe)
		}
		_ = tiers.Failed(&fault.Error{Kind: c.kind, Level: "gold"}, gold)
		if can(tierhealth.Read) != c.read || can(tierhealth.Remove) != c.remove || can(tierhealth.Write) != c.write {
			t.Errorf("after %s: read %v, remove %v, write %v", c.kind, can(tierhealth.Read), can(tierhealth.Remove), can(tierhealth.Write))
		}
	}
}
