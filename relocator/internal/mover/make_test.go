package mover_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/relocator/internal/tier"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/policy"
)

func TestMakePublishesAFileOnTheTarget(t *testing.T) {
	for _, r := range routes {
		for _, size := range []int{0, 1, 1 << 20, 9<<20 + 17} {
			for _, verify := range []mover.Verify{mover.ReadBack, mover.Stream} {
				t.Run(fmt.Sprintf("%s, %d bytes, %s", r.name, size, verify), func(t *testing.T) {
					from, to := r.tiers(t)
					data := random(size)
					src := from.Path + "/a/b/film.mp4"
					write(t, src, data)
					var steps []fsys.Step
					m := mover.New(mover.Options{Verify: verify, FS: recorder(&steps)})
					req := request(from, to, "a/b/film.mp4")
					var done, total int64
					req.Progress = func(d, n int64) {
						if d < done {
							t.Errorf("progress went back from %d to %d", done, d)
						}
						done, total = d, n
					}
					made, err := m.Make(context.Background(), req)
					if err != nil {
						t.Fatal(err)
					}
					want := ""
					if r.method == mover.Copied {
						want = sha(data)
					}
					if made.Method != r.method || made.Bytes != int64(size) || made.Digest != want || made.Adopted {
						t.Errorf("made %+v", made)
					}
					if done != int64(size) || total != int64(size) {
						t.Errorf("progress ended at %d of %d", done, total)
					}
					if got := contains(steps, fsys.ReadBack); got != (verify == mover.ReadBack && r.method == mover.Copied) {
						t.Errorf("read back: %v", got)
					}
					sameBytes(t, to.Path+"/a/b/film.mp4", data)
					sameBytes(t, src, data)
					if left := scratch(t, to); len(left) != 1 || left[0] != "tmp/7."+eventID+"."+req.Token {
						t.Errorf("before the emit .tierflow holds %v, want the record", left)
					}
					if err := made.Discard(); err != nil {
						t.Fatal(err)
					}
					wantClean(t, from, to)
				})
			}
		}
	}
}

func TestADirectoryIsMovedAsAUnit(t *testing.T) {
	for _, r := range routes {
		t.Run(r.name, func(t *testing.T) {
			from, to := r.tiers(t)
			writeTree(t, from.Path+"/show/hls")
			before := tree(t, from.Path)
			made, err := mover.New(mover.Options{}).Make(context.Background(), request(from, to, "show/hls"))
			if err != nil {
				t.Fatal(err)
			}
			if made.Method != r.method || made.Bytes != 8+70_000+3+1<<20+5 || (made.Digest != "") != (r.method == mover.Copied) {
				t.Errorf("made %+v", made)
			}
			equalTrees(t, "target", tree(t, to.Path), before)
			equalTrees(t, "source", tree(t, from.Path), before)
			if len(scratch(t, to)) != 1 {
				t.Errorf("the record is missing: %v", scratch(t, to))
			}
			if err := made.Discard(); err != nil {
				t.Fatal(err)
			}
			wantClean(t, from, to)
		})
	}
}

func TestOwnerModeTimesAndAttributesAreKept(t *testing.T) {
	for _, r := range routes {
		t.Run(r.name, func(t *testing.T) {
			from, to := r.tiers(t)
			write(t, from.Path+"/club/film.mp4", random(100))
			write(t, from.Path+"/club/hls/part/1.ts", random(100))
			paths := []string{"club/hls/part/1.ts", "club/film.mp4", "club/hls/part", "club/hls", "club"}
			old := time.Date(2001, 2, 3, 4, 5, 6, 789012345, time.UTC)
			for i, p := range paths {
				err := errors.Join(os.Lchown(from.Path+"/"+p, 1000+i, 2000+i), os.Chmod(from.Path+"/"+p, os.FileMode(0o710+i)|os.ModeSetgid),
					unix.Setxattr(from.Path+"/"+p, "user.origin", bytes.Repeat([]byte{byte(i)}, 1500), 0),
					os.Chtimes(from.Path+"/"+p, old.Add(time.Hour), old.Add(time.Duration(i))))
				if err != nil {
					t.Fatalf("%v (these tests must run as root)", err)
				}
			}
			m := mover.New(mover.Options{})
			mustMake(t, m, request(from, to, "club/film.mp4"))
			mustMake(t, m, request(from, to, "club/hls"))
			for i, p := range paths {
				was, is := lstat(t, from.Path+"/"+p), lstat(t, to.Path+"/"+p)
				if is.Uid != was.Uid || is.Gid != was.Gid || is.Mode != was.Mode {
					t.Errorf("%s: %d:%d %o, want %d:%d %o", p, is.Uid, is.Gid, is.Mode, was.Uid, was.Gid, was.Mode)
				}
				if p != "club" && is.Mtim != was.Mtim { // the parent folder got new entries
					t.Errorf("%s: mtime %v, want %v", p, is.Mtim, was.Mtim)
				}
				buf := make([]byte, 2000)
				n, err := unix.Getxattr(to.Path+"/"+p, "user.origin", buf)
				if err != nil || !bytes.Equal(buf[:n], bytes.Repeat([]byte{byte(i)}, 1500)) {
					t.Errorf("%s: attribute of %d bytes, %v", p, n, err)
				}
			}
		})
	}
}

func TestHolesAreKept(t *testing.T) {
	for _, r := range routes[1:] {
		t.Run(r.name, func(t *testing.T) {
			from, to := r.tiers(t)
			const size = 64<<20 + 123
			src := from.Path + "/sparse.img"
			f, err := os.Create(src)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for _, off := range []int64{1 << 20, 20<<20 - 7, 50 << 20} {
				if _, err := f.WriteAt(random(40_000), off); err != nil {
					t.Fatal(err)
				}
			}
			if err := f.Truncate(size); err != nil {
				t.Fatal(err)
			}
			data, err := os.ReadFile(src)
			if err != nil {
				t.Fatal(err)
			}
			made := mustMake(t, mover.New(mover.Options{}), request(from, to, "sparse.img"))
			sameBytes(t, to.Path+"/sparse.img", data)
			if made.Digest != sha(data) || made.Bytes != size {
				t.Errorf("made %+v", made)
			}
			was, is := lstat(t, src), lstat(t, to.Path+"/sparse.img")
			if is.Blocks > was.Blocks+64 {
				t.Errorf("%d blocks are allocated, the source has %d", is.Blocks, was.Blocks)
			}
		})
	}
}

func TestTheDigestOfADirectoryIsThatOfSha256sum(t *testing.T) {
	from, to := routes[1].tiers(t)
	dir := from.Path + "/odd names"
	writeTree(t, dir)
	for _, n := range []string{`back\slash`, "new\nline", "carriage\rreturn", " space ", "ünï", "\xff\xfe", "*", "-n"} {
		write(t, dir+"/sub/"+n, []byte(n))
	}
	shell := exec.Command("bash", "-o", "pipefail", "-c",
		`find . -type f -printf '%P\0' | xargs -0 sha256sum -- | LC_ALL=C sort | sha256sum`)
	shell.Dir = dir
	out, err := shell.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	want := "sha256:" + strings.Fields(string(out))[0]
	m := mover.New(mover.Options{})
	if made := mustMake(t, m, request(from, to, "odd names")); made.Digest != want {
		t.Errorf("Make says %s, the shell %s", made.Digest, want)
	}
	root, err := tier.Open(fsys.FS{}, to)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if got, err := m.Digest(context.Background(), root, "odd names"); err != nil || got != want {
		t.Errorf("Digest says %s, %v, the shell %s", got, err, want)
	}
	if got, err := m.Digest(context.Background(), root, "odd names/empty.vtt"); err != nil || got != sha(nil) {
		t.Errorf("Digest of a file: %s, %v", got, err)
	}
	_, err = m.Digest(context.Background(), root, "absent")
	wantKind(t, err, fault.MissingFile)
}

func TestAFileThatCannotBeLinkedIsClonedOrCopied(t *testing.T) {
	noLink := failing(fsys.LinkTemp, unix.EMLINK)
	t.Run("copied on a file system without clones", func(t *testing.T) {
		from, to := routes[0].tiers(t)
		data := random(3 << 20)
		write(t, from.Path+"/f", data)
		if made := mustMake(t, mover.New(mover.Options{FS: noLink}), request(from, to, "f")); made.Method != mover.Copied || made.Digest != sha(data) {
			t.Errorf("made %+v", made)
		}
	})
	t.Run("cloned on a file system with clones", func(t *testing.T) {
		image := filepath.Join(t.TempDir(), "xfs")
		if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 512<<20)); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("mkfs.xfs", "-q", "-m", "reflink=1", image).CombinedOutput(); err != nil {
			t.Fatalf("mkfs.xfs: %v: %s (this test needs xfsprogs)", err, out)
		}
		base := mount(t, "-o", "loop", image)
		from, to := newLevel(t, base, "bronze"), newLevel(t, base, "gold")
		for _, verify := range []mover.Verify{mover.ReadBack, mover.Stream} {
			for _, size := range []int{0, 3<<20 + 1} {
				data := random(size)
				name := fmt.Sprintf("%s-%d", verify, size)
				write(t, from.Path+"/"+name, data)
				made := mustMake(t, mover.New(mover.Options{Verify: verify, FS: noLink}), request(from, to, name))
				if made.Method != mover.Cloned || made.Digest != sha(data) {
					t.Errorf("made %+v", made)
				}
				sameBytes(t, to.Path+"/"+name, data)
				if lstat(t, to.Path+"/"+name).Ino == lstat(t, from.Path+"/"+name).Ino {
					t.Error("it is the same file")
				}
			}
		}
	})
	t.Run("a directory of which one file cannot be linked", func(t *testing.T) {
		from, to := routes[0].tiers(t)
		writeTree(t, from.Path+"/d")
		made := mustMake(t, mover.New(mover.Options{FS: at(fsys.LinkTemp, 3, func(string) error { return unix.EMLINK })}),
			request(from, to, "d"))
		root, err := tier.Open(fsys.FS{}, to)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		want, err := mover.New(mover.Options{}).Digest(context.Background(), root, "d")
		if err != nil || made.Method != mover.Copied || made.Digest != want {
			t.Errorf("made %+v, want digest %s, %v", made, want, err)
		}
	})
}

func TestAnExistingCopyWithTheSameBytesIsAdopted(t *testing.T) {
	for _, r := range routes {
		for _, kind := range []string{"file", "directory"} {
			t.Run(kind+" "+r.name, func(t *testing.T) {
				from, to := r.tiers(t)
				if kind == "file" {
					write(t, from.Path+"/a/x", random(100_000))
				} else {
					writeTree(t, from.Path+"/a/x")
				}
				// The first attempt publishes, and its process dies before the emit.
				first, err := mover.New(mover.Options{}).Make(context.Background(), request(from, to, "a/x"))
				if err != nil {
					t.Fatal(err)
				}
				was := lstat(t, to.Path+"/a/x")
				var steps []fsys.Step
				made := mustMake(t, mover.New(mover.Options{FS: recorder(&steps)}), request(from, to, "a/x"))
				if !made.Adopted || made.Bytes != first.Bytes || made.Digest != first.Digest || made.Method != first.Method {
					t.Errorf("made %+v, first %+v", made, first)
				}
				if is := lstat(t, to.Path+"/a/x"); is.Ino != was.Ino {
					t.Error("it was replaced")
				}
				if !contains(steps, fsys.FsyncAdopted) || !contains(steps, fsys.FsyncFolder) {
					t.Errorf("it was not made durable: %v", steps)
				}
				if len(scratch(t, to)) != 1 {
					t.Errorf("the first attempt's record must stay: %v", scratch(t, to))
				}
				equalTrees(t, "target", tree(t, to.Path), tree(t, from.Path))
			})
		}
	}
	t.Run("published by another process at the last moment", func(t *testing.T) {
		from, to := routes[1].tiers(t)
		data := random(1000)
		write(t, from.Path+"/x", data)
		m := mover.New(mover.Options{FS: at(fsys.Publish, 1, func(string) error { write(t, to.Path+"/x", data); return nil })})
		if made := mustMake(t, m, request(from, to, "x")); !made.Adopted || made.Digest != sha(data) {
			t.Errorf("made %+v", made)
		}
		wantClean(t, from, to)
	})
}

func TestSomethingElseUnderTheNameIsAConflict(t *testing.T) {
	file := func(path string) func(testing.TB, policy.Level) {
		return func(t testing.TB, l policy.Level) { write(t, l.Path+"/"+path, []byte("other")) }
	}
	for name, c := range map[string]struct {
		dir    bool
		occupy func(testing.TB, policy.Level)
	}{
		"a file of another size":     {false, func(t testing.TB, l policy.Level) { write(t, l.Path+"/a/x", []byte("longer")) }},
		"a file with other bytes":    {false, file("a/x")},
		"a directory for a file":     {false, file("a/x/y")},
		"a file for a directory":     {true, file("a/x")},
		"a file for a parent folder": {false, file("a")},
		"another entry":              {true, file("a/x/more")},
		"an empty directory":         {true, func(t testing.TB, l policy.Level) { _ = os.MkdirAll(l.Path+"/a/x", 0o755) }},
		"a symbolic link": {false, func(t testing.TB, l policy.Level) {
			_ = os.Mkdir(l.Path+"/a", 0o755)
			_ = os.Symlink("y", l.Path+"/a/x")
		}},
		"a linked parent folder": {false, func(t testing.TB, l policy.Level) { _ = os.Symlink(t.TempDir(), l.Path+"/a") }},
		"a FIFO": {false, func(t testing.TB, l policy.Level) {
			_ = os.Mkdir(l.Path+"/a", 0o755)
			_ = unix.Mkfifo(l.Path+"/a/x", 0o644)
		}},
		"a file within the directory": {true, func(t testing.TB, l policy.Level) {
			writeTree(t, l.Path+"/a/x")
			write(t, l.Path+"/a/x/360p/seg-2.ts", []byte("abc"))
		}},
	} {
		for _, r := range routes {
			for _, late := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, %s, late %v", name, r.name, late), func(t *testing.T) {
					from, to := r.tiers(t)
					if c.dir {
						writeTree(t, from.Path+"/a/x")
					} else {
						write(t, from.Path+"/a/x", []byte("bytes"))
					}
					var fs fsys.FS
					if late {
						fs = at(fsys.FsyncRecord, 1, func(string) error { c.occupy(t, to); return nil })
					} else {
						c.occupy(t, to)
					}
					source := tree(t, from.Path)
					made, err := mover.New(mover.Options{FS: fs}).Make(context.Background(), request(from, to, "a/x"))
					wantKind(t, err, fault.Conflict)
					if made != nil {
						t.Errorf("made %+v", made)
					}
					if !late {
						fresh := newLevel(t, t.TempDir(), "fresh")
						c.occupy(t, fresh)
						if name != "a file within the directory" && name != "a linked parent folder" {
							equalTrees(t, "target", tree(t, to.Path), tree(t, fresh.Path))
						}
					}
					equalTrees(t, "source", tree(t, from.Path), source)
					wantClean(t, from, to)
				})
			}
		}
	}
}

func TestAMissingSourceIsAMissingFile(t *testing.T) {
	from, to := routes[0].tiers(t)
	write(t, from.Path+"/file", nil)
	for _, name := range []string{"absent", "no/folder", "file/below"} {
		_, err := mover.New(mover.Options{}).Make(context.Background(), request(from, to, name))
		wantKind(t, err, fault.MissingFile, from.Path+"/"+name)
	}
	equalTrees(t, "target", tree(t, to.Path), map[string]string{".": "drwxr-xr-x"})
}

func TestAWrongTierIsRefused(t *testing.T) {
	from, to := routes[0].tiers(t)
	write(t, from.Path+"/x", []byte("x"))
	m := mover.New(mover.Options{})
	unmounted := to
	unmounted.Path = t.TempDir()
	_, err := m.Make(context.Background(), request(from, unmounted, "x"))
	wantKind(t, err, fault.TierRefused, "gold", unmounted.Path)
	if es, _ := os.ReadDir(unmounted.Path); len(es) > 0 {
		t.Errorf("wrote %v", es)
	}
	_, err = m.Make(context.Background(), request(from, from, "x"))
	wantKind(t, err, fault.TierRefused, "same folder")
	for step, published := range map[fsys.Step]bool{fsys.FsyncRecord: false, fsys.FsyncFolder: true} {
		t.Run("a target that goes away before "+string(step), func(t *testing.T) {
			from, to := routes[1].tiers(t)
			write(t, from.Path+"/x", []byte("x"))
			m := mover.New(mover.Options{FS: at(step, 1, func(string) error { return os.Rename(to.Path, to.Path+"-away") })})
			made, err := m.Make(context.Background(), request(from, to, "x"))
			wantKind(t, err, fault.TierRefused, "gold")
			if (made != nil) != published {
				t.Errorf("made %+v", made)
			}
		})
	}
}

func TestAFileWithTwoNamesInADirectoryIsMoved(t *testing.T) {
	for _, r := range routes {
		from, to := r.tiers(t)
		write(t, from.Path+"/d/a", []byte("a"))
		if err := os.Link(from.Path+"/d/a", from.Path+"/d/b"); err != nil {
			t.Fatal(err)
		}
		mustMake(t, mover.New(mover.Options{}), request(from, to, "d"))
		equalTrees(t, "target", tree(t, to.Path), tree(t, from.Path))
	}
}

func TestMakeFirstRemovesTheFoldersOfReleasers(t *testing.T) {
	from, to := routes[0].tiers(t)
	write(t, from.Path+"/x", []byte("x"))
	released := to.Path + "/.tierflow/released/"
	write(t, released+"7.aaa/copy/with/things", nil)
	write(t, released+"7.ccc/copy", nil)
	write(t, released+"71.bbb/copy", nil)
	if err := os.Mkdir(released+"7.bbb", 0o500); err != nil {
		t.Fatal(err)
	}
	// A paused releaser fills its folder while Make removes it, and another releaser begins.
	n := 0
	fs := fsys.FS{Hook: func(s fsys.Step, p string) error {
		if s == fsys.ClearReleased && strings.HasSuffix(p, "/7.bbb") {
			if n++; n == 4 {
				write(t, released+"7.bbb/copy", nil)
				write(t, released+"7.ddd/copy", nil)
			}
		}
		if s == fsys.LookTarget {
			if es, _ := filepath.Glob(released + "7.*"); len(es) > 0 {
				t.Errorf("the look at the target came while there was %v", es)
			}
		}
		return nil
	}}
	mustMake(t, mover.New(mover.Options{FS: fs}), request(from, to, "x"))
	if n < 4 {
		t.Errorf("the race did not happen: %d", n)
	}
	if left := scratch(t, to); len(left) != 1 || left[0] != "released/71.bbb" {
		t.Errorf("left %v", left)
	}
}

func TestFoldersThatOthersRemoveAreMadeAgain(t *testing.T) {
	from, to := routes[1].tiers(t)
	write(t, from.Path+"/a/b/x", []byte("x"))
	m := mover.New(mover.Options{FS: at(fsys.Publish, 1, func(string) error { return os.RemoveAll(to.Path + "/a") })})
	mustMake(t, m, request(from, to, "a/b/x"))
	sameBytes(t, to.Path+"/a/b/x", []byte("x"))
	always := fsys.FS{Hook: func(s fsys.Step, _ string) error {
		if s == fsys.Publish {
			return os.RemoveAll(to.Path + "/c")
		}
		return nil
	}}
	write(t, from.Path+"/c/x", []byte("x"))
	made, err := mover.New(mover.Options{FS: always}).Make(context.Background(), request(from, to, "c/x"))
	wantKind(t, err, fault.Busy)
	if made != nil {
		t.Errorf("made %+v", made)
	}
	wantClean(t, to)
}
