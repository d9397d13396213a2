package mover_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/relocator/internal/testdisk"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
)

// strangers fill a tier with files of their own, until no folder can be made there.
type strangers struct {
	t   *testing.T
	dir string
	n   int
}

func (s *strangers) fill() {
	s.t.Helper()
	for _, size := range []int64{64 << 20, 1 << 20, 4 << 10, 0} {
		for {
			s.n++
			f, err := os.Create(fmt.Sprintf("%s/%d", s.dir, s.n))
			if err == nil && size > 0 {
				err = unix.Fallocate(int(f.Fd()), 0, 0, size)
			}
			f.Close()
			if err == nil {
				continue
			}
			if !errors.Is(err, unix.ENOSPC) {
				s.t.Fatal(err)
			}
			break
		}
	}
	if err := os.Mkdir(s.dir+"/room", 0o755); !errors.Is(err, unix.ENOSPC) {
		s.t.Fatalf("the tier is not full: %v", err)
	}
}

// What makes room needs no room: the strangers take whatever a release has freed before the next one begins.
func TestCopiesAreReleasedFromATierWithoutRoom(t *testing.T) {
	for name, make := range map[string]func(t *testing.T) string{
		"no inodes, in memory": func(t *testing.T) string { return mount(t, "-t", "tmpfs", "-o", "nr_inodes=200,size=64m", "none") },
		"no blocks, in memory": func(t *testing.T) string { return mount(t, "-t", "tmpfs", "-o", "size=4m,nr_inodes=500", "none") },
		"ext4":                 func(t *testing.T) string { at, _ := testdisk.Disk(t, "ext4", 8<<20); return at },
		"xfs":                  func(t *testing.T) string { at, _ := testdisk.Disk(t, "xfs", 300<<20); return at },
	} {
		t.Run(name, func(t *testing.T) {
			full := newLevel(t, make(t), "bronze")
			other := newLevel(t, onDisk(t), "silver")
			const items = 10
			for i := range items {
				if i%2 == 0 {
					write(t, fmt.Sprintf("%s/show/%d", full.Path, i), random(5000))
				} else {
					write(t, fmt.Sprintf("%s/show/%d/deep/1", full.Path, i), random(10))
				}
			}
			s := &strangers{t, full.Path + "/strangers", 0}
			if err := os.Mkdir(s.dir, 0o755); err != nil {
				t.Fatal(err)
			}
			for i := range items {
				s.fill()
				m := mover.New(mover.Options{})
				name := fmt.Sprintf("show/%d", i)
				before := tree(t, full.Path+"/"+name)
				r := request(full, other, name)
				r.ID = item.ID(i + 1)
				mustMake(t, m, r)
				l := release(full, name)
				l.ID = r.ID
				out, err := m.Release(context.Background(), l)
				wantOutcome(t, out, err, mover.Released)
				equalTrees(t, name, tree(t, other.Path+"/"+name), before)
				wantAbsent(t, full.Path+"/"+name)
			}
			wantClean(t, full, other)
		})
	}
}

func TestTwoReleasesThatNeedTheReserveTakeTurns(t *testing.T) {
	full := newLevel(t, mount(t, "-t", "tmpfs", "-o", "nr_inodes=40", "none"), "bronze")
	write(t, full.Path+"/1", []byte("1"))
	write(t, full.Path+"/2", []byte("2"))
	s := &strangers{t, full.Path + "/strangers", 0}
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.fill()
	m := mover.New(mover.Options{})
	second := release(full, "2")
	second.ID = 2
	first := release(full, "1")
	first.ID = 1
	first.Fence = func(ctx context.Context) (bool, error) {
		_, err := m.Release(ctx, second)
		wantKind(t, err, fault.Busy, "the reserve of tier bronze")
		return true, nil
	}
	out, err := m.Release(context.Background(), first)
	wantOutcome(t, out, err, mover.Released)
	s.fill()
	out, err = m.Release(context.Background(), second)
	wantOutcome(t, out, err, mover.Released)
	wantClean(t, full)
}

// A crash may leave the reserve in released/, where the sweep removes it.
func TestAReserveThatWasLostInACrashIsMadeAgain(t *testing.T) {
	full := newLevel(t, mount(t, "-t", "tmpfs", "-o", "nr_inodes=40", "none"), "bronze")
	write(t, full.Path+"/1", []byte("1"))
	s := &strangers{t, full.Path + "/strangers", 0}
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.fill()
	dying := errors.New("killed")
	m := mover.New(mover.Options{FS: fsys.FS{Hook: func(step fsys.Step, _ string) error {
		if step == fsys.DeleteReleased {
			return dying
		}
		return nil
	}}})
	r := release(full, "1")
	r.Fence = func(context.Context) (bool, error) { return false, dying }
	if _, err := m.Release(context.Background(), r); !errors.Is(err, dying) {
		t.Fatal(err)
	}
	_, err := mover.New(mover.Options{}).Release(context.Background(), release(full, "1"))
	wantKind(t, err, fault.NoSpace, "tier bronze", "remove a file that is not Tierflow's")
	sound := mover.New(mover.Options{})
	sweepAll(t, sound, full)
	out, err := sound.Release(context.Background(), release(full, "1"))
	wantOutcome(t, out, err, mover.Released)
	wantClean(t, full)
}

func TestTheHintOfAFullTierNamesThatTier(t *testing.T) {
	from, to := routes[1].tiers(t)
	write(t, from.Path+"/x", []byte("x"))
	_, err := mover.New(mover.Options{FS: failing(fsys.WriteTemp, unix.ENOSPC)}).Make(context.Background(), request(from, to, "x"))
	wantKind(t, err, fault.NoSpace, "on the tier of level gold")
	_, err = mover.New(mover.Options{FS: failing(fsys.RenameReleased, unix.ENOSPC)}).Release(context.Background(), release(from, "x"))
	wantKind(t, err, fault.NoSpace, "on the tier of level bronze")
}

func TestAnAttributeThatForbidsAReleaseIsNamedAndIsNotTheTiersFault(t *testing.T) {
	at, _ := testdisk.Disk(t, "ext4", 16<<20)
	l := newLevel(t, at, "bronze")
	for _, c := range []struct{ name, on, flag, attribute string }{
		{"x", "/x", "i", "immutable"},
		{"y", "/y", "a", "append-only"},
		{"sub/z", "/sub", "i", "immutable"},
		{"show", "/show/deep/1", "i", "immutable"},
	} {
		file := l.Path + "/" + c.name
		if c.name == "show" {
			file += "/deep/1"
		}
		write(t, file, []byte("x"))
		testdisk.Run(t, "chattr", "+"+c.flag, l.Path+c.on)
		_, err := mover.New(mover.Options{}).Release(context.Background(), release(l, c.name))
		wantKind(t, err, fault.Unsupported, "the attribute "+c.attribute, "chattr -"+c.flag)
		var e *fault.Error
		if errors.As(err, &e) && e.Level != "" {
			t.Errorf("%s: the error blames level %s", c.name, e.Level)
		}
		if c.name != "show" { // a part of it is in released/ now
			testdisk.Run(t, "chattr", "-"+c.flag, l.Path+c.on)
			out, err := mover.New(mover.Options{}).Release(context.Background(), release(l, c.name))
			wantOutcome(t, out, err, mover.Released)
		}
	}
	testdisk.Run(t, "chattr", "-R", "-i", l.Path)
	sweepAll(t, mover.New(mover.Options{}), l)
	wantClean(t, l)

	// Nothing new may come into a folder of the target.
	from := newLevel(t, onDisk(t), "silver")
	for _, name := range []string{"folder/x", "folder/sub/y"} {
		write(t, from.Path+"/"+name, []byte("x"))
		if err := os.MkdirAll(l.Path+"/folder", 0o755); err != nil {
			t.Fatal(err)
		}
		testdisk.Run(t, "chattr", "+i", l.Path+"/folder")
		_, err := mover.New(mover.Options{}).Make(context.Background(), request(from, l, name))
		wantKind(t, err, fault.Unsupported, "the attribute immutable", "chattr -i "+l.Path+"/folder")
		testdisk.Run(t, "chattr", "-i", l.Path+"/folder")
		sweepAll(t, mover.New(mover.Options{}), l)
	}

	write(t, l.Path+"/x", []byte("x"))
	testdisk.Run(t, "chattr", "+i", l.Path)
	defer testdisk.Run(t, "chattr", "-i", l.Path)
	_, err := mover.New(mover.Options{}).Release(context.Background(), release(l, "x"))
	wantKind(t, err, fault.Suspect, "the attribute immutable")
	var e *fault.Error
	if !errors.As(err, &e) || e.Level != "bronze" {
		t.Errorf("the tier's own folder is immutable: %+v", e)
	}
}
