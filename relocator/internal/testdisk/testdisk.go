// Package testdisk gives tests real disks that can be full, read-only, unmounted or broken. They are file systems in
// memory and on loop devices, in a private mount namespace. The package is for tests only, and needs root.
//
// A package that uses it has
//
//	func TestMain(m *testing.M) { testdisk.Main(func() { os.Exit(m.Run()) }) }
package testdisk

import (
	"bufio"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/shared/testenv/namespace"
)

// Main calls run in a private mount namespace (package namespace). Where there is none, the tests fail.
func Main(run func()) {
	if err := namespace.Main(run); err != nil {
		fmt.Fprintf(os.Stderr, "%v (these tests must run as root, with the right to mount)\n", err)
		os.Exit(1)
	}
}

// Command runs a command and waits for it. An error contains its output.
func Command(args ...string) error {
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w: %s(these tests must run as root, with the right to mount)", args, err, out)
	}
	return nil
}

// Run runs a command that must succeed.
func Run(t testing.TB, args ...string) {
	t.Helper()
	if err := Command(args...); err != nil {
		t.Fatal(err)
	}
}

// Mount calls mount(8) with the arguments and an existing folder, and unmounts it when the test ends.
func Mount(t testing.TB, at string, args ...string) {
	t.Helper()
	Run(t, append(append([]string{"mount"}, args...), at)...)
	t.Cleanup(func() { Unmount(at) })
}

// Memory mounts a file system in memory and returns its folder. size is as for tmpfs, such as "8m".
func Memory(t testing.TB, size string) string {
	t.Helper()
	at := t.TempDir()
	Mount(t, at, "-t", "tmpfs", "-o", "size="+size, "none")
	return at
}

// Image makes a file system of a kind ("ext4", "xfs", "btrfs") in a new sparse file in dir. size is in bytes.
func Image(t testing.TB, dir, kind string, size int64) string {
	t.Helper()
	image := filepath.Join(dir, kind+".image")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, size)); err != nil {
		t.Fatal(err)
	}
	force := map[string]string{"ext4": "-F", "xfs": "-f", "btrfs": "-f"}[kind]
	Run(t, "mkfs."+kind, "-q", force, image)
	return image
}

// Disk mounts a new file system of a kind, with a size in bytes, and returns its folder. image allows mounting it again.
func Disk(t testing.TB, kind string, size int64) (at, image string) {
	t.Helper()
	image = Image(t, t.TempDir(), kind, size)
	at = t.TempDir()
	Mount(t, at, "-o", "loop", image)
	return at, image
}

// Freeze makes every write to the file system at a folder hang (fsfreeze -f) until thaw is called, or the test or its process
// ends.
func Freeze(t testing.TB, at string) (thaw func()) {
	t.Helper()
	// A process of its own thaws it: this one may hang, and may be killed.
	cmd := exec.Command("sh", "-c", `fsfreeze -f "$0" && echo frozen && { read -r _; fsfreeze -u "$0"; }`, at)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	thaw = sync.OnceFunc(func() {
		in.Close()
		_ = cmd.Wait()
	})
	t.Cleanup(thaw)
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "frozen\n" {
		t.Fatalf("fsfreeze -f %s: %v (these tests must run as root)", at, err)
	}
	return thaw
}

// Unmount unmounts the last mount at a folder. It waits up to ten seconds for open files to be closed, and detaches the
// mount then. It does nothing where nothing is mounted.
func Unmount(at string) {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Unmount(at, 0)
		if errors.Is(err, unix.EBUSY) && time.Now().After(end) {
			err = unix.Unmount(at, unix.MNT_DETACH)
		}
		if !errors.Is(err, unix.EBUSY) {
			return
		}
	}
}

// Detach removes a mount at once (umount -l). Open files stay usable, but the mount is not visible any more.
func Detach(t testing.TB, at string) {
	t.Helper()
	if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
		t.Fatalf("umount -l %s: %v", at, err)
	}
}

//go:embed folding.py
var folding []byte

// Folding mounts a folder on FUSE in which different spellings of a name are one. mode is "case", "forms" (NFC and NFD) or
// "rewrite" (the same, and names are stored as NFD); folding.py says which file systems do so. It has no
// RENAME_NOREPLACE.
func Folding(t testing.TB, mode string) string {
	t.Helper()
	program, below, at := filepath.Join(t.TempDir(), "folding.py"), t.TempDir(), t.TempDir()
	if err := os.WriteFile(program, folding, 0o600); err != nil {
		t.Fatal(err)
	}
	FUSE(t, at, "/usr/bin/python3", program, mode, below, at) // Debian's, which has the library for FUSE
	return at
}

// Union mounts a mergerfs of folders at a folder, and unmounts it when the test ends. New files go to the first folder.
// The union has no least free space: by default it answers ENOSPC where a folder's disk has less than 4 GiB free.
func Union(t testing.TB, at string, folders ...string) {
	t.Helper()
	FUSE(t, at, "mergerfs", "-o", "category.create=ff,minfreespace=0", strings.Join(folders, ":"), at)
}

// FUSE runs a program that mounts a FUSE file system at a folder, and unmounts it when the test ends.
func FUSE(t testing.TB, at string, args ...string) {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Fatalf("%v (these tests need FUSE)", err)
	}
	var before, now unix.Stat_t
	if err := unix.Stat(at, &before); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stderr = os.Stderr // not a pipe: a program that goes on in the background would keep it open
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		Unmount(at)
		if err := <-ended; err != nil {
			t.Logf("%s: %v", args[0], err)
		}
	})
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if err := unix.Stat(at, &now); err == nil && now.Dev != before.Dev {
			return
		}
		select {
		case err := <-ended:
			ended <- err
			if err != nil {
				t.Fatalf("%v: %v", args, err)
			}
		default:
		}
	}
	t.Fatalf("%v has mounted nothing", args)
}

// CaseFolded mounts an ext4 that folds case and Unicode forms in folders with the flag of chattr +F, and returns one. It
// skips the test where the kernel was built without CONFIG_UNICODE.
func CaseFolded(t testing.TB) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "ext4.image")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 64<<20)); err != nil {
		t.Fatal(err)
	}
	Run(t, "mkfs.ext4", "-q", "-F", "-O", "casefold", image)
	at := t.TempDir()
	if err := Command("mount", "-o", "loop", image, at); err != nil {
		if _, kernel := os.Stat("/sys/fs/ext4/features/casefold"); kernel != nil {
			t.Skipf("this kernel was built without CONFIG_UNICODE: %v", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { Unmount(at) })
	folded := filepath.Join(at, "folded")
	Run(t, "mkdir", folded)
	Run(t, "chattr", "+F", folded)
	return folded
}
