package worker_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/time/rate"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/testdisk"
	"github.com/tierflow/tierflow/shared/item"
)

// tried counts the operations of a step below a folder.
func (w *world) tried(step fsys.Step, below string) *atomic.Int64 {
	var n atomic.Int64
	w.fs.Hook = func(s fsys.Step, path string) error {
		if s == step && strings.HasPrefix(path, below) {
			n.Add(1)
		}
		return nil
	}
	return &n
}

func (w *world) atLeast(what string, n *atomic.Int64, want int64) {
	w.t.Helper()
	w.eventually(what, func() error {
		if got := n.Load(); got < want {
			return fmt.Errorf("%d times", got)
		}
		return nil
	})
}

// emitted lists the contents that have an entry in `relocated`.
func (w *world) emitted() (cids []string) {
	w.t.Helper()
	msgs, err := w.rdb.XRange(context.Background(), w.store.Keys().Relocated(), "-", "+").Result()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, m := range msgs {
		cids = append(cids, m.Values["cid"].(string))
	}
	return cids
}

// untouched checks that a move that cannot be made has left its source alone, and nothing that is visible at its target.
func (w *world) untouched(name string, body []byte) {
	w.t.Helper()
	if got, err := os.ReadFile(filepath.Join(w.roots["bronze"], name)); err != nil || string(got) != string(body) {
		w.t.Errorf("the source has %d bytes, %v", len(got), err)
	}
	if _, err := os.Lstat(filepath.Join(w.roots["gold"], name)); !errors.Is(err, os.ErrNotExist) {
		w.t.Errorf("something is visible at the target: %v", err)
	}
	for _, cid := range w.emitted() {
		if cid == "1" {
			w.t.Error("an event was emitted")
		}
	}
	if n := w.rdb.XLen(context.Background(), w.store.Keys().Dead()).Val(); n != 0 {
		w.t.Errorf("%d entries in dead", n)
	}
}

func (w *world) suspects(want ...string) error {
	err := w.tiers.Suspects()
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

// moves waits until a content has gone to a tier and its old copy is cleared: others go on.
func (w *world) moves(id, count int, level string, body []byte) {
	w.t.Helper()
	w.post(id, count)
	row, err := w.cat.Content(context.Background(), item.ID(id))
	if err != nil {
		w.t.Fatal(err)
	}
	w.eventually(fmt.Sprintf("content %d is on %s alone", id, level), func() error {
		got, err := os.ReadFile(filepath.Join(w.roots[level], row.Filename))
		if err == nil && string(got) != string(body) {
			err = errors.New("other bytes")
		}
		if _, serr := os.Lstat(filepath.Join(w.roots[row.Level], row.Filename)); err == nil && serr == nil {
			err = errors.New("still on " + row.Level)
		}
		return err
	})
}

func (w *world) run() {
	w.relocator("r1")
	w.releaser("r1")
	w.committer()
}

func TestAFullTierRestsOthersGoOnAndItsMovesAreMadeWhenThereIsRoom(t *testing.T) {
	disk := testdisk.Memory(t, "2m")
	w := newWorldOn(t, disk)
	if err := os.WriteFile(disk+"/filler", make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	big, small := w.content(1, "a"), w.content(2, "b")
	big = []byte(strings.Repeat(string(big), 120)) // 1.2 MB
	w.file("bronze", "a", big)
	tried := w.tried(fsys.Reserve, w.roots["gold"])
	wrote := atomic.Bool{}
	count := w.fs.Hook
	w.fs.Hook = func(s fsys.Step, path string) error {
		if s == fsys.WriteTemp && strings.Contains(path, "/tmp/1.") {
			wrote.Store(true)
		}
		return count(s, path)
	}
	w.run()
	w.post(1, 5000)
	w.atLeast("the tier is tried again", tried, 2)
	w.moves(2, 1500, "silver", small)
	w.untouched("a", big)
	if wrote.Load() {
		t.Error("bytes were copied before there was room for them")
	}
	if err := os.Remove(disk + "/filler"); err != nil {
		t.Fatal(err)
	}
	w.settled()
	w.lies(1, "gold", big)
	w.lies(2, "silver", small)
}

func TestATierWhoseFsyncFailsIsSuspectEmitsNothingAndGoesOnWhenTheDiskIsMended(t *testing.T) {
	// A disk that is smaller than it says: what it cannot take is lost when it is synced.
	host := testdisk.Memory(t, "24m")
	image := testdisk.Image(t, host, "ext4", 64<<20)
	disk := t.TempDir()
	testdisk.Mount(t, disk, "-o", "loop", image)
	w := newWorldOn(t, disk)
	testdisk.Run(t, "sync", "-f", disk)
	filler, err := os.Create(host + "/filler")
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = filler.Write(make([]byte, 64<<10))
	}
	filler.Close() // or its space would not come back
	small := w.content(2, "b")
	w.content(1, "a")
	big := []byte(strings.Repeat("not compressible, as ext4 does not compress;", 100_000)) // 4.4 MB
	w.file("bronze", "a", big)
	tried := w.tried(fsys.FsyncTemp, w.roots["gold"])
	w.run()
	w.post(1, 5000)
	w.atLeast("the copy is synced", tried, 1)
	w.eventually("the tier is suspect", func() error { return w.suspects("level gold is suspect", "look at the disk") })
	w.moves(2, 1500, "silver", small)
	w.untouched("a", big)
	if err := os.Remove(host + "/filler"); err != nil {
		t.Fatal(err)
	}
	testdisk.Unmount(disk)
	_ = testdisk.Command("e2fsck", "-fy", image) // exit code 1: it has mended something
	testdisk.Mount(t, disk, "-o", "loop", image)
	w.settled()
	w.lies(1, "gold", big)
	w.lies(2, "silver", small)
	if err := w.suspects(); err != nil {
		t.Errorf("after a move has succeeded: %v", err)
	}
}

func TestAReadOnlyTierIsSuspectAndItsMovesAndReleasesWaitForIt(t *testing.T) {
	disk := testdisk.Memory(t, "16m")
	w := newWorldOn(t, disk)
	a, b, back := w.content(1, "a"), w.content(2, "b"), w.content(3, "back")
	tried := w.tried(fsys.MkdirReleased, w.roots["gold"])
	w.run()
	w.moves(3, 5000, "gold", back)
	testdisk.Run(t, "mount", "-o", "remount,ro", disk)
	w.post(3, 1) // reading from it is all right; to clear the old copy is not
	before := tried.Load()
	w.atLeast("the release is tried again", tried, before+2)
	w.eventually("the tier is suspect", func() error { return w.suspects("level gold is suspect", "read-only") })
	w.post(1, 5000)
	w.moves(2, 1500, "silver", b)
	w.untouched("a", a)
	testdisk.Run(t, "mount", "-o", "remount,rw", disk)
	w.settled()
	w.lies(1, "gold", a)
	w.lies(2, "silver", b)
	w.lies(3, "bronze", back)
	w.eventually("it is not suspect any more", func() error { return w.suspects() })
}

func TestAFolderThatMayNotBeWrittenToIsReportedEmitsNothingAndEndsInDead(t *testing.T) {
	disk, _ := testdisk.Disk(t, "ext4", 64<<20)
	w := newWorldOn(t, disk)
	body := w.content(1, "locked/a")
	if err := os.Mkdir(w.roots["gold"]+"/locked", 0o755); err != nil {
		t.Fatal(err)
	}
	testdisk.Run(t, "chattr", "+i", w.roots["gold"]+"/locked") // not even root may
	w.run()
	w.post(1, 5000)
	if m := w.dead(1)[0]; m.Values["reason"] != "exhausted" || !strings.Contains(m.Values["error"].(string), "the right to") {
		t.Errorf("dead: %v", m.Values)
	}
	if err := w.suspects("level gold is suspect", "the right to"); err != nil {
		t.Error(err)
	}
	if cids := w.emitted(); len(cids) != 0 {
		t.Errorf("emitted: %v", cids)
	}
	w.settled()
	w.lies(1, "bronze", body)
	testdisk.Run(t, "chattr", "-i", w.roots["gold"]+"/locked")
	w.moves(1, 5000, "gold", body)
	if err := w.suspects(); err != nil {
		t.Errorf("after a move has succeeded: %v", err)
	}
}

func TestHowFarALargeMoveIsCanBeSeenWhileItGoesOn(t *testing.T) {
	w := newWorld(t)
	w.content(1, "a")
	body := []byte(strings.Repeat("0123456789abcdef", 4<<16)) // 4 MiB
	w.file("bronze", "a", body)
	w.limiter = rate.NewLimiter(1<<20, 1<<20)
	w.run()
	w.post(1, 5000)
	w.eventually("its progress is published", func() error {
		p, ok, err := w.store.GetProgress(context.Background(), 1)
		if err == nil && (!ok || p.BytesDone <= 0 || p.BytesDone >= p.BytesTotal || p.BytesTotal != int64(len(body)) || p.To != "gold") {
			err = fmt.Errorf("%v %+v", ok, p)
		}
		return err
	})
	w.limiter.SetLimit(rate.Inf)
	w.settled()
	w.lies(1, "gold", body)
}
