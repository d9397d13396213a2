package fsys_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/testdisk"
)

// TestAFailedSyncFailsItsCallersAndNoOthers syncs many files and one folder at the same time. The hook fails the sync of
// three callers.
func TestAFailedSyncFailsItsCallersAndNoOthers(t *testing.T) {
	for _, syncfs := range []bool{false, true} {
		t.Run(fmt.Sprintf("syncfs %v", syncfs), func(t *testing.T) {
			dir := t.TempDir()
			var calls atomic.Int64
			fs := fsys.FS{Syncs: fsys.NewSyncs(syncfs), Hook: func(step fsys.Step, path string) error {
				if step == fsys.FsyncTemp && calls.Add(1) <= 3 {
					return unix.EIO
				}
				return nil
			}}
			root, _, err := fs.OpenRoot(fsys.OpenTier, dir)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			var wg sync.WaitGroup
			var failed atomic.Int64
			for i := range 100 {
				wg.Go(func() {
					f, err := fs.Create(fsys.CreateTemp, root, fmt.Sprint(i))
					if err != nil {
						t.Error(err)
						return
					}
					defer f.Close()
					if _, err := fs.WriteAt(fsys.WriteTemp, f, []byte("x"), 0); err != nil {
						t.Error(err)
					}
					err = fs.FsyncAll(fsys.Unsynced{Step: fsys.FsyncRecord, File: root}, fsys.Unsynced{Step: fsys.FsyncTemp, File: f})
					switch {
					case errors.Is(err, unix.EIO):
						failed.Add(1)
					case err != nil:
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if failed.Load() != 3 {
				t.Errorf("%d callers failed, want 3", failed.Load())
			}
		})
	}
}

// TestSyncfsReportsWhatItCannotMakeDurable uses a disk that accepts no more bytes: a file system in an image whose own
// file system is full. No caller may get a success.
func TestSyncfsReportsWhatItCannotMakeDurable(t *testing.T) {
	for name, on := range map[string]func(*testing.T) string{"ext4": func(t *testing.T) string { return brokenDisk(t) }, "an overlay over it": brokenOverlay} {
		t.Run(name, func(t *testing.T) {
			dir := on(t)
			fs := fsys.FS{Syncs: fsys.NewSyncs(true)}
			root, _, err := fs.OpenRoot(fsys.OpenTier, dir)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					f, err := fs.Create(fsys.CreateTemp, root, fmt.Sprint(i))
					if err != nil {
						return // an early error is as good
					}
					defer f.Close()
					data := make([]byte, 512<<10)
					if _, err := fs.WriteAt(fsys.WriteTemp, f, data, 0); err != nil {
						return
					}
					if err := fs.Fsync(fsys.FsyncTemp, f); err == nil {
						t.Errorf("the sync of file %d succeeded on a disk that accepts nothing", i)
					}
				})
			}
			wg.Wait()
		})
	}
}

func TestAFileWhoseBytesAnotherCallersSyncfsLostGetsAnError(t *testing.T) {
	full := brokenDisk(t)
	fs := fsys.FS{Syncs: fsys.NewSyncs(true)}
	root, _, err := fs.OpenRoot(fsys.OpenTier, full)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var files []fsys.Unsynced
	for i := range 2 {
		f, err := fs.Create(fsys.CreateTemp, root, fmt.Sprint(i))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := fs.WriteAt(fsys.WriteTemp, f, make([]byte, 512<<10), 0); err != nil {
			t.Fatal(err)
		}
		files = append(files, fsys.Unsynced{Step: fsys.FsyncTemp, File: f})
	}
	// Each file is synced with the folder. The folder's descriptor reports all errors to the first caller.
	for i, f := range files {
		if err := fs.FsyncAll(fsys.Unsynced{Step: fsys.FsyncRecord, File: root}, f); err == nil {
			t.Errorf("the sync of file %d succeeded on a disk that accepts nothing", i)
		}
	}
}

func TestMain(m *testing.M) { testdisk.Main(func() { os.Exit(m.Run()) }) }

// mount mounts a file system on a new folder.
func mount(t *testing.T, dir string, args ...string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	testdisk.Mount(t, dir, args...)
}

// brokenOverlay mounts an overlay whose upper layer is on a broken disk.
func brokenOverlay(t *testing.T) string {
	t.Helper()
	base, upper := t.TempDir(), brokenDisk(t, "upper", "work")
	merged, lower := filepath.Join(base, "merged"), filepath.Join(base, "lower")
	if err := os.Mkdir(lower, 0o755); err != nil {
		t.Fatal(err)
	}
	mount(t, merged, "-t", "overlay", "-o", fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%[2]s/work", lower, upper), "none")
	return merged
}

// brokenDisk mounts a file system of 64 MiB that holds the folders. Its disk has no room for anything else.
func brokenDisk(t *testing.T, folders ...string) string {
	t.Helper()
	base := t.TempDir()
	small, disk := filepath.Join(base, "small"), filepath.Join(base, "disk")
	mount(t, small, "-t", "tmpfs", "-o", "size=2m", "none")
	image := filepath.Join(small, "image")
	testdisk.Run(t, "truncate", "-s", "64M", image)
	testdisk.Run(t, "mkfs.ext4", "-q", "-O", "^has_journal", image)
	mount(t, disk, "-o", "loop", image)
	for _, f := range folders {
		if err := os.Mkdir(filepath.Join(disk, f), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	unix.Sync()
	if err := os.WriteFile(filepath.Join(small, "filler"), make([]byte, 2<<20), 0o644); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the file system below the disk is not full: %v", err)
	}
	return disk
}
