package mover_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/shared/fault"
)

func TestAFullTierFailsTheMoveBeforeAnyByteIsCopied(t *testing.T) {
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
		t.Errorf("bytes were copied before the space was reserved: %v", steps)
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
		t.Errorf("a write of zero bytes: %v", err)
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
	t.Run("shrunk and grown", func(t *testing.T) {
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
		t.Run("at every try, "+kind, func(t *testing.T) {
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
		t.Run("a new file in a directory, "+r.name, func(t *testing.T) {
			from, to := r.tiers(t)
			writeTree(t, from.Path+"/d")
			m := mover.New(mover.Options{FS: at(fsys.MakeTree, 3, func(string) error { write(t, from.Path+"/d/360p/new", []byte("n")); return nil })})
			mustMake(t, m, request(from, to, "d"))
			equalTrees(t, "target", tree(t, to.Path), tree(t, from.Path))
		})
	}
	t.Run("another file that has the name when it is linked", func(t *testing.T) {
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

func TestAFailedFsyncIsNeverRepeatedAndNothingIsPublished(t *testing.T) {
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
						return unix.ENOSPC // any error: the kernel has dropped the pages
					}
					return nil
				}}})
				made, err := m.Make(context.Background(), request(from, to, kind))
				if calls == 0 {
					continue // this route does not have the step
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
				// The source has the same bytes, and the kernel would now report success.
				was := calls
				_, err = m.Make(context.Background(), request(from, to, kind))
				wantKind(t, err, fault.Suspect, "has failed before")
				if e := new(fault.Error); !errors.As(err, &e) || e.Level != "bronze" {
					t.Errorf("%s, %s: the error names level %q", r.name, kind, e.Level)
				}
				if calls != was {
					t.Errorf("%s, %s: the source was synced again", r.name, kind)
				}
			}
		}
	}
}

func TestASourceIsSyncedAgainAfterAFailedSyncfs(t *testing.T) {
	for _, r := range routes {
		from, to := r.tiers(t)
		write(t, from.Path+"/x", random(10))
		failing := true
		m := mover.New(mover.Options{FS: fsys.FS{Hook: func(s fsys.Step, _ string) error {
			if s == fsys.FsyncSource && failing {
				return &fsys.SharedError{Err: unix.EIO}
			}
			return nil
		}}})
		_, err := m.Make(context.Background(), request(from, to, "x"))
		wantKind(t, err, fault.Suspect, "whole file system")
		failing = false
		mustMake(t, m, request(from, to, "x"))
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

func TestACopyIsNotInThePageCacheWhenItIsReadBack(t *testing.T) {
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
			return nil // the kernel is older than 6.5
		}
		return err
	})})
	mustMake(t, m, request(from, to, "x"))
	if cached != 0 {
		t.Errorf("%d pages were still cached", cached)
	}
}

func TestACancelledMoveEndsWithinASecondAndLeavesNothing(t *testing.T) {
	lost := fault.New(fault.Lost, "hold", "lock:7", errors.New("another worker has the lock"))
	for name, o := range map[string]mover.Options{
		"held back by the limiter": {Limiter: rate.NewLimiter(1000, 1000)},
		"while it copies":          {},
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
	t.Run("before it begins", func(t *testing.T) {
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

func TestTheLimiterHoldsForAnyBurst(t *testing.T) {
	from, to := routes[1].tiers(t)
	write(t, from.Path+"/x", random(1<<20))
	l := rate.NewLimiter(4<<20, 10_000)
	began := time.Now()
	mustMake(t, mover.New(mover.Options{Limiter: l}), request(from, to, "x"))
	if took := time.Since(began); took < 200*time.Millisecond {
		t.Errorf("1 MiB at 4 MiB/s took %v", took)
	}
}
