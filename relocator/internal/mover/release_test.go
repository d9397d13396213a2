package mover_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
)

func fence(answer bool) func(context.Context) (bool, error) {
	return func(context.Context) (bool, error) { return answer, nil }
}

func release(l policy.Level, filename string) mover.ReleaseRequest {
	return mover.ReleaseRequest{ID: 7, Token: token(), Filename: filename, Tier: l, Fence: fence(true)}
}

func wantOutcome(t *testing.T, got mover.ReleaseOutcome, err error, want mover.ReleaseOutcome) {
	t.Helper()
	if err != nil || got != want {
		t.Fatalf("got %q, %v, want %q", got, err, want)
	}
}

func TestAReleaseRemovesTheCopyAndTheEmptyFoldersAboveIt(t *testing.T) {
	for _, kind := range []string{"file", "directory"} {
		t.Run(kind, func(t *testing.T) {
			l := newLevel(t, t.TempDir(), "bronze")
			write(t, l.Path+"/a/other", nil)
			if kind == "file" {
				write(t, l.Path+"/a/b/c/x", random(1000))
			} else {
				writeTree(t, l.Path+"/a/b/c/x")
			}
			var steps []fsys.Step
			m := mover.New(mover.Options{FS: recorder(&steps)})
			r := release(l, "a/b/c/x")
			r.Fence = func(context.Context) (bool, error) {
				if contains(steps, fsys.RenameReleased) || !contains(steps, fsys.MkdirReleased) {
					t.Errorf("the fence was called after %v", steps)
				}
				return true, nil
			}
			out, err := m.Release(context.Background(), r)
			wantOutcome(t, out, err, mover.Released)
			wantAbsent(t, l.Path+"/a/b")
			if _, err := os.Stat(l.Path + "/a/other"); err != nil {
				t.Error(err)
			}
			wantClean(t, l)
			if !contains(steps, fsys.FsyncEmptied) {
				t.Error("it was not made durable")
			}
			out, err = m.Release(context.Background(), release(l, "a/b/c/x"))
			wantOutcome(t, out, err, mover.Gone)
			out, err = m.Release(context.Background(), release(l, "a/other"))
			wantOutcome(t, out, err, mover.Released)
			if es, _ := os.ReadDir(l.Path); len(es) != 1 {
				t.Errorf("left %v", es)
			}
			out, err = m.Release(context.Background(), release(l, "top"))
			wantOutcome(t, out, err, mover.Gone)
			wantClean(t, l)
		})
	}
}

func TestAReleaseKeepsTheCopyThatTheRowNames(t *testing.T) {
	l := newLevel(t, t.TempDir(), "bronze")
	write(t, l.Path+"/a/x", []byte("x"))
	m := mover.New(mover.Options{})
	r := release(l, "a/x")
	r.Fence = fence(false)
	out, err := m.Release(context.Background(), r)
	wantOutcome(t, out, err, mover.IsCurrent)
	sameBytes(t, l.Path+"/a/x", []byte("x"))
	away := errors.New("MySQL is away")
	r.Fence = func(context.Context) (bool, error) { return false, away }
	if _, err := m.Release(context.Background(), r); !errors.Is(err, away) {
		t.Errorf("got %v", err)
	}
	sameBytes(t, l.Path+"/a/x", []byte("x"))
	wantClean(t, l)
}

func TestAReleaseWhoseFolderWasRemovedTouchesNothing(t *testing.T) {
	for _, there := range []bool{true, false} {
		from, to := routes[0].tiers(t)
		write(t, from.Path+"/a/x", []byte("x"))
		if there {
			write(t, to.Path+"/a/x", []byte("x"))
		}
		m := mover.New(mover.Options{})
		r := release(to, "a/x")
		r.Fence = func(context.Context) (bool, error) {
			mustMake(t, m, request(from, to, "a/x")) // a move runs before the fence returns
			if !there {
				return true, os.RemoveAll(to.Path + "/a")
			}
			return true, nil
		}
		out, err := m.Release(context.Background(), r)
		wantOutcome(t, out, err, mover.RetryLater)
		if there {
			sameBytes(t, to.Path+"/a/x", []byte("x"))
		}
		wantClean(t, from, to)
	}
}

func TestAReleaseTouchesOnlyFilesAndFolders(t *testing.T) {
	outside := t.TempDir()
	write(t, outside+"/x", []byte("outside"))
	l := newLevel(t, t.TempDir(), "bronze")
	err := errors.Join(os.Symlink(outside+"/x", l.Path+"/link"), os.Symlink(outside, l.Path+"/linked"), unix.Mkfifo(l.Path+"/fifo", 0o600))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"link", "linked", "linked/x", "fifo"} {
		_, err := mover.New(mover.Options{}).Release(context.Background(), release(l, name))
		wantKind(t, err, fault.Unsupported)
	}
	sameBytes(t, outside+"/x", []byte("outside"))
	if es, _ := os.ReadDir(l.Path); len(es) != 4 {
		t.Errorf("left %v", es)
	}
	wantClean(t, l)
}

func TestAReleaseTouchesNothingWhenTheTierHasGone(t *testing.T) {
	l := newLevel(t, t.TempDir(), "bronze")
	write(t, l.Path+"/x", []byte("x"))
	r := release(l, "x")
	r.Fence = func(context.Context) (bool, error) { return true, os.Rename(l.Path, l.Path+"-away") }
	_, err := mover.New(mover.Options{}).Release(context.Background(), r)
	wantKind(t, err, fault.TierRefused)
	sameBytes(t, l.Path+"-away/x", []byte("x"))
}

func TestTheNextReleaseAndTheSweepFinishAReleaseThatWasCutShort(t *testing.T) {
	boom := errors.New("boom")
	for _, kind := range []string{"file", "directory"} {
		for n, done := 0, false; !done; n++ {
			l := newLevel(t, inMemory(t), "bronze")
			if kind == "file" {
				write(t, l.Path+"/a/x", random(10))
			} else {
				writeTree(t, l.Path+"/a/x")
			}
			before := tree(t, l.Path+"/a/x")
			count := 0
			broken := fsys.FS{Hook: func(fsys.Step, string) error {
				if count++; count > n { // every operation from here on fails
					return boom
				}
				return nil
			}}
			_, err := mover.New(mover.Options{FS: broken}).Release(context.Background(), release(l, "a/x"))
			done = err == nil
			if !done && !errors.Is(err, boom) {
				t.Fatalf("operation %d: %v", n, err)
			}
			if now := tree(t, l.Path+"/a/x"); len(now) > 0 { // it is complete or missing
				equalTrees(t, "after operation", now, before)
			}
			m := mover.New(mover.Options{})
			if _, err := m.Release(context.Background(), release(l, "a/x")); err != nil {
				t.Fatalf("after operation %d: %v", n, err)
			}
			wantAbsent(t, l.Path+"/a")
			sweepAll(t, m, l)
			wantClean(t, l)
			if done && n < 20 {
				t.Errorf("only %d operations went through package fsys", n)
			}
		}
	}
}

// sweepAll sweeps entries of any age.
func sweepAll(t testing.TB, m *mover.Mover, l policy.Level) mover.SweepReport {
	t.Helper()
	report, err := m.Sweep(context.Background(), l, -time.Minute, func(item.ID, string) bool { return false },
		func(context.Context, item.ID, string) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func TestTheSweepReportsAStrayBeforeItRemovesItsRecord(t *testing.T) {
	from, to := routes[0].tiers(t)
	write(t, from.Path+"/x", []byte("x"))
	writeTree(t, from.Path+"/d")
	tmp := to.Path + "/.tierflow/tmp/"
	m := mover.New(mover.Options{})
	made := map[string]mover.Request{}
	for i, name := range []string{"x", "d"} {
		r := request(from, to, name)
		r.ID = item.ID(100 + i)
		if _, err := m.Make(context.Background(), r); err != nil {
			t.Fatal(err)
		}
		made[r.Token] = r
	}
	write(t, tmp+"8.event.used", nil)
	write(t, tmp+"9.event.failing", nil)
	write(t, tmp+"10.event.folder/tree/sub/file", nil)
	write(t, to.Path+"/.tierflow/released/7.abc/copy/y", nil)
	for _, odd := range []string{"tmp/notes.txt", "tmp/0.a.b", "tmp/1.a.b.c", "tmp/1..b", "released/1", "released/1.a.b"} {
		write(t, to.Path+"/.tierflow/"+odd, nil)
	}
	var strays []string
	boom := errors.New("Redis is away")
	sweep := func(olderThan time.Duration) (mover.SweepReport, error) {
		strays = nil
		return m.Sweep(context.Background(), to, olderThan, func(id item.ID, token string) bool { return id == 8 && token == "used" },
			func(_ context.Context, id item.ID, event string) error {
				if id == 9 {
					return boom
				}
				if left, _ := filepath.Glob(tmp + id.String() + ".*"); len(left) != 1 {
					t.Errorf("the record of %d was removed before it was reported: %v", id, left)
				}
				strays = append(strays, id.String()+" "+event)
				return nil
			})
	}
	if report, err := sweep(time.Hour); err != nil || report.Temporaries+report.Released+len(report.Unknown)+len(strays) != 0 {
		t.Errorf("the sweep removed new entries: %+v, %v", report, err)
	}
	report, err := sweep(-time.Minute)
	if !errors.Is(err, boom) {
		t.Errorf("got %v", err)
	}
	if report.Temporaries != 3 || report.Released != 1 || len(report.Unknown) != 6 {
		t.Errorf("report %+v", report)
	}
	if len(strays) != 3 || strays[0] != "10 event" || strays[1] != "100 "+eventID {
		t.Errorf("strays %q", strays)
	}
	for _, left := range []string{"8.event.used", "9.event.failing-swept", "notes.txt", "0.a.b"} {
		if _, err := os.Stat(tmp + left); err != nil {
			t.Error(err)
		}
	}
	if es, _ := os.ReadDir(tmp); len(es) != 6 {
		t.Errorf("left %v", es)
	}
	sameBytes(t, to.Path+"/x", []byte("x"))
	equalTrees(t, "published", tree(t, to.Path+"/d"), tree(t, from.Path+"/d"))
}

func TestAnAttemptThatWasSweptNeverPublishesAPart(t *testing.T) {
	for _, r := range routes {
		for _, name := range []string{"x", "d"} {
			for _, step := range []fsys.Step{fsys.FsyncRecord, fsys.RecheckTier, fsys.MakeFolder, fsys.Publish} {
				t.Run(r.name+" "+name+" "+string(step), func(t *testing.T) {
					from, to := r.tiers(t)
					write(t, from.Path+"/a/x", []byte("x"))
					writeTree(t, from.Path+"/a/d")
					boom := errors.New("boom")
					// The sweep itself is cut short while it deletes.
					n := 0
					cut := fsys.FS{Hook: func(s fsys.Step, p string) error {
						if s == fsys.Sweep && filepath.Base(filepath.Dir(p)) == "360p" {
							if n++; n > 1 {
								return boom
							}
						}
						return nil
					}}
					m := mover.New(mover.Options{FS: at(step, 1, func(string) error {
						_, _ = mover.New(mover.Options{FS: cut}).Sweep(context.Background(), to, -time.Minute,
							func(item.ID, string) bool { return false },
							func(context.Context, item.ID, string) error { return nil })
						return nil
					})})
					made, err := m.Make(context.Background(), request(from, to, "a/"+name))
					wantKind(t, err, fault.Lost)
					if made != nil {
						t.Errorf("made %+v", made)
					}
					wantAbsent(t, to.Path+"/a/"+name)
					mustMake(t, mover.New(mover.Options{}), request(from, to, "a/"+name))
					equalTrees(t, "target", tree(t, to.Path+"/a/"+name), tree(t, from.Path+"/a/"+name))
				})
			}
		}
	}
}

// TestAHalfDeletedDirectoryIsNeitherCopiedNorAdopted lets a release rename a directory and stop in the middle of deleting
// it. Meanwhile a late mover reads the directory through its open descriptor.
func TestAHalfDeletedDirectoryIsNeitherCopiedNorAdopted(t *testing.T) {
	takeAway := func(l policy.Level) {
		n := 0
		cut := fsys.FS{Hook: func(s fsys.Step, _ string) error {
			if s == fsys.DeleteReleased {
				if n++; n > 12 {
					return errors.New("cut short")
				}
			}
			return nil
		}}
		if _, err := mover.New(mover.Options{FS: cut}).Release(context.Background(), release(l, "d")); err == nil {
			t.Error("the release was not cut short")
		}
	}
	for _, r := range routes {
		for op := 4; op < 20; op++ { // operation 4 is the first that reads the open directory
			t.Run(fmt.Sprintf("source, operation %d, %s", op, r.name), func(t *testing.T) {
				from, to := r.tiers(t)
				writeTree(t, from.Path+"/d")
				m := mover.New(mover.Options{FS: at(fsys.OpenSource, op, func(string) error { takeAway(from); return nil })})
				made, err := m.Make(context.Background(), request(from, to, "d"))
				wantKind(t, err, fault.MissingFile)
				if made != nil {
					t.Errorf("made %+v", made)
				}
				wantAbsent(t, to.Path+"/d")
				wantClean(t, to)
			})
		}
		for _, side := range []string{"source", "target"} {
			t.Run("adopted, "+side+", "+r.name, func(t *testing.T) {
				from, to := r.tiers(t)
				writeTree(t, from.Path+"/d")
				mustMake(t, mover.New(mover.Options{}), request(from, to, "d"))
				l := from
				if side == "target" {
					l = to
				}
				m := mover.New(mover.Options{FS: at(fsys.ReadAdopted, 1, func(string) error { takeAway(l); return nil })})
				made, err := m.Make(context.Background(), request(from, to, "d"))
				wantKind(t, err, fault.Busy)
				if made != nil {
					t.Errorf("made %+v", made)
				}
			})
		}
	}
}

// TestConcurrentReleasesReuseEachOthersFoldersAndLeaveNone releases many copies at the same time, while movers remove the
// folders of some releases.
func TestConcurrentReleasesReuseEachOthersFoldersAndLeaveNone(t *testing.T) {
	from, to := routes[0].tiers(t)
	var taken atomic.Int64
	m := mover.New(mover.Options{})
	const n, workers = 400, 8
	for i := range n {
		write(t, fmt.Sprintf("%s/d/%d", from.Path, i), []byte("x"))
		write(t, fmt.Sprintf("%s/d/%d", to.Path, i), []byte("x"))
	}
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := w; i < n; i += workers {
				r := release(from, fmt.Sprintf("d/%d", i))
				r.ID = item.ID(i + 1)
				fence := r.Fence
				r.Fence = func(ctx context.Context) (bool, error) {
					if i%10 == 0 { // a mover removes the folder
						taken.Add(1)
						if err := os.RemoveAll(fmt.Sprintf("%s/.tierflow/released/%d.%s", from.Path, r.ID, r.Token)); err != nil {
							t.Error(err)
						}
					}
					return fence(ctx)
				}
				out, err := m.Release(context.Background(), r)
				want := mover.Released
				if i%10 == 0 {
					want = mover.RetryLater
				}
				if err != nil || out != want {
					t.Errorf("item %d: %q, %v, want %q", r.ID, out, err, want)
				}
			}
		})
	}
	wg.Wait()
	left, err := os.ReadDir(from.Path + "/d")
	if err != nil || len(left) != int(taken.Load()) {
		t.Errorf("%d copies are left, movers took %d; %v", len(left), taken.Load(), err)
	}
	wantClean(t, from, to)
}

// A copy that is taken over where it lies is safe from a releaser that wakes up late, and is durable.
func TestALateReleaserCannotTakeACopyThatWasClaimed(t *testing.T) {
	for _, kind := range []string{"file", "directory"} {
		l := newLevel(t, t.TempDir(), "gold")
		if kind == "file" {
			write(t, l.Path+"/a/x", []byte("x"))
		} else {
			writeTree(t, l.Path+"/a/x")
		}
		before := tree(t, l.Path+"/a/x")
		var steps []fsys.Step
		m := mover.New(mover.Options{FS: recorder(&steps)})
		r := release(l, "a/x")
		r.Fence = func(ctx context.Context) (bool, error) { // it has made its folder, and sleeps
			c, err := m.Claim(ctx, r.ID, "a/x", l)
			if err != nil || kind == "file" && (c.Bytes != 1 || c.Digest != sha([]byte("x"))) || c.Bytes == 0 {
				t.Errorf("%s: %+v, %v", kind, c, err)
			}
			return true, nil
		}
		out, err := m.Release(context.Background(), r)
		wantOutcome(t, out, err, mover.RetryLater)
		equalTrees(t, kind, tree(t, l.Path+"/a/x"), before)
		if !contains(steps, fsys.FsyncAdopted) || !contains(steps, fsys.FsyncFolder) {
			t.Errorf("%s: it was not made durable", kind)
		}
		wantClean(t, l)
	}
}
