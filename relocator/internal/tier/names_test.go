package tier_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/testdisk"
	"github.com/tierflow/tierflow/relocator/internal/tier"
	"github.com/tierflow/tierflow/shared/policy"
)

func TestMain(m *testing.M) { testdisk.Main(func() { os.Exit(m.Run()) }) }

func kernelDisk(kind string, size int64) func(testing.TB) string {
	return func(t testing.TB) string {
		at, _ := testdisk.Disk(t, kind, size)
		return at
	}
}

func union(t testing.TB) string {
	at := t.TempDir()
	testdisk.Union(t, at, testdisk.Memory(t, "8m"), t.TempDir())
	return at
}

func bound(t testing.TB) string {
	at := t.TempDir()
	testdisk.FUSE(t, at, "bindfs", t.TempDir(), at)
	return at
}

func ntfs(args ...string) func(testing.TB) string {
	return func(t testing.TB) string {
		image, at := filepath.Join(t.TempDir(), "ntfs.image"), t.TempDir()
		if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 32<<20)); err != nil {
			t.Fatal(err)
		}
		testdisk.Run(t, "mkntfs", "-q", "-F", "-Q", image)
		testdisk.FUSE(t, at, append(args, image, at)...)
		return at
	}
}

func folding(mode string) func(testing.TB) string {
	return func(t testing.TB) string { return testdisk.Folding(t, mode) }
}

// on makes a level's tier on a disk.
func on(t *testing.T, disk string) policy.Level {
	t.Helper()
	l := policy.Level{Name: "gold", Max: policy.Open, Path: filepath.Join(disk, "gold")}
	var err error
	if l.TierID, err = tier.Init(fsys.FS{}, l, when); err != nil {
		t.Fatal(err)
	}
	return l
}

func TestAProbeFindsOutWhatTheFileSystemCannotDo(t *testing.T) {
	const (
		cases     = "differ in case"
		forms     = "Unicode normal form"
		noReplace = "RENAME_NOREPLACE"
		rewrites  = "another spelling than it was given"
	)
	for _, c := range []struct {
		disk    string
		mount   func(testing.TB) string
		warns   []string
		refused string
	}{
		{"ext4", kernelDisk("ext4", 32<<20), nil, ""},
		{"xfs", kernelDisk("xfs", 320<<20), nil, ""},
		{"btrfs", kernelDisk("btrfs", 128<<20), nil, ""},
		{"tmpfs", func(t testing.TB) string { return testdisk.Memory(t, "8m") }, nil, ""},
		{"ext4 with chattr +F", testdisk.CaseFolded, []string{cases, forms}, ""},
		{"a disk that folds case and forms", folding("case"), []string{cases, forms, noReplace}, ""},
		{"a disk that folds forms", folding("forms"), []string{forms, noReplace}, ""},
		{"a disk that stores names as NFD", folding("rewrite"), nil, rewrites},
		{"lowntfs-3g with ignore_case", ntfs("lowntfs-3g", "-o", "ignore_case"), nil, rewrites},
		{"ntfs-3g", ntfs("ntfs-3g"), []string{noReplace}, ""},
		{"mergerfs", union, []string{noReplace}, ""},
		{"bindfs", bound, []string{noReplace}, ""},
	} {
		t.Run(c.disk, func(t *testing.T) {
			l := on(t, c.mount(t))
			r, err := tier.Open(fsys.FS{}, l)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			err = r.Probe()
			if c.refused != "" {
				wantRefused(t, err, "gold", l.Path, c.refused)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			traits, err := r.Traits()
			if err != nil {
				t.Fatal(err)
			}
			said := strings.Join(traits.Warnings(), "\n")
			for _, w := range []string{cases, forms, noReplace} {
				if want := strings.Contains(strings.Join(c.warns, "\n"), w); strings.Contains(said, w) != want {
					t.Errorf("the warnings are %q, and it is %v that they say %q", said, want, w)
				}
			}
			if es, err := os.ReadDir(filepath.Join(l.Path, ".tierflow")); err != nil || len(es) != 4 {
				t.Errorf("the probe has left something: %v, %v", es, err)
			}
		})
	}
}

func TestAnOpenerProbesATierOnceAndAgainInAnotherFolder(t *testing.T) {
	l := on(t, t.TempDir())
	probes := 0
	o := tier.NewOpener(fsys.FS{Hook: func(step fsys.Step, path string) error {
		if step == fsys.ProbeNames && strings.HasSuffix(path, "/renamed") {
			probes++
		}
		return nil
	}})
	look := func(want int) {
		t.Helper()
		for range 3 {
			r, err := o.Open(l)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := r.Traits(); err != nil {
				t.Error(err)
			}
			r.Close()
		}
		if probes != want {
			t.Errorf("%d probes, want %d", probes, want)
		}
	}
	look(1)
	testdisk.Run(t, "cp", "-a", l.Path, l.Path+".copy")
	testdisk.Run(t, "mv", l.Path, l.Path+".old")
	testdisk.Run(t, "mv", l.Path+".copy", l.Path)
	look(2)
}

func TestATierThatIsFullOrReadOnlyCanBeOpenedAndIsProbedLater(t *testing.T) {
	for _, errno := range []unix.Errno{unix.ENOSPC, unix.EDQUOT, unix.EROFS} {
		l := on(t, testdisk.Folding(t, "case"))
		fails := true
		o := tier.NewOpener(fsys.FS{Hook: func(step fsys.Step, _ string) error {
			if step == fsys.ProbeNames && fails {
				return errno
			}
			return nil
		}})
		r, err := o.Open(l)
		if err != nil {
			t.Fatal(err)
		}
		if traits, err := r.Traits(); err != nil || traits.FoldsCase {
			t.Errorf("%v: %+v, %v", errno, traits, err)
		}
		// What needs no write is known all the same.
		if folds, err := r.Folds(fsys.LookTarget, r.Dir); err != nil || !folds {
			t.Errorf("%v: it folds: %v, %v", errno, folds, err)
		}
		fails = false
		if traits, err := r.Traits(); err != nil || !traits.FoldsCase {
			t.Errorf("%v: %+v, %v", errno, traits, err)
		}
		r.Close()
	}
}
