package mover_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/policy"
)

// TestAFolderSwappedForALinkAtAnyStepNeverLeadsOutside swaps the folder above an item for a symbolic link, before every
// single operation of a move and of a release in turn. The link leads to a folder outside the tiers with the same names.
// inotify reports whether anything there was opened or changed.
func TestAFolderSwappedForALinkAtAnyStepNeverLeadsOutside(t *testing.T) {
	other := mount(t, "-t", "tmpfs", "-o", "size=64m", "none") // an fsync costs nothing in memory
	elsewhere := func(t testing.TB) string {
		dir, err := os.MkdirTemp(other, "")
		if err != nil {
			t.Fatal(err)
		}
		return dir
	}
	for _, r := range []route{{"on one file system", inMemory, nil, mover.Linked}, {"across file systems", inMemory, elsewhere, mover.Copied}} {
		for _, name := range []string{"a/b/x", "a/b"} { // a file, and its directory
			for _, where := range []string{"source", "target"} {
				t.Run(strings.Join([]string{name, where, r.name}, " "), func(t *testing.T) {
					kinds := map[fault.Kind]int{}
					n := 0
					for ; swapAt(t, r, name, where, n, kinds); n++ {
						if t.Failed() {
							return
						}
					}
					t.Logf("%d operations; errors: %v", n, kinds)
					if n < 60 {
						t.Errorf("there were only %d operations", n)
					}
				})
			}
		}
	}
}

// swapAt swaps the folder before the n-th operation. false: there were fewer operations.
func swapAt(t *testing.T, r route, name, where string, n int, kinds map[fault.Kind]int) bool {
	t.Helper()
	from, to := r.tiers(t)
	outside := t.TempDir()
	defer func() { _ = errors.Join(os.RemoveAll(from.Path), os.RemoveAll(to.Path), os.RemoveAll(outside)) }()
	write(t, from.Path+"/a/b/x", []byte("public"))
	write(t, outside+"/b/x", []byte("secret"))
	folder := from.Path + "/a"
	if where == "target" {
		folder = to.Path + "/a"
	}
	count, swapped := 0, false
	m := mover.New(mover.Options{FS: fsys.FS{Hook: func(fsys.Step, string) error {
		if count == n {
			swapped = true
			if err := os.Rename(folder, folder+"-real"); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
			}
			if err := os.Symlink(outside, folder); err != nil {
				t.Error(err)
			}
		}
		count++
		return nil
	}}})
	before := tree(t, outside)
	watch := watchFolder(t, outside, outside+"/b", outside+"/b/x")
	made, err := m.Make(context.Background(), request(from, to, name))
	if err != nil {
		kinds[fault.KindOf(err)]++
	}
	if made != nil {
		if err := made.Discard(); err != nil {
			t.Error(err)
		}
	}
	for _, l := range []policy.Level{from, to} {
		if _, err := m.Release(context.Background(), release(l, name)); err != nil {
			kinds[fault.KindOf(err)]++
		}
	}
	for _, event := range watch() {
		t.Errorf("swapped before operation %d: outside the tiers: %s", n, event)
	}
	equalTrees(t, fmt.Sprintf("swapped before operation %d: outside", n), tree(t, outside), before)
	known := []fault.Kind{fault.Unsupported, fault.Conflict, fault.MissingFile, fault.Changed, fault.Busy}
	for kind := range kinds {
		if !slices.Contains(known, kind) {
			t.Errorf("swapped before operation %d: %q: %v", n, kind, err)
		}
	}
	return swapped
}

func TestTheWatchReportsAReadOutsideTheTiers(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/x", []byte("secret"))
	watch := watchFolder(t, dir, dir+"/x")
	if _, err := os.ReadFile(dir + "/x"); err != nil {
		t.Fatal(err)
	}
	if len(watch()) == 0 {
		t.Error("the read was not reported")
	}
}

// watchFolder watches paths with inotify, which reports every operation except stat. events ends the watch and returns
// what was reported.
func watchFolder(t *testing.T, paths ...string) (events func() []string) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		_, err := unix.InotifyAddWatch(fd, p, unix.IN_ALL_EVENTS)
		if err != nil {
			t.Fatal(err)
		}
	}
	return func() (seen []string) {
		defer unix.Close(fd)
		buf := make([]byte, 64<<10)
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EAGAIN) {
			return nil
		}
		if err != nil {
			t.Fatal(err)
		}
		return []string{fmt.Sprintf("%d bytes of events: % x", n, buf[:min(n, 64)])}
	}
}

func TestALinkSwappedInForAMomentIsNotPublished(t *testing.T) {
	from, to := routes[0].tiers(t)
	write(t, from.Path+"/x", []byte("x"))
	n := 0
	m := mover.New(mover.Options{FS: fsys.FS{Hook: func(s fsys.Step, _ string) error {
		if s != fsys.LinkTemp {
			return nil
		}
		switch n++; n {
		case 1: // before the link
			return errors.Join(os.Rename(from.Path+"/x", from.Path+"/real"), os.Symlink("/etc/passwd", from.Path+"/x"))
		case 2: // after it
			return os.Rename(from.Path+"/real", from.Path+"/x")
		}
		return nil
	}}})
	mustMake(t, m, request(from, to, "x"))
	if st := lstat(t, to.Path+"/x"); st.Mode&unix.S_IFMT != unix.S_IFREG {
		t.Errorf("published %s", fsys.Kind(&st))
	}
	sameBytes(t, to.Path+"/x", []byte("x"))
}

// TestLinksSwappedInAllTheTimeNeverLeadOutside moves an item while another process swaps a folder above it for a link
// again and again, on both tiers.
func TestLinksSwappedInAllTheTimeNeverLeadOutside(t *testing.T) {
	for _, r := range routes {
		t.Run(r.name, func(t *testing.T) {
			from, to := r.tiers(t)
			outside := t.TempDir()
			write(t, outside+"/x", []byte("secret"))
			write(t, outside+"/d/y", []byte("secret"))
			before := tree(t, outside)
			write(t, from.Path+"/a/x", []byte("public"))
			write(t, from.Path+"/a/d/y", []byte("public"))
			stop, stopped := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(stopped)
				for {
					select {
					case <-stop:
						return
					default:
					}
					for _, p := range []string{from.Path + "/a", to.Path + "/a"} {
						if os.Rename(p, p+"-real") == nil {
							_ = os.Symlink(outside, p)
							_ = os.Remove(p)
							_ = os.Remove(p) // a folder that the mover made again, if it is empty
							_ = os.Rename(p+"-real", p)
						}
					}
				}
			}()
			m := mover.New(mover.Options{})
			succeeded := 0
			for i := range 300 {
				req := request(from, to, []string{"a/x", "a/d"}[i%2])
				made, err := m.Make(context.Background(), req)
				if err == nil {
					succeeded++
				}
				if made != nil {
					if err := made.Discard(); err != nil {
						t.Error(err)
					}
				}
				_, _ = m.Release(context.Background(), mover.ReleaseRequest{ID: 7, Token: token(), Filename: req.Filename, Tier: to,
					Fence: func(context.Context) (bool, error) { return true, nil }})
			}
			close(stop)
			<-stopped
			t.Logf("%d of 300 moves succeeded", succeeded)
			equalTrees(t, "outside", tree(t, outside), before)
			for _, l := range []policy.Level{from, to} {
				for p, v := range tree(t, l.Path) {
					if strings.HasSuffix(v, sha([]byte("secret"))) {
						t.Errorf("%s of %s came from outside", p, l.Name)
					}
				}
			}
		})
	}
}
