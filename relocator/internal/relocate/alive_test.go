package relocate_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/relocatortest"
	"github.com/tierflow/tierflow/relocator/internal/testdisk"
)

// lease is so long that a busy machine renews it in time, and a step that pauses takes longer.
const (
	lease  = 2 * time.Second
	paused = lease * 5 / 4
)

// slow is a disk on which the first calls of some steps take long. It counts the calls of all steps.
type slow struct {
	pause time.Duration // before each of these calls
	first int           // how many of each step
	steps []fsys.Step

	mu    sync.Mutex
	calls map[fsys.Step]int
}

func (s *slow) hook(step fsys.Step, _ string) error {
	s.mu.Lock()
	s.calls[step]++
	pauses := slices.Contains(s.steps, step) && s.calls[step] <= s.first
	s.mu.Unlock()
	if pauses {
		time.Sleep(s.pause)
	}
	return nil
}

func (s *slow) count(step fsys.Step) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[step]
}

// A call of the kernel gives no sign of life while it lasts. Two workers look for entries and locks that nobody renews.
func TestAStepThatTakesLongerThanTheLeaseIsWaitedForAndDoneOnce(t *testing.T) {
	w := relocatortest.New(t)
	w.SetLease(lease)
	body := w.Item(1, "folder/a")
	disk := &slow{pause: paused, first: 1, calls: map[fsys.Step]int{},
		steps: []fsys.Step{fsys.FsyncTemp, fsys.Publish, fsys.FsyncFolder, fsys.RenameReleased, fsys.DeleteReleased}}
	w.FS.Hook = disk.hook
	for _, worker := range []string{"r1", "r2"} {
		w.Relocator(worker)
		w.Releaser(worker)
	}
	w.Committer()
	w.Post(1, 5000) // to gold, on another file system
	w.Settled()
	w.Lies(1, "gold", body)
	for _, step := range disk.steps {
		if disk.count(step) == 0 {
			t.Errorf("the move has no step %s", step)
		}
	}
	for _, step := range []fsys.Step{fsys.CreateTemp, fsys.Publish, fsys.RenameReleased} {
		if n := disk.count(step); n != 1 {
			t.Errorf("%s was done %d times", step, n)
		}
	}
}

// Each call is short, and together they take longer than the lease: the listing of a directory, its comparison and its removal.
func TestADirectoryOfManyFilesIsMovedOnceHoweverLongItsListingTakes(t *testing.T) {
	w := relocatortest.New(t)
	w.SetLease(lease)
	const files = 1000
	for i := range files {
		w.File("bronze", fmt.Sprintf("many/%d", i), nil)
	}
	w.Exec("INSERT INTO contents (cid, content_level, filename) VALUES (1, 'bronze', 'many')")
	disk := &slow{pause: paused / files, first: files, calls: map[fsys.Step]int{},
		steps: []fsys.Step{fsys.OpenSource, fsys.LookReleased, fsys.DeleteReleased}}
	w.FS.Hook = disk.hook
	for _, worker := range []string{"r1", "r2"} {
		w.Relocator(worker)
		w.Releaser(worker)
	}
	w.Committer()
	w.Post(1, 1500) // to silver, on the same file system: nothing is copied
	w.Settled()
	if es, err := os.ReadDir(w.Roots["silver"] + "/many"); err != nil || len(es) != files || w.Row(1).Level != "silver" {
		t.Errorf("%d files, %v; the row names %s", len(es), err, w.Row(1).Level)
	}
	if _, err := os.Stat(w.Roots["bronze"] + "/many"); !os.IsNotExist(err) {
		t.Errorf("the old copy: %v", err)
	}
	for _, step := range []fsys.Step{fsys.FsyncRecord, fsys.FsyncEmptied} { // of a copy, and of a release
		if n := disk.count(step); n != 1 {
			t.Errorf("%s was called %d times", step, n)
		}
	}
}

// The kernel itself holds the move up: a frozen file system answers no write until it is thawed.
func TestAMoveToAFrozenDiskKeepsItsLockAndIsMadeOnce(t *testing.T) {
	disk, _ := testdisk.Disk(t, "ext4", 32<<20)
	w := relocatortest.NewOn(t, disk)
	w.SetLease(lease)
	body := w.Item(1, "a")
	count := &slow{calls: map[fsys.Step]int{}}
	w.FS.Hook = count.hook
	w.Relocator("r1")
	w.Relocator("r2")
	w.Releaser("r1")
	w.Committer()
	if err := w.Tiers.CheckRemove(w.Level("gold")); err != nil { // it is known to work
		t.Fatal(err)
	}
	thaw := testdisk.Freeze(t, disk)
	w.Post(1, 5000)
	holder := func() string {
		who, err := w.Store.Holder(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		return string(who)
	}
	w.Eventually("a worker has the lock", func() error {
		if holder() == "" {
			return errors.New("nobody has")
		}
		return nil
	})
	first := holder()
	for end := time.Now().Add(3 * lease); time.Now().Before(end); time.Sleep(lease / 20) {
		if now := holder(); now != first {
			t.Fatalf("%q had the lock, now %q has it", first, now)
		}
	}
	thaw()
	w.Settled()
	w.Lies(1, "gold", body)
	if n := count.count(fsys.FsyncTemp); n != 1 {
		t.Errorf("%d copies were made", n)
	}
}
