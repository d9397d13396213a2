package mover_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/mover"
)

// wantRights compares owner, group and mode.
func wantRights(t *testing.T, path string, uid, gid, mode uint32) {
	t.Helper()
	st := lstat(t, path)
	if st.Uid != uid || st.Gid != gid || st.Mode&0o7777 != mode {
		t.Errorf("%s: %d:%d, mode %o, want %d:%d, %o", path, st.Uid, st.Gid, st.Mode&0o7777, uid, gid, mode)
	}
}

func TestAFolderAboveTheNameAlwaysHasItsOwnerAndMode(t *testing.T) {
	for _, r := range routes {
		t.Run(r.name, func(t *testing.T) {
			from, to := r.tiers(t)
			write(t, from.Path+"/club/deep/x", random(10))
			if err := errors.Join(os.Chown(from.Path+"/club", 1000, 1001), unix.Chmod(from.Path+"/club", 0o2770)); err != nil {
				t.Fatal(err)
			}
			// A move that fails while it makes the folder must not leave it without its owner and mode.
			failed := 0
			m := mover.New(mover.Options{FS: fsys.FS{Hook: func(s fsys.Step, path string) error {
				if s != fsys.SetMetadata || filepath.Dir(path) != to.Path+"/.tierflow/tmp" || !isDir(path) {
					return nil
				}
				wantAbsent(t, to.Path+"/club")
				failed++
				return unix.ENOSPC
			}}})
			if made, err := m.Make(context.Background(), request(from, to, "club/deep/x")); err == nil || made != nil || failed != 1 {
				t.Fatalf("made %+v, %v, failed %d times", made, err, failed)
			}
			wantClean(t, to)
			mustMake(t, mover.New(mover.Options{}), request(from, to, "club/deep/x"))
			wantRights(t, to.Path+"/club", 1000, 1001, 0o2770)
			wantRights(t, to.Path+"/club/deep", 0, 0, 0o755)
		})
	}
}

func isDir(path string) bool {
	st, err := os.Lstat(path)
	return err == nil && st.IsDir()
}

// unprivileged calls fn in a thread of another user without capabilities, who is also a member of the group more.
func unprivileged(t *testing.T, uid, gid, more int, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // it is never unlocked, so the thread ends with the goroutine
		group := uint32(more)
		// The functions of package syscall would change all threads.
		_, _, e1 := unix.RawSyscall(unix.SYS_SETGROUPS, 1, uintptr(unsafe.Pointer(&group)), 0)
		_, _, e2 := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid))
		_, _, e3 := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid))
		if e1 != 0 || e2 != 0 || e3 != 0 {
			t.Errorf("%v, %v, %v", e1, e2, e3)
			return
		}
		fn()
	}()
	<-done
}

func TestAnUnprivilegedMoverKeepsAGroupThatItIsAMemberOf(t *testing.T) {
	from, to := routes[1].tiers(t)
	write(t, from.Path+"/dir/x", random(10))
	owned(t, 10001, from.Path, to.Path)
	if err := errors.Join(os.Chown(from.Path+"/dir/x", 1000, 2000), os.Chmod(from.Path+"/dir/x", 0o640)); err != nil {
		t.Fatal(err)
	}
	unprivileged(t, 10001, 10001, 2000, func() {
		mustMake(t, mover.New(mover.Options{}), request(from, to, "dir/x"))
	})
	wantRights(t, to.Path+"/dir/x", 10001, 2000, 0o640)
}

func TestAnUnprivilegedMoverMovesAndReleasesAReadOnlyDirectory(t *testing.T) {
	for _, r := range routes[:2] {
		t.Run(r.name, func(t *testing.T) {
			from, to := r.tiers(t)
			write(t, from.Path+"/above/dir/x", random(10))
			owned(t, 10001, from.Path, to.Path)
			if err := os.Chmod(from.Path+"/above/dir", 0o555); err != nil {
				t.Fatal(err)
			}
			unprivileged(t, 10001, 10001, 10001, func() {
				mustMake(t, mover.New(mover.Options{}), request(from, to, "above/dir"))
			})
			wantRights(t, to.Path+"/above/dir", 10001, 10001, 0o555)
			unprivileged(t, 10001, 10001, 10001, func() {
				outcome, err := mover.New(mover.Options{}).Release(context.Background(), release(from, "above/dir"))
				wantOutcome(t, outcome, err, mover.Released)
			})
			wantAbsent(t, from.Path+"/above/dir")
			wantClean(t, from, to)
		})
	}
}

// owned gives folders and everything in them to a user, and makes the folders above accessible to all.
func owned(t *testing.T, id int, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		for above := filepath.Dir(dir); above != "/" && above != os.TempDir() && above != "/dev/shm"; above = filepath.Dir(above) {
			if err := os.Chmod(above, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error { return errors.Join(err, os.Chown(path, id, id)) })
		if err != nil {
			t.Fatal(err)
		}
	}
}
