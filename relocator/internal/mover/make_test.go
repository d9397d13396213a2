package mover_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/relocator/internal/tier"
	"github.com/tierflow/tierflow/shared/content"
	"github.com/tierflow/tierflow/shared/fault"
)

func TestAFileIsMadeOnTheTarget(t *testing.T) {
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

func TestADirectoryIsMadeAsAUnit(t *testing.T) {
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
				if p != "club" && is.Mtim != was.Mtim { // a parent folder got new entries
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

func TestTheDigestOfADirectoryIsWhatSha256sumGives(t *testing.T) {
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

func TestWhereAFileCannotBeLinkedItIsClonedOrCopied(t *testing.T) {
	noLink := failing(fsys.LinkTemp, unix.EMLINK)
	t.Run("copied where there are no clones", func(t *testing.T) {
		from, to := routes[0].tiers(t)
		data := random(3 << 20)
		write(t, from.Path+"/f", data)
		if made := mustMake(t, mover.New(mover.Options{FS: noLink}), request(from, to, "f")); made.Method != mover.Copied || made.Digest != sha(data) {
			t.Errorf("made %+v", made)
		}
	})
	t.Run("cloned where there are", func(t *testing.T) {
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
	t.Run("one file of a directory alone", func(t *testing.T) {
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

func TestWhatIsThereAlreadyWithTheSameBytesIsAdopted(t *testing.T) {
	for _, r := range routes {
		for _, kind := range []string{"file", "directory"} {
			t.Run(kind+" "+r.name, func(t *testing.T) {
				from, to := r.tiers(t)
				if kind == "file" {
					write(t, from.Path+"/a/x", random(100_000))
				} else {
					writeTree(t, from.Path+"/a/x")
				}
				// An attempt publishes, and its process dies before the emit.
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
	t.Run("published by somebody else in the last moment", func(t *testing.T) {
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

func TestANameTakenBySomethingElseIsAConflict(t *testing.T) {
	file := func(path string) func(testing.TB, content.Level) {
		return func(t testing.TB, l content.Level) { write(t, l.Path+"/"+path, []byte("other")) }
	}
	for name, c := range map[string]struct {
		dir    bool
		occupy func(testing.TB, content.Level)
	}{
		"a file of another size":     {false, func(t testing.TB, l content.Level) { write(t, l.Path+"/a/x", []byte("longer")) }},
		"a file with other bytes":    {false, file("a/x")},
		"a directory for a file":     {false, file("a/x/y")},
		"a file for a directory":     {true, file("a/x")},
		"a file for a parent folder": {false, file("a")},
		"another entry":              {true, file("a/x/more")},
		"an empty directory":         {true, func(t testing.TB, l content.Level) { _ = os.MkdirAll(l.Path+"/a/x", 0o755) }},
		"a symbolic link": {false, func(t testing.TB, l content.Level) {
			_ = os.Mkdir(l.Path+"/a", 0o755)
			_ = os.Symlink("y", l.Path+"/a/x")
		}},
		"a linked parent folder": {false, func(t testing.TB, l content.Level) { _ = os.Symlink(t.TempDir(), l.Path+"/a") }},
		"a FIFO": {false, func(t testing.TB, l content.Level) {
			_ = os.Mkdir(l.Path+"/a", 0o755)
			_ = unix.Mkfifo(l.Path+"/a/x", 0o644)
		}},
		"a file within the directory": {true, func(t testing.TB, l content.Level) {
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

func TestHostileNamesTouchNothing(t *testing.T) {
	from, to := routes[0].tiers(t)
	write(t, from.Path+"/x", []byte("x"))
	touched := fsys.FS{Hook: func(s fsys.Step, p string) error { return fmt.Errorf("%s %q", s, p) }}
	m := mover.New(mover.Options{FS: touched})
	for _, name := range []string{"", "/", "/etc/passwd", ".", "..", "../x", "a/../../x", "a/..", "./x", "a//b", "x/", "a\x00b",
		".tierflow", ".tierflow/tier.json", ".tierflow/tmp/x", "\xff", "x ", strings.Repeat("a", 256), strings.Repeat("a/", 400) + "a"} {
		_, err := m.Make(context.Background(), request(from, to, name))
		wantKind(t, err, fault.InvalidName)
		_, err = m.Release(context.Background(), mover.ReleaseRequest{ID: 7, Token: token(), Filename: name, Tier: from})
		wantKind(t, err, fault.InvalidName)
	}
	for _, part := range []string{"", "..", "a/b", "a.b", "a\nb", strings.Repeat("a", 65)} {
		r := request(from, to, "x")
		r.Token = part
		if _, err := m.Make(context.Background(), r); err == nil || !strings.Contains(err.Error(), "token") {
			t.Errorf("token %q: %v", part, err)
		}
	}
}

func TestOddButValidNamesAreMoved(t *testing.T) {
	for _, r := range routes {
		from, to := r.tiers(t)
		m := mover.New(mover.Options{})
		for _, name := range []string{"a b/ü\n$(x).mp4", strings.Repeat("é", 127), "-rf", "*", `\`, "a/.tierflow/x", "...", "tmp/released"} {
			write(t, from.Path+"/"+name, []byte(name))
			mustMake(t, m, request(from, to, name))
			sameBytes(t, to.Path+"/"+name, []byte(name))
		}
		wantClean(t, from, to)
	}
}

func TestOnlyFilesAndFoldersAreMoved(t *testing.T) {
	outside := t.TempDir()
	write(t, outside+"/secret/x", []byte("secret"))
	plant := map[string]struct {
		word  string
		plant func(path string) error
	}{
		"a link to a file":   {"symbolic link", func(p string) error { return os.Symlink(outside+"/secret/x", p) }},
		"a link to a folder": {"symbolic link", func(p string) error { return os.Symlink(outside+"/secret", p) }},
		"a dangling link":    {"symbolic link", func(p string) error { return os.Symlink("nowhere", p) }},
		"a FIFO":             {"FIFO", func(p string) error { return unix.Mkfifo(p, 0o644) }},
		"a socket":           {"socket", func(p string) error { return unix.Mknod(p, unix.S_IFSOCK|0o644, 0) }},
		"a character device": {"character device", func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o644, int(unix.Mkdev(1, 3))) }},
		"a block device":     {"block device", func(p string) error { return unix.Mknod(p, unix.S_IFBLK|0o644, int(unix.Mkdev(7, 0))) }},
	}
	for _, r := range routes {
		for what, c := range plant {
			t.Run(what+" "+r.name, func(t *testing.T) {
				from, to := r.tiers(t)
				m := mover.New(mover.Options{})
				write(t, from.Path+"/dir/sub/file", []byte("x"))
				if err := errors.Join(c.plant(from.Path+"/name"), c.plant(from.Path+"/dir/sub/odd")); err != nil {
					t.Fatalf("%v (these tests must run as root)", err)
				}
				_, err := m.Make(context.Background(), request(from, to, "name"))
				wantKind(t, err, fault.Unsupported, c.word, "/name")
				_, err = m.Make(context.Background(), request(from, to, "dir"))
				wantKind(t, err, fault.Unsupported, c.word, "/dir/sub/odd")
				wantClean(t, from, to)
				equalTrees(t, "target", tree(t, to.Path), map[string]string{".": "drwxr-xr-x"})
			})
		}
	}
	t.Run("behind a linked folder", func(t *testing.T) {
		from, to := routes[0].tiers(t)
		if err := os.Symlink(outside+"/secret", from.Path+"/a"); err != nil {
			t.Fatal(err)
		}
		_, err := mover.New(mover.Options{}).Make(context.Background(), request(from, to, "a/x"))
		wantKind(t, err, fault.Unsupported, "symbolic link")
	})
	t.Run("on another mount", func(t *testing.T) {
		from, to := routes[0].tiers(t)
		dir := mount(t, "-t", "tmpfs", "-o", "size=1m", "none")
		write(t, dir+"/x", []byte("x"))
		if err := errors.Join(os.Mkdir(from.Path+"/a", 0o755), unix.Mount(dir, from.Path+"/a", "", unix.MS_BIND, "")); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Unmount(from.Path+"/a", 0) }()
		_, err := mover.New(mover.Options{}).Make(context.Background(), request(from, to, "a/x"))
		wantKind(t, err, fault.Unsupported, "mount point")
	})
	t.Run("a live socket", func(t *testing.T) {
		from, to := routes[0].tiers(t)
		l, err := net.Listen("unix", from.Path+"/s")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, err = mover.New(mover.Options{}).Make(context.Background(), request(from, to, "s"))
		wantKind(t, err, fault.Unsupported, "socket")
	})
	t.Run("folders without end", func(t *testing.T) {
		from, to := routes[0].tiers(t)
		write(t, from.Path+"/deep"+strings.Repeat("/d", 120)+"/x", nil)
		_, err := mover.New(mover.Options{}).Make(context.Background(), request(from, to, "deep"))
		wantKind(t, err, fault.Unsupported, "deep")
	})
}

func TestAMissingSourceIsToldApart(t *testing.T) {
	from, to := routes[0].tiers(t)
	write(t, from.Path+"/file", nil)
	for _, name := range []string{"absent", "no/folder", "file/below"} {
		_, err := mover.New(mover.Options{}).Make(context.Background(), request(from, to, name))
		wantKind(t, err, fault.MissingFile, from.Path+"/"+name)
	}
	equalTrees(t, "target", tree(t, to.Path), map[string]string{".": "drwxr-xr-x"})
}

func TestATierThatIsNotItselfIsRefused(t *testing.T) {
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

func TestAFullTierIsNoticedBeforeAnyByteIsCopied(t *testing.T) {
	from := newLevel(t, t.TempDir(), "bronze")
	to := newLevel(t, mount(t, "-t", "tmpfs", "-o", "size=8m", "none"), "gold")
	write(t, from.Path+"/big", random(12<<20))
	write(t, from.Path+"/dir/a", random(5<<20))
	write(t, from.Path+"/dir/b", random(5<<20))
	var steps []fsys.Step
	m := mover.New(mover.Options{FS: recorder(&steps)})
	_, err := m.Make(context.Background(), request(from, to, "big"))
	wantKind(t, err, fault.NoSpace)
	if contains(steps, fsys.WriteTemp) || contains(steps, fsys.ReadSource) {
		t.Errorf("copied before it had the space: %v", steps)
	}
	_, err = m.Make(context.Background(), request(from, to, "dir"))
	wantKind(t, err, fault.NoSpace)
	wantClean(t, from, to)
	equalTrees(t, "target", tree(t, to.Path), map[string]string{".": "drwxr-xr-x"})
	write(t, from.Path+"/small", random(1<<20))
	mustMake(t, m, request(from, to, "small"))
}

func TestShortWritesAreContinued(t *testing.T) {
	from, to := routes[1].tiers(t)
	data := random(2<<20 + 77)
	write(t, from.Path+"/x", data)
	n := 0
	short := fsys.FS{Hook: func(s fsys.Step, _ string) error {
		if s == fsys.WriteTemp {
			n++
			return fsys.ShortWrite(1 + n*9973%100_000)
		}
		return nil
	}}
	made := mustMake(t, mover.New(mover.Options{FS: short}), request(from, to, "x"))
	sameBytes(t, to.Path+"/x", data)
	if made.Digest != sha(data) || n < 20 {
		t.Errorf("made %+v with %d writes", made, n)
	}
	write(t, from.Path+"/y", data)
	_, err := mover.New(mover.Options{FS: failing(fsys.WriteTemp, fsys.ShortWrite(0))}).Make(context.Background(), request(from, to, "y"))
	if err == nil || !strings.Contains(err.Error(), "short write") {
		t.Errorf("a write of nothing at all: %v", err)
	}
	wantAbsent(t, to.Path+"/y")
}

func TestASourceThatChangesIsCopiedAgain(t *testing.T) {
	t.Run("once", func(t *testing.T) {
		from, to := routes[1].tiers(t)
		write(t, from.Path+"/x", random(3<<20))
		next := random(3 << 20)
		m := mover.New(mover.Options{FS: at(fsys.WriteTemp, 2, func(string) error { write(t, from.Path+"/x", next); return nil })})
		if made := mustMake(t, m, request(from, to, "x")); made.Digest != sha(next) {
			t.Errorf("made %+v", made)
		}
		sameBytes(t, to.Path+"/x", next)
	})
	t.Run("replaced, with its times put back", func(t *testing.T) {
		from, to := routes[1].tiers(t)
		old, next := random(1000), random(1000)
		write(t, from.Path+"/x", old)
		was, err := os.Stat(from.Path + "/x")
		if err != nil {
			t.Fatal(err)
		}
		m := mover.New(mover.Options{FS: at(fsys.FsyncTemp, 1, func(string) error {
			write(t, from.Path+"/x", next)
			return os.Chtimes(from.Path+"/x", was.ModTime(), was.ModTime())
		})})
		mustMake(t, m, request(from, to, "x"))
		sameBytes(t, to.Path+"/x", next)
	})
	t.Run("it shrinks, and grows", func(t *testing.T) {
		for _, size := range []int{10, 5 << 20} {
			from, to := routes[1].tiers(t)
			write(t, from.Path+"/x", random(3<<20))
			next := random(size)
			m := mover.New(mover.Options{FS: at(fsys.WriteTemp, 1, func(string) error { write(t, from.Path+"/x", next); return nil })})
			if made := mustMake(t, m, request(from, to, "x")); made.Bytes != int64(size) {
				t.Errorf("made %+v", made)
			}
			sameBytes(t, to.Path+"/x", next)
		}
	})
	for _, kind := range []string{"x", "d"} {
		t.Run("without end "+kind, func(t *testing.T) {
			from, to := routes[1].tiers(t)
			write(t, from.Path+"/x", random(100))
			write(t, from.Path+"/d/x", random(100))
			path := map[string]string{"x": "/x", "d": "/d/x"}[kind]
			m := mover.New(mover.Options{FS: fsys.FS{Hook: func(s fsys.Step, _ string) error {
				if s == fsys.FsyncTemp {
					write(t, from.Path+path, random(100))
				}
				return nil
			}}})
			made, err := m.Make(context.Background(), request(from, to, kind))
			wantKind(t, err, fault.Changed)
			if made != nil {
				t.Errorf("made %+v", made)
			}
			wantClean(t, to)
		})
	}
	for _, r := range routes {
		t.Run("a directory gets one more file, "+r.name, func(t *testing.T) {
			from, to := r.tiers(t)
			writeTree(t, from.Path+"/d")
			m := mover.New(mover.Options{FS: at(fsys.MakeTree, 3, func(string) error { write(t, from.Path+"/d/360p/new", []byte("n")); return nil })})
			mustMake(t, m, request(from, to, "d"))
			equalTrees(t, "target", tree(t, to.Path), tree(t, from.Path))
		})
	}
	t.Run("a link that meets another file than was opened", func(t *testing.T) {
		from, to := routes[0].tiers(t)
		write(t, from.Path+"/x", []byte("old"))
		m := mover.New(mover.Options{FS: at(fsys.LinkTemp, 1, func(string) error {
			write(t, from.Path+"/new", []byte("new"))
			return os.Rename(from.Path+"/new", from.Path+"/x")
		})})
		mustMake(t, m, request(from, to, "x"))
		sameBytes(t, to.Path+"/x", []byte("new"))
	})
}

func TestALinkThatWasSwappedInForAMomentIsNotPublished(t *testing.T) {
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

func TestAnFsyncThatFailsIsNeverRepeatedAndNothingIsPublished(t *testing.T) {
	for _, r := range routes {
		for _, kind := range []string{"file", "dir"} {
			for _, step := range []fsys.Step{fsys.FsyncSource, fsys.FsyncTemp, fsys.FsyncTree, fsys.FsyncRecord} {
				from, to := r.tiers(t)
				write(t, from.Path+"/file", random(10))
				write(t, from.Path+"/dir/file", random(10))
				calls := 0
				m := mover.New(mover.Options{FS: fsys.FS{Hook: func(s fsys.Step, _ string) error {
					if s == step {
						calls++
						return unix.ENOSPC // even this one: the pages are gone
					}
					return nil
				}}})
				made, err := m.Make(context.Background(), request(from, to, kind))
				if calls == 0 {
					continue // a step of the other routes
				}
				wantKind(t, err, fault.Suspect)
				if calls != 1 || made != nil {
					t.Errorf("%s, %s, %s: %d calls, made %+v", r.name, kind, step, calls, made)
				}
				wantAbsent(t, to.Path+"/"+kind)
				wantClean(t, to)
				if step != fsys.FsyncSource {
					mustMake(t, mover.New(mover.Options{}), request(from, to, kind))
					continue
				}
				// The source is still what it was, and the kernel would say now that all is well.
				was := calls
				_, err = m.Make(context.Background(), request(from, to, kind))
				wantKind(t, err, fault.Suspect, "has failed before")
				if e := new(fault.Error); !errors.As(err, &e) || e.Level != "bronze" {
					t.Errorf("%s, %s: it blames the tier of %q", r.name, kind, e.Level)
				}
				if calls != was {
					t.Errorf("%s, %s: the source was synced once more", r.name, kind)
				}
			}
		}
	}
}

func TestACopyThatReadsBackDifferentlyIsNotPublished(t *testing.T) {
	from, to := routes[2].tiers(t)
	write(t, from.Path+"/x", random(2<<20))
	m := mover.New(mover.Options{FS: at(fsys.DropCache, 1, func(p string) error {
		f, err := os.OpenFile(p, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt([]byte("rot"), 1<<20)
		return errors.Join(err, f.Sync(), f.Close())
	})})
	made, err := m.Make(context.Background(), request(from, to, "x"))
	wantKind(t, err, fault.Suspect, "differently")
	if made != nil {
		t.Errorf("made %+v", made)
	}
	wantAbsent(t, to.Path+"/x")
	wantClean(t, to)
}

func TestBeforeItIsReadBackACopyIsNotInTheCache(t *testing.T) {
	from, to := routes[2].tiers(t)
	write(t, from.Path+"/x", random(4<<20))
	var cached uint64
	m := mover.New(mover.Options{FS: at(fsys.ReadBack, 1, func(p string) error {
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		var st unix.Cachestat_t
		err = unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &st, 0)
		cached = st.Cache
		if errors.Is(err, unix.ENOSYS) {
			return nil // an old kernel: nothing to see
		}
		return err
	})})
	mustMake(t, m, request(from, to, "x"))
	if cached != 0 {
		t.Errorf("%d pages were still cached", cached)
	}
}

func TestACancelledMoveEndsWithinASecondAndLeavesNothing(t *testing.T) {
	lost := fault.New(fault.Lost, "hold", "lock:7", errors.New("the lock is somebody else's"))
	for name, o := range map[string]mover.Options{
		"waiting for its share of the bandwidth": {Limiter: rate.NewLimiter(1000, 1000)},
		"copying":                                {},
	} {
		for _, kind := range []string{"file", "dir"} {
			t.Run(kind+" "+name, func(t *testing.T) {
				from, to := routes[1].tiers(t)
				write(t, from.Path+"/file", random(8<<20))
				write(t, from.Path+"/dir/file", random(8<<20))
				ctx, cancel := context.WithCancelCause(context.Background())
				defer cancel(nil)
				var cancelled time.Time
				o.FS = at(fsys.WriteTemp, 2, func(string) error { cancelled = time.Now(); cancel(lost); return nil })
				if o.Limiter != nil {
					o.FS = at(fsys.ReadSource, 1, func(string) error {
						time.AfterFunc(20*time.Millisecond, func() { cancel(lost) })
						cancelled = time.Now()
						return nil
					})
				}
				made, err := mover.New(o).Make(ctx, request(from, to, kind))
				if took := time.Since(cancelled); took > time.Second {
					t.Errorf("it took %v", took)
				}
				if !errors.Is(err, lost) || made != nil {
					t.Errorf("got %+v, %v", made, err)
				}
				wantAbsent(t, to.Path+"/"+kind)
				wantClean(t, to)
			})
		}
	}
	t.Run("before it began", func(t *testing.T) {
		from, to := routes[0].tiers(t)
		write(t, from.Path+"/x", nil)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_, err := mover.New(mover.Options{}).Make(ctx, request(from, to, "x"))
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		wantAbsent(t, to.Path+"/x")
	})
}

func TestTheLimiterIsObeyedWhateverItsBurst(t *testing.T) {
	from, to := routes[1].tiers(t)
	write(t, from.Path+"/x", random(1<<20))
	l := rate.NewLimiter(4<<20, 10_000)
	began := time.Now()
	mustMake(t, mover.New(mover.Options{Limiter: l}), request(from, to, "x"))
	if took := time.Since(began); took < 200*time.Millisecond {
		t.Errorf("1 MiB at 4 MiB/s took %v", took)
	}
}

func TestReleasersFoldersAreTakenAwayFirst(t *testing.T) {
	from, to := routes[0].tiers(t)
	write(t, from.Path+"/x", []byte("x"))
	released := to.Path + "/.tierflow/released/"
	write(t, released+"7.aaa/copy/with/things", nil)
	write(t, released+"7.ccc/copy", nil)
	write(t, released+"71.bbb/copy", nil)
	if err := os.Mkdir(released+"7.bbb", 0o500); err != nil {
		t.Fatal(err)
	}
	// A paused releaser fills its folder while it is being removed, and another one begins.
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
				t.Errorf("looked at the target while there was %v", es)
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

func TestFoldersThatVanishAreMadeAgain(t *testing.T) {
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

// TestLinksThatAreSwappedInNeverLeadOutside moves while somebody exchanges a folder on the way for a link, again and
// again, on both tiers.
func TestLinksThatAreSwappedInNeverLeadOutside(t *testing.T) {
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
							_ = os.Remove(p) // a folder that the mover made anew, if it is empty
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
			for _, l := range []content.Level{from, to} {
				for p, v := range tree(t, l.Path) {
					if strings.HasSuffix(v, sha([]byte("secret"))) {
						t.Errorf("%s of %s came from outside", p, l.Name)
					}
				}
			}
		})
	}
}
