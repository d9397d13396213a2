// Package testdisk gives tests real disks that can be full, read-only, unmounted or broken: file systems in memory and
// on loop devices, in a mount namespace that nobody else sees. It is for tests only, and needs root.
//
// A package that uses it has
//
//	func TestMain(m *testing.M) { testdisk.Main(func() { os.Exit(m.Run()) }) }
package testdisk

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const inside = "TIERFLOW_TEST_IN_NAMESPACE"

// Main runs the test program once more, with the same arguments, in a mount namespace of its own, and exits as that one
// does. There it calls run: whatever happens to the tests, their mounts and loop devices go with the process.
func Main(run func()) {
	if os.Getenv(inside) != "" {
		run()
		return
	}
	runtime.LockOSThread() // the child dies with the thread that started it
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		os.Exit(0)
	case errors.As(err, &exit):
		os.Exit(max(1, exit.ExitCode()))
	}
	fmt.Fprintf(os.Stderr, "%v (these tests must run as root, with the right to mount)\n", err)
	os.Exit(1)
}

// Command runs a command to its end; an error has its output.
func Command(args ...string) error {
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w: %s(these tests must run as root, with the right to mount)", args, err, out)
	}
	return nil
}

// Run is a Command that must succeed.
func Run(t testing.TB, args ...string) {
	t.Helper()
	if err := Command(args...); err != nil {
		t.Fatal(err)
	}
}

// Mount mounts at an existing folder, with the arguments of mount(8) before it, for the duration of the test.
func Mount(t testing.TB, at string, args ...string) {
	t.Helper()
	Run(t, append(append([]string{"mount"}, args...), at)...)
	t.Cleanup(func() { Unmount(at) })
}

// Memory is a file system in memory of so many bytes, such as "8m".
func Memory(t testing.TB, size string) string {
	t.Helper()
	at := t.TempDir()
	Mount(t, at, "-t", "tmpfs", "-o", "size="+size, "none")
	return at
}

// Image makes a file system of a kind ("ext4", "xfs", "btrfs") in a new file in dir, which holds no more of the size
// than is used.
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

// Disk mounts a new file system of a kind and size; image is for those who mount it again.
func Disk(t testing.TB, kind string, size int64) (at, image string) {
	t.Helper()
	image = Image(t, t.TempDir(), kind, size)
	at = t.TempDir()
	Mount(t, at, "-o", "loop", image)
	return at, image
}

// Unmount unmounts what was mounted last at a folder, as soon as nobody has a file open there; what was never mounted is
// left alone.
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

// Detach takes a mount away at once (umount -l): who has a file open there keeps it, and nobody else sees it any more.
func Detach(t testing.TB, at string) {
	t.Helper()
	if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
		t.Fatalf("umount -l %s: %v", at, err)
	}
}
