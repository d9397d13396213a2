package tier_test

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/tier"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/policy"
)

var when = time.Date(2026, 11, 22, 10, 0, 0, 123456789, time.UTC)

func newLevel(t *testing.T, name string) policy.Level {
	t.Helper()
	l := policy.Level{Name: name, Max: policy.Open, Path: filepath.Join(t.TempDir(), "srv", name)}
	id, err := tier.Init(fsys.FS{}, l, when)
	if err != nil {
		t.Fatal(err)
	}
	l.TierID = id
	return l
}

func wantRefused(t *testing.T, err error, words ...string) {
	t.Helper()
	if !fault.Is(err, fault.TierRefused) {
		t.Fatalf("got %v, want a refused tier", err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not name %q", err, w)
		}
	}
}

// snapshot maps every path below root to its mode, size, ctime and inode.
func snapshot(t *testing.T, root string) map[string]string {
	t.Helper()
	m := map[string]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		text, _ := json.Marshal([]any{st.Mode, st.Size, st.Ctim, st.Ino})
		m[p] = string(text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestInitMakesATierThatCanBeOpened(t *testing.T) {
	l := newLevel(t, "bronze")
	text, err := os.ReadFile(filepath.Join(l.Path, ".tierflow", "tier.json"))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"id":"` + l.TierID + `","level":"bronze","created_at":"2026-11-22T10:00:00.123456Z"}` + "\n"
	if string(text) != want {
		t.Errorf("tier.json is %q, want %q", text, want)
	}
	if len(l.TierID) != 36 || l.TierID[14] != '4' {
		t.Errorf("%q is not a UUID of version 4", l.TierID)
	}
	entries, err := os.ReadDir(filepath.Join(l.Path, ".tierflow"))
	if err != nil || len(entries) != 4 {
		t.Errorf("%v, %v: want released, reserve, tier.json and tmp", entries, err)
	}
	r, err := tier.Open(fsys.FS{}, l)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if r.ID != l.TierID || r.Check(fsys.RecheckTier) != nil || r.Probe() != nil {
		t.Errorf("the tier is not what was made: %+v", r)
	}
}

func TestInitChangesNothingTheSecondTime(t *testing.T) {
	for _, known := range []bool{true, false} {
		l := newLevel(t, "bronze")
		before := snapshot(t, l.Path)
		id := l.TierID
		if !known {
			l.TierID = "" // the run before stopped before the id was in MySQL
		}
		again, err := tier.Init(fsys.FS{}, l, when.Add(time.Hour))
		if err != nil || again != id {
			t.Fatalf("got %q, %v, want %q", again, err, id)
		}
		after := snapshot(t, l.Path)
		for p, v := range before {
			if after[p] != v {
				t.Errorf("%s was %s, is %s", p, v, after[p])
			}
		}
		if len(after) != len(before) {
			t.Errorf("there are %d entries, there were %d", len(after), len(before))
		}
	}
}

func TestInitRefusesAnotherIdentity(t *testing.T) {
	l := newLevel(t, "bronze")
	other := l
	other.Name, other.TierID = "silver", ""
	_, err := tier.Init(fsys.FS{}, other, when)
	wantRefused(t, err, "silver", l.Path, `"bronze"`)
	other = l
	other.TierID = "11111111-2222-4333-8444-555555555555"
	_, err = tier.Init(fsys.FS{}, other, when)
	wantRefused(t, err, l.Path, l.TierID, other.TierID)
}

func TestInitNeverWritesToAFolderThatShouldHaveAnIdentity(t *testing.T) {
	l := policy.Level{Name: "gold", Path: t.TempDir(), TierID: "11111111-2222-4333-8444-555555555555"}
	_, err := tier.Init(fsys.FS{}, l, when)
	wantRefused(t, err, "gold", l.Path, "mount the disk")
	if es, _ := os.ReadDir(l.Path); len(es) != 0 {
		t.Errorf("wrote %v", es)
	}
	l.Path = filepath.Join(l.Path, "absent")
	_, err = tier.Init(fsys.FS{}, l, when)
	wantRefused(t, err)
	if _, err := os.Stat(l.Path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("made the folder: %v", err)
	}
}

func TestTheNextInitFinishesOneThatWasCutShortAtAnyOperation(t *testing.T) {
	boom := errors.New("boom")
	for n := 0; ; n++ {
		l := policy.Level{Name: "bronze", Path: filepath.Join(t.TempDir(), "a", "b")}
		count := 0
		broken := fsys.FS{Hook: func(fsys.Step, string) error {
			if count++; count > n { // every operation from here on fails
				return boom
			}
			return nil
		}}
		_, err := tier.Init(broken, l, when)
		if err == nil {
			if n < 15 {
				t.Errorf("only %d operations went through package fsys", n)
			}
			return
		}
		if !errors.Is(err, boom) {
			t.Fatalf("operation %d: %v", n, err)
		}
		id, err := tier.Init(fsys.FS{}, l, when)
		if err != nil {
			t.Fatalf("after operation %d: %v", n, err)
		}
		l.TierID = id
		r, err := tier.Open(fsys.FS{}, l)
		if err != nil {
			t.Fatalf("after operation %d: %v", n, err)
		}
		r.Close()
	}
}

func TestConcurrentInitsAgreeOnOneIdentity(t *testing.T) {
	l := policy.Level{Name: "bronze", Path: filepath.Join(t.TempDir(), "a", "b")}
	ids := make([]string, 16)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			var err error
			if ids[i], err = tier.Init(fsys.FS{}, l, when); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("identities differ: %v", ids)
		}
	}
}

func TestATierWithoutItsIdentityIsRefused(t *testing.T) {
	l := newLevel(t, "bronze")
	open := func(l policy.Level) error {
		r, err := tier.Open(fsys.FS{}, l)
		r.Close()
		return err
	}
	t.Run("no id in MySQL", func(t *testing.T) {
		l := l
		l.TierID = ""
		wantRefused(t, open(l), "bronze", l.Path, "init-tiers")
	})
	t.Run("no folder", func(t *testing.T) {
		l := l
		l.Path += "-absent"
		wantRefused(t, open(l), "bronze", l.Path, "mount")
	})
	t.Run("an empty folder", func(t *testing.T) {
		l := l
		l.Path = t.TempDir()
		wantRefused(t, open(l), "bronze", l.Path, "mount", "init-tiers")
	})
	t.Run("a file in place of the folder", func(t *testing.T) {
		l := l
		l.Path = filepath.Join(l.Path, ".tierflow", "tier.json")
		wantRefused(t, open(l), l.Path)
	})
	t.Run("another level's identity", func(t *testing.T) {
		l := l
		l.Name = "silver"
		wantRefused(t, open(l), "silver", l.Path, "bronze")
	})
	t.Run("another id", func(t *testing.T) {
		l := l
		l.TierID = strings.ToUpper(l.TierID)
		wantRefused(t, open(l), l.Path)
	})
	identity := filepath.Join(l.Path, ".tierflow", "tier.json")
	for _, text := range []string{"", "{", "null", `{"level":"bronze"}`, `[1]`} {
		t.Run("an identity of "+text, func(t *testing.T) {
			if err := os.WriteFile(identity, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			wantRefused(t, open(l), l.Path)
		})
	}
	t.Run("a link in place of the identity", func(t *testing.T) {
		other := newLevel(t, "bronze")
		if err := errors.Join(os.Remove(identity), os.Symlink(other.Path+"/.tierflow/tier.json", identity)); err != nil {
			t.Fatal(err)
		}
		other.Path = l.Path
		wantRefused(t, open(other), l.Path, "symbolic link")
	})
}

func TestMissingScratchFoldersAreMadeAgain(t *testing.T) {
	l := newLevel(t, "bronze")
	for _, d := range []string{"tmp", "released"} {
		if err := os.Remove(filepath.Join(l.Path, ".tierflow", d)); err != nil {
			t.Fatal(err)
		}
	}
	r, err := tier.Open(fsys.FS{}, l)
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
}

func TestCheckNoticesADiskThatWentAway(t *testing.T) {
	l := newLevel(t, "bronze")
	r, err := tier.Open(fsys.FS{}, l)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := os.Rename(l.Path, l.Path+"-away"); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, r.Check(fsys.RecheckTier), l.Path)
	if out, err := exec.Command("cp", "-a", l.Path+"-away", l.Path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	wantRefused(t, r.Check(fsys.RecheckTier), l.Path, "another folder")
	if err := errors.Join(os.RemoveAll(l.Path), os.Rename(l.Path+"-away", l.Path)); err != nil {
		t.Fatal(err)
	}
	if err := r.Check(fsys.RecheckTier); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(l.Path, ".tierflow", "tier.json")); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, r.Check(fsys.RecheckTier), l.Path, "identity")
}

func TestTiersThatAreOneFolderAreRefused(t *testing.T) {
	a, b := newLevel(t, "bronze"), newLevel(t, "silver")
	distinct := func(ls ...policy.Level) error {
		var rs []*tier.Root
		for _, l := range ls {
			r, err := tier.Open(fsys.FS{}, l)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			rs = append(rs, r)
		}
		return tier.CheckDistinct(rs...)
	}
	if err := distinct(a, b); err != nil {
		t.Fatal(err)
	}
	t.Run("by a link", func(t *testing.T) {
		alias := a
		alias.Path = filepath.Join(t.TempDir(), "alias")
		if err := os.Symlink(a.Path, alias.Path); err != nil {
			t.Fatal(err)
		}
		wantRefused(t, distinct(b, a, alias), "same folder", a.Path, alias.Path)
	})
	t.Run("by a bind mount", func(t *testing.T) {
		alias := a
		alias.Path = t.TempDir()
		if err := unix.Mount(a.Path, alias.Path, "", unix.MS_BIND, ""); err != nil {
			t.Fatalf("bind mount: %v (these tests must run as root, with the right to mount)", err)
		}
		defer func() { _ = unix.Unmount(alias.Path, 0) }()
		wantRefused(t, distinct(a, alias), "same folder", a.Path, alias.Path)
	})
	t.Run("by a copied disk", func(t *testing.T) {
		copied := a
		copied.Path = t.TempDir()
		if out, err := exec.Command("cp", "-a", a.Path+"/.", copied.Path).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		wantRefused(t, distinct(a, copied), "same identity", a.TierID)
	})
	t.Run("one within the other", func(t *testing.T) {
		inner := policy.Level{Name: "gold", Path: filepath.Join(t.TempDir(), "gold")}
		real := filepath.Join(a.Path, "sub")
		if err := errors.Join(os.Mkdir(real, 0o755), os.Symlink(real, inner.Path)); err != nil {
			t.Fatal(err)
		}
		id, err := tier.Init(fsys.FS{}, inner, when)
		if err != nil {
			t.Fatal(err)
		}
		inner.TierID = id
		wantRefused(t, distinct(inner, a), "within")
	})
}

func TestATierWithoutHardLinksIsRefused(t *testing.T) {
	l := newLevel(t, "bronze")
	noLinks := fsys.FS{Hook: func(s fsys.Step, _ string) error {
		if s == fsys.ProbeLink {
			return unix.EPERM
		}
		return nil
	}}
	r, err := tier.Open(noLinks, l)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	wantRefused(t, r.Probe(), "bronze", "hard links")
	if err := os.WriteFile(filepath.Join(l.Path, ".tierflow", "link-probe"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	sound, err := tier.Open(fsys.FS{}, l)
	if err != nil {
		t.Fatal(err)
	}
	defer sound.Close()
	if err := sound.Probe(); err != nil {
		t.Errorf("a probe that a crash has left stops the next one: %v", err)
	}
	if _, err := os.Stat(filepath.Join(l.Path, ".tierflow", "link-probe")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the probe was left: %v", err)
	}
}

func TestARootThatTwoJobsOpenAtOnceIsClosed(t *testing.T) {
	level := newLevel(t, "bronze")
	begun, goOn := make(chan struct{}), make(chan struct{})
	var first atomic.Bool
	o := tier.NewOpener(fsys.FS{Hook: func(step fsys.Step, _ string) error {
		if step == fsys.OpenTier && !first.Swap(true) {
			close(begun)
			<-goOn
		}
		return nil
	}})
	before := descriptors(t)
	over := o.Expect()
	slow := make(chan error, 1)
	go func() {
		root, err := o.Open(level)
		root.Close()
		slow <- err
	}()
	<-begun
	root, err := o.Open(level)
	if err != nil {
		t.Fatal(err)
	}
	root.Close() // it stays open, because a job is expected
	close(goOn)
	if err := <-slow; err != nil {
		t.Fatal(err)
	}
	over()
	if after := descriptors(t); after > before { // fewer: those of earlier tests may be closed meanwhile
		t.Errorf("%d descriptors are open, and %d were before", after, before)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

func TestSpareFoldersAreRemovedAfterTheLastExpectedRelease(t *testing.T) {
	level := newLevel(t, "bronze")
	o := tier.NewOpener(fsys.FS{})
	first, second := o.Expect(), o.Expect()
	root, err := o.Open(level)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(level.Path+"/.tierflow/released/7.x", 0o700); err != nil {
		t.Fatal(err)
	}
	if !root.PutSpare("7.x") {
		t.Fatal("the folder was not kept for the other job")
	}
	root.Close()
	again, err := o.Open(level)
	if err != nil {
		t.Fatal(err)
	}
	if name, ok := again.TakeSpare(); name != "7.x" || !ok {
		t.Errorf("the other job got %q", name)
	}
	if !again.PutSpare("7.x") {
		t.Error("the folder was not kept again")
	}
	again.Close()
	first()
	first() // a second call does nothing
	if _, err := os.Lstat(level.Path + "/.tierflow/released/7.x"); err != nil {
		t.Errorf("the folder was removed although a release is expected: %v", err)
	}
	second()
	if _, err := os.Lstat(level.Path + "/.tierflow/released/7.x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder is there after the last release: %v", err)
	}
	alone, err := o.Open(level)
	if err != nil {
		t.Fatal(err)
	}
	defer alone.Close()
	if alone.PutSpare("7.y") {
		t.Error("a folder was kept although no job is expected")
	}
}
