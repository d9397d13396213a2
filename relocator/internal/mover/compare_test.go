package mover_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/relocator/internal/testdisk"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/policy"
)

// compare calls Mover.Compare. read tells whether it read any byte.
func compare(t *testing.T, old, current policy.Level, name, digest string, oldIsOriginal bool) (there, read bool, err error) {
	t.Helper()
	var steps []fsys.Step
	there, err = mover.New(mover.Options{FS: recorder(&steps)}).Compare(context.Background(), mover.Comparison{Filename: name,
		Old: old, Current: current, OldIsOriginal: oldIsOriginal, Digest: digest})
	return there, contains(steps, fsys.ReadReleased), err
}

// tick waits until the kernel's clock for file times has advanced.
func tick(t *testing.T, dir string) {
	t.Helper()
	write(t, dir+"/clock", nil)
	ctime := func() int64 { st := lstat(t, dir+"/clock"); return st.Ctim.Nano() }
	was := ctime()
	for end := time.Now().Add(10 * time.Second); ctime() <= was; {
		if time.Now().After(end) {
			t.Fatal("the clock for file times does not advance")
		}
		if err := os.Chmod(dir+"/clock", 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(dir + "/clock"); err != nil {
		t.Fatal(err)
	}
}

func TestAnUnchangedCopyMayBeReleasedWithoutReadingAByte(t *testing.T) {
	for _, r := range routes {
		for _, name := range []string{"club/film.mp4", "club/hls"} {
			t.Run(name+" "+r.name, func(t *testing.T) {
				from, to := r.tiers(t)
				write(t, from.Path+"/club/film.mp4", random(3000))
				writeTree(t, from.Path+"/club/hls")
				tick(t, from.Path)
				made := mustMake(t, mover.New(mover.Options{}), request(from, to, name))
				for _, original := range []bool{true, false} {
					old, current := from, to
					if !original {
						old, current = to, from
					}
					there, read, err := compare(t, old, current, name, made.Digest, original)
					if !there || read || err != nil {
						t.Errorf("original %v: there %v, read %v, %v", original, there, read, err)
					}
				}
			})
		}
	}
}

func TestACopyThatChangedAfterItWasCopiedMayNotBeReleased(t *testing.T) {
	rewrite := func(t *testing.T, path string) { write(t, path, random(3000)) }
	changes := map[string]func(t *testing.T, path string){
		"rewritten": rewrite,
		"longer":    func(t *testing.T, path string) { write(t, path, random(3001)) },
		"replaced by another file": func(t *testing.T, path string) {
			rewrite(t, path+".new")
			if err := os.Rename(path+".new", path); err != nil {
				t.Fatal(err)
			}
		},
		"replaced by another file with the old one's times": func(t *testing.T, path string) {
			was := lstat(t, path)
			rewrite(t, path+".new")
			err := os.Chtimes(path+".new", time.Unix(was.Atim.Unix()), time.Unix(was.Mtim.Unix()))
			if err := errors.Join(err, os.Rename(path+".new", path)); err != nil {
				t.Fatal(err)
			}
		},
	}
	for _, r := range routes {
		for _, name := range []string{"film.mp4", "hls"} {
			for how, change := range changes {
				if r.method == mover.Linked && (how == "rewritten" || how == "longer") {
					continue // both names are one file, so both change
				}
				if r.method == mover.Linked && strings.HasSuffix(how, "times") {
					continue // the rename changes the ctime of the linked file as well: Compare does not notice this
				}
				t.Run(name+" "+how+", "+r.name, func(t *testing.T) {
					from, to := r.tiers(t)
					write(t, from.Path+"/film.mp4", random(3000))
					write(t, from.Path+"/hls/1.ts", random(3000))
					write(t, from.Path+"/hls/2.ts", random(3000))
					made := mustMake(t, mover.New(mover.Options{}), request(from, to, name))
					change(t, from.Path+map[string]string{"film.mp4": "/film.mp4", "hls": "/hls/2.ts"}[name])
					for _, digest := range []string{made.Digest, ""} {
						there, _, err := compare(t, from, to, name, digest, true)
						wantKind(t, err, fault.Changed, from.Path+"/"+name, to.Path+"/"+name, "find out which")
						if !there {
							t.Error("the copy that the row names was not found")
						}
					}
				})
			}
		}
	}
	t.Run("one file added, one removed", func(t *testing.T) {
		from, to := routes[0].tiers(t)
		writeTree(t, from.Path+"/hls")
		mustMake(t, mover.New(mover.Options{}), request(from, to, "hls"))
		write(t, from.Path+"/hls/late.ts", []byte("late"))
		_, _, err := compare(t, from, to, "hls", "", true)
		wantKind(t, err, fault.Changed)
		if err := errors.Join(os.Remove(from.Path+"/hls/late.ts"), os.Remove(from.Path+"/hls/empty.vtt")); err != nil {
			t.Fatal(err)
		}
		_, _, err = compare(t, from, to, "hls", "", true)
		wantKind(t, err, fault.Changed)
	})
	t.Run("a file in place of a directory", func(t *testing.T) {
		from, to := routes[0].tiers(t)
		writeTree(t, from.Path+"/hls")
		write(t, to.Path+"/hls", random(3000))
		_, _, err := compare(t, from, to, "hls", "", true)
		wantKind(t, err, fault.Changed)
	})
}

func TestTheBytesDecideWhenACopyLooksChanged(t *testing.T) {
	from, to := routes[1].tiers(t)
	data := random(3 << 20)
	for _, name := range []string{"touched", "chmod", "cp", "dir/a"} {
		write(t, from.Path+"/"+name, data)
	}
	m := mover.New(mover.Options{})
	for _, name := range []string{"touched", "chmod", "dir"} {
		mustMake(t, m, request(from, to, name))
	}
	write(t, to.Path+"/cp", data)
	mustMake(t, m, request(from, to, "cp")) // adopts the operator's copy
	now := time.Now()
	err := errors.Join(os.Chtimes(from.Path+"/touched", now, now), os.Chmod(from.Path+"/chmod", 0o600),
		os.Chtimes(from.Path+"/dir/a", now, now))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"touched", "chmod", "cp", "dir"} {
		if there, read, err := compare(t, from, to, name, "", true); !there || !read || err != nil {
			t.Errorf("%s: there %v, read %v, %v", name, there, read, err)
		}
	}
}

func TestACopyMayNotBeReleasedWhenTheCurrentCopyHasChanged(t *testing.T) {
	from, to := routes[1].tiers(t)
	data := random(3 << 20)
	for name, damage := range map[string]func(path string) error{
		"cut":     func(path string) error { return os.Truncate(path, 0) },
		"changed": func(path string) error { return os.WriteFile(path, random(10), 0o644) },
		"flipped": func(path string) error { return os.WriteFile(path, append([]byte{^data[0]}, data[1:]...), 0o644) },
	} {
		write(t, from.Path+"/"+name, data)
		mustMake(t, mover.New(mover.Options{}), request(from, to, name))
		if err := damage(to.Path + "/" + name); err != nil {
			t.Fatal(err)
		}
		there, _, err := compare(t, from, to, name, sha(data), true)
		if !there || !fault.Is(err, fault.Changed) || !strings.Contains(err.Error(), "is as it was copied") {
			t.Errorf("%s: there %v, %v", name, there, err)
		}
	}
}

func TestAnOldCopyMountedOverTheCurrentNameIsNotASecondCopy(t *testing.T) {
	from, to := routes[0].tiers(t)
	write(t, from.Path+"/x", random(3000))
	write(t, to.Path+"/x", nil)
	testdisk.Mount(t, to.Path+"/x", "--bind", from.Path+"/x")
	there, _, err := compare(t, from, to, "x", "", true)
	var kind *fsys.KindError
	if there || !errors.As(err, &kind) {
		t.Errorf("there %v, %v", there, err)
	}
}

func TestACopyMayBeTheLastWhenTheCurrentCopyIsMissing(t *testing.T) {
	from, to := routes[0].tiers(t)
	write(t, from.Path+"/x", nil)
	if there, _, err := compare(t, from, to, "x", "", true); there || err != nil {
		t.Errorf("there %v, %v", there, err)
	}
	if there, _, err := compare(t, to, from, "x", "", true); !there || err != nil {
		t.Errorf("there is no old copy: there %v, %v", there, err)
	}
	to.Path += "-away"
	_, _, err := compare(t, from, to, "x", "", true)
	wantKind(t, err, fault.TierRefused, "gold")
	err = os.Symlink("/etc/passwd", from.Path+"/link")
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = compare(t, to, from, "link", "", true)
	wantKind(t, err, fault.Unsupported)
}

func TestACopyThatChangesDuringTheComparisonIsRetriedLater(t *testing.T) {
	from, to := routes[1].tiers(t)
	write(t, from.Path+"/x", random(1000))
	mustMake(t, mover.New(mover.Options{}), request(from, to, "x"))
	write(t, from.Path+"/x", random(1000))
	m := mover.New(mover.Options{FS: at(fsys.ReadReleased, 1, func(path string) error {
		write(t, path, random(999))
		return nil
	})})
	_, err := m.Compare(context.Background(), mover.Comparison{Filename: "x", Old: from, Current: to, OldIsOriginal: true})
	wantKind(t, err, fault.Busy)
	m = mover.New(mover.Options{FS: failing(fsys.ReadReleased, unix.EIO)})
	_, err = m.Compare(context.Background(), mover.Comparison{Filename: "x", Old: from, Current: to, OldIsOriginal: true})
	wantKind(t, err, fault.Suspect)
}
