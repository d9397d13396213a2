package mover_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/relocator/internal/testdisk"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/policy"
)

// mounted makes a level whose root is a mount point.
func mounted(t *testing.T, name string) policy.Level {
	t.Helper()
	at := filepath.Join(t.TempDir(), name)
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	testdisk.Mount(t, at, "-t", "tmpfs", "-o", "size=16m", "none")
	return newLevel(t, filepath.Dir(at), name)
}

// TestAMoveFailsWhenADiskGoesAwayAndWritesNothingInItsPlace unmounts or exchanges a disk before different steps of a move.
func TestAMoveFailsWhenADiskGoesAwayAndWritesNothingInItsPlace(t *testing.T) {
	unmount := func(t *testing.T, l policy.Level) { testdisk.Detach(t, l.Path) }
	exchange := func(t *testing.T, l policy.Level) {
		other := mounted(t, l.Name)
		testdisk.Mount(t, l.Path, "--bind", other.Path)
	}
	unmountAndExchange := func(t *testing.T, l policy.Level) { unmount(t, l); exchange(t, l) }
	for how, away := range map[string]func(*testing.T, policy.Level){
		"unmounted": unmount, "another one mounted over it": exchange, "exchanged": unmountAndExchange,
	} {
		for _, which := range []string{"bronze", "gold"} {
			for _, step := range []fsys.Step{fsys.OpenSource, fsys.WriteTemp, fsys.FsyncTemp, fsys.RecheckSource, fsys.FsyncRecord, fsys.FsyncFolder} {
				if which == "bronze" && step == fsys.FsyncFolder {
					continue // the copy is published: the source is not needed any more
				}
				t.Run(which+" is "+how+" before "+string(step), func(t *testing.T) {
					from, to := mounted(t, "bronze"), mounted(t, "gold")
					l := map[string]policy.Level{"bronze": from, "gold": to}[which]
					write(t, from.Path+"/a/x", random(3<<20))
					// A second mount shows the file system after the first one is gone.
					behind := t.TempDir()
					testdisk.Mount(t, behind, "--bind", from.Path)
					m := mover.New(mover.Options{FS: at(step, 1, func(string) error { away(t, l); return nil })})
					made, err := m.Make(context.Background(), request(from, to, "a/x"))
					wantKind(t, err, fault.TierRefused, which, l.Path, "mount")
					if (made != nil) != (step == fsys.FsyncFolder) {
						t.Errorf("made %+v", made)
					}
					if now := tree(t, l.Path); len(now) > 1 {
						t.Errorf("something was written in place of the disk: %v", now)
					}
					if got := lstat(t, behind+"/a/x"); got.Size != 3<<20 {
						t.Errorf("the source has %d bytes", got.Size)
					}
				})
			}
		}
	}
}

func TestADiskMountedAgainDuringAMoveIsTheSameDisk(t *testing.T) {
	from := mounted(t, "bronze")
	data := random(100_000)
	base, image := testdisk.Disk(t, "ext4", 64<<20)
	to := newLevel(t, base, "gold")
	write(t, from.Path+"/x", data)
	m := mover.New(mover.Options{FS: at(fsys.FsyncTemp, 1, func(string) error {
		testdisk.Detach(t, base)
		testdisk.Mount(t, base, "-o", "loop", image)
		return nil
	})})
	made, err := m.Make(context.Background(), request(from, to, "x"))
	if err != nil {
		// The detached loop device is still busy, so the kernel may use another one, which is another disk.
		wantKind(t, err, fault.TierRefused, "gold")
		return
	}
	if err := made.Discard(); err != nil {
		t.Fatal(err)
	}
	sameBytes(t, to.Path+"/x", data)
}

func TestAReleaseDeletesNothingWhenTheDiskGoesAway(t *testing.T) {
	for how, away := range map[string]func(*testing.T, policy.Level){
		"unmounted": func(t *testing.T, l policy.Level) { testdisk.Detach(t, l.Path) },
		"exchanged": func(t *testing.T, l policy.Level) {
			other := mounted(t, l.Name)
			write(t, other.Path+"/x", []byte("another disk's"))
			testdisk.Mount(t, l.Path, "--bind", other.Path)
		},
	} {
		t.Run(how, func(t *testing.T) {
			l := mounted(t, "bronze")
			write(t, l.Path+"/x", []byte("x"))
			behind := t.TempDir()
			testdisk.Mount(t, behind, "--bind", l.Path)
			r := release(l, "x")
			r.Fence = func(context.Context) (bool, error) { away(t, l); return true, nil }
			_, err := mover.New(mover.Options{}).Release(context.Background(), r)
			wantKind(t, err, fault.TierRefused, "bronze", l.Path, "mount")
			sameBytes(t, behind+"/x", []byte("x"))
			if how == "exchanged" {
				sameBytes(t, l.Path+"/x", []byte("another disk's"))
			}
		})
	}
}

func TestTwoPathsOfOneFolderAreRefusedBeforeAnythingIsTouched(t *testing.T) {
	for _, how := range []string{"a bind mount", "a link"} {
		t.Run(how, func(t *testing.T) {
			from := mounted(t, "bronze")
			write(t, from.Path+"/x", []byte("x"))
			to := from
			to.Path = filepath.Join(t.TempDir(), "gold")
			if how == "a link" {
				if err := os.Symlink(from.Path, to.Path); err != nil {
					t.Fatal(err)
				}
			} else {
				if err := os.Mkdir(to.Path, 0o755); err != nil {
					t.Fatal(err)
				}
				testdisk.Mount(t, to.Path, "--bind", from.Path)
			}
			_, err := mover.New(mover.Options{}).Make(context.Background(), request(from, to, "x"))
			wantKind(t, err, fault.TierRefused, from.Path, to.Path, "same folder", "give every level a folder of its own")
			to.Name = "gold" // as the row of another level would name it
			_, err = mover.New(mover.Options{}).Make(context.Background(), request(from, to, "x"))
			wantKind(t, err, fault.TierRefused, "gold", to.Path, `"bronze"`)
			sameBytes(t, from.Path+"/x", []byte("x"))
			wantClean(t, from)
		})
	}
}

// TestFilesAreMovedWhereDeviceNumbersAreMisleading uses tiers with one st_dev between which the kernel does not link, and
// tiers with different st_dev between which it does.
func TestFilesAreMovedWhereDeviceNumbersAreMisleading(t *testing.T) {
	tiers := map[string]func(t *testing.T) (from, to policy.Level, method string){
		"two bind mounts of one disk": func(t *testing.T) (from, to policy.Level, method string) {
			base := testdisk.Memory(t, "64m")
			var ls []policy.Level
			for _, name := range []string{"bronze", "gold"} {
				inner, outer := filepath.Join(base, name), filepath.Join(t.TempDir(), name)
				if err := os.Mkdir(inner, 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.Mkdir(outer, 0o755); err != nil {
					t.Fatal(err)
				}
				testdisk.Mount(t, outer, "--bind", inner)
				ls = append(ls, newLevel(t, filepath.Dir(outer), name))
			}
			if a, b := lstat(t, ls[0].Path), lstat(t, ls[1].Path); a.Dev != b.Dev {
				t.Fatal("the device numbers differ: this test shows nothing")
			}
			return ls[0], ls[1], mover.Copied
		},
		"two subvolumes of one btrfs": func(t *testing.T) (from, to policy.Level, method string) {
			base, _ := testdisk.Disk(t, "btrfs", 256<<20)
			testdisk.Run(t, "btrfs", "-q", "subvolume", "create", base+"/bronze")
			testdisk.Run(t, "btrfs", "-q", "subvolume", "create", base+"/gold")
			return newLevel(t, base, "bronze"), newLevel(t, base, "gold"), mover.Cloned
		},
		"an overlay and its upper layer": func(t *testing.T) (from, to policy.Level, method string) {
			base := overlay(t, func(string) {})
			return newLevel(t, base, "bronze"), newLevel(t, base, "gold"), mover.Linked
		},
	}
	for name, make := range tiers {
		t.Run(name, func(t *testing.T) {
			from, to, method := make(t)
			write(t, from.Path+"/a/film.mp4", random(200_000))
			writeTree(t, from.Path+"/a/hls")
			m := mover.New(mover.Options{})
			for _, c := range []string{"a/film.mp4", "a/hls"} {
				if made := mustMake(t, m, request(from, to, c)); made.Method != method {
					t.Errorf("%s: by %s, want %s", c, made.Method, method)
				}
				equalTrees(t, c, tree(t, to.Path+"/"+c), tree(t, from.Path+"/"+c))
				out, err := m.Release(context.Background(), release(from, c))
				wantOutcome(t, out, err, mover.Released)
			}
			wantClean(t, from, to)
		})
	}
	t.Run("an overlay and its lower layer", func(t *testing.T) {
		data := random(200_000)
		base := overlay(t, func(lower string) {
			write(t, lower+"/bronze/film.mp4", data)
			writeTree(t, lower+"/bronze/hls")
		})
		from, to := newLevel(t, base, "bronze"), newLevel(t, base, "gold")
		m := mover.New(mover.Options{})
		for _, c := range []string{"film.mp4", "hls"} {
			mustMake(t, m, request(from, to, c))
			equalTrees(t, c, tree(t, to.Path+"/"+c), tree(t, from.Path+"/"+c))
		}
		out, err := m.Release(context.Background(), release(from, "film.mp4"))
		wantOutcome(t, out, err, mover.Released)
		// Folders of the lower layer cannot be renamed. Nothing is deleted, and the error says what to do.
		_, err = m.Release(context.Background(), release(from, "hls"))
		wantKind(t, err, fault.Unsupported, from.Path, "overlay")
		equalTrees(t, "what was not released", tree(t, from.Path+"/hls"), tree(t, to.Path+"/hls"))
	})
}

// overlay mounts an overlay file system. fill makes its lower layer.
func overlay(t *testing.T, fill func(lower string)) string {
	t.Helper()
	base, at := testdisk.Memory(t, "64m"), t.TempDir()
	for _, d := range []string{"/lower", "/upper", "/work"} {
		if err := os.Mkdir(base+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	fill(base + "/lower")
	testdisk.Mount(t, at, "-t", "overlay", "-o", "redirect_dir=off,lowerdir="+base+"/lower,upperdir="+base+"/upper,workdir="+base+"/work", "overlay")
	return at
}

func TestAccessListsAreCopiedAndNoneIsInherited(t *testing.T) {
	xfs, _ := testdisk.Disk(t, "xfs", 300<<20)
	ext4, _ := testdisk.Disk(t, "ext4", 64<<20)
	btrfs, _ := testdisk.Disk(t, "btrfs", 256<<20)
	for _, r := range []struct{ name, from, to string }{{"ext4 to xfs", ext4, xfs}, {"xfs to btrfs", xfs, btrfs}, {"btrfs to ext4", btrfs, ext4}} {
		t.Run(r.name, func(t *testing.T) {
			from, to := newLevel(t, r.from, "bronze"), newLevel(t, r.to, "gold")
			defer os.RemoveAll(from.Path)
			defer os.RemoveAll(to.Path)
			for _, p := range []string{"/a/with", "/a/without", "/d/file"} {
				write(t, from.Path+p, random(10))
				if err := os.Chmod(from.Path+p, 0o640); err != nil {
					t.Fatal(err)
				}
			}
			acl := accessList()
			for _, p := range []string{"/a/with", "/d/file", "/d"} {
				if err := unix.Setxattr(from.Path+p, "system.posix_acl_access", acl, 0); err != nil {
					t.Fatal(err)
				}
			}
			// New files in the target's folders inherit this list.
			for _, p := range []string{"", "/.tierflow/tmp"} {
				if err := unix.Setxattr(to.Path+p, "system.posix_acl_default", acl, 0); err != nil {
					t.Fatal(err)
				}
			}
			m := mover.New(mover.Options{})
			for _, c := range []string{"a/with", "a/without", "d"} {
				mustMake(t, m, request(from, to, c))
			}
			for _, p := range []string{"/a/with", "/a/without", "/d/file", "/d", "/a"} {
				for _, name := range []string{"system.posix_acl_access", "system.posix_acl_default"} {
					var was, is [200]byte
					n, _ := unix.Getxattr(from.Path+p, name, was[:])
					k, _ := unix.Getxattr(to.Path+p, name, is[:])
					if string(was[:max(n, 0)]) != string(is[:max(k, 0)]) {
						t.Errorf("%s of %s is %x, was %x", name, p, is[:max(k, 0)], was[:max(n, 0)])
					}
				}
				if was, is := lstat(t, from.Path+p), lstat(t, to.Path+p); was.Mode != is.Mode {
					t.Errorf("%s: mode %o, was %o", p, is.Mode, was.Mode)
				}
			}
		})
	}
}

// accessList is user::rw-, user:1234:r--, group::r--, mask::r--, other::--- in the format of the kernel's attribute.
func accessList() []byte {
	acl := []byte{2, 0, 0, 0}
	for _, e := range []struct {
		tag, perm byte
		id        [4]byte
	}{{1, 6, none}, {2, 4, [4]byte{0xd2, 4}}, {4, 4, none}, {0x10, 4, none}, {0x20, 0, none}} {
		acl = append(acl, e.tag, 0, e.perm, 0)
		acl = append(acl, e.id[:]...)
	}
	return acl
}

var none = [4]byte{0xff, 0xff, 0xff, 0xff}

func TestAnAttributeThatTheTargetCannotHoldIsNotReportedAsAFullTier(t *testing.T) {
	xfs, _ := testdisk.Disk(t, "xfs", 300<<20)
	ext4, _ := testdisk.Disk(t, "ext4", 64<<20)
	from, to := newLevel(t, xfs, "bronze"), newLevel(t, ext4, "gold")
	write(t, from.Path+"/x", random(10))
	if err := unix.Setxattr(from.Path+"/x", "user.poster", random(20_000), 0); err != nil {
		t.Fatal(err)
	}
	_, err := mover.New(mover.Options{}).Make(context.Background(), request(from, to, "x"))
	wantKind(t, err, fault.Unsupported, "user.poster", "20000 bytes")
	wantClean(t, to)
	wantAbsent(t, to.Path+"/x")
}
