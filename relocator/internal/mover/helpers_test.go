package mover_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/relocator/internal/testdisk"
	"github.com/tierflow/tierflow/relocator/internal/tier"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
)

func TestMain(m *testing.M) { testdisk.Main(func() { run(m) }) }

// run fails when the tests have left descriptors open: a fsys.File has no finalizer.
func run(m *testing.M) {
	before := len(descriptors())
	code := m.Run()
	if after := descriptors(); len(after) > before && code == 0 {
		fmt.Fprintf(os.Stderr, "%d descriptors before, %d after: %v\n", before, len(after), after)
		code = 1
	}
	os.Exit(code)
}

func descriptors() (open []string) {
	es, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	for _, e := range es {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && strings.HasPrefix(to, "/") && !strings.HasPrefix(to, "/proc/") && !strings.HasPrefix(to, "/dev/null") {
			open = append(open, to)
		}
	}
	return open
}

// onDisk and inMemory are on different file systems: a move from one to the other is a copy.
func onDisk(t testing.TB) string { return t.TempDir() }

func inMemory(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "tierflow-test-")
	if err != nil {
		t.Fatalf("%v (these tests need /dev/shm)", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// mount mounts a file system on a new folder until the test ends.
func mount(t testing.TB, args ...string) string {
	t.Helper()
	at := t.TempDir()
	testdisk.Mount(t, at, args...)
	return at
}

func newLevel(t testing.TB, base, name string) policy.Level {
	t.Helper()
	l := policy.Level{Name: name, Max: policy.Open, Path: filepath.Join(base, name)}
	var err error
	if l.TierID, err = tier.Init(fsys.FS{}, l, time.Now()); err != nil {
		t.Fatal(err)
	}
	return l
}

// route is a pair of tiers, with the method by which files move between them.
type route struct {
	name   string
	from   func(testing.TB) string
	to     func(testing.TB) string // nil: the same file system
	method string
}

var routes = []route{
	{"on one file system", onDisk, nil, mover.Linked},
	{"from disk to memory", onDisk, inMemory, mover.Copied},
	{"from memory to disk", inMemory, onDisk, mover.Copied},
}

func (r route) tiers(t testing.TB) (from, to policy.Level) {
	t.Helper()
	base := r.from(t)
	from = newLevel(t, base, "bronze")
	if r.to != nil {
		base = r.to(t)
	}
	return from, newLevel(t, base, "gold")
}

var attempts atomic.Int64

func token() string { return fmt.Sprintf("token-%d", attempts.Add(1)) }

const eventID = "01934567-89ab-7cde-8f01-23456789abcd"

func request(from, to policy.Level, filename string) mover.Request {
	return mover.Request{ID: 7, EventID: eventID, Token: token(), Filename: filename, From: from, To: to}
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644)); err != nil {
		t.Fatal(err)
	}
}

func random(n int) []byte {
	p := make([]byte, n)
	_, _ = rand.Read(p)
	return p
}

func sha(p []byte) string {
	s := sha256.Sum256(p)
	return "sha256:" + hex.EncodeToString(s[:])
}

// writeTree makes a directory like a video package.
func writeTree(t testing.TB, dir string) {
	t.Helper()
	write(t, dir+"/master.m3u8", []byte("#EXTM3U\n"))
	write(t, dir+"/360p/seg-1.ts", random(70_000))
	write(t, dir+"/360p/seg-2.ts", random(3))
	write(t, dir+"/1080p/deep/er/seg-1.ts", random(1<<20+5))
	write(t, dir+"/empty.vtt", nil)
	if err := os.Mkdir(dir+"/nothing", 0o750); err != nil {
		t.Fatal(err)
	}
}

// tree describes everything below a path, or the file itself, without .tierflow: type, permissions and bytes.
func tree(t testing.TB, path string) map[string]string {
	t.Helper()
	m := map[string]string{}
	err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && p == path {
			return nil
		}
		if err != nil {
			return err
		}
		if d.Name() == item.MetaFolder {
			return fs.SkipDir
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(path, p)
		m[rel] = info.Mode().String()
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			m[rel] += " " + sha(data)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func equalTrees(t testing.TB, what string, got, want map[string]string) {
	t.Helper()
	for p, v := range want {
		if got[p] != v {
			t.Errorf("%s: %q is %q, want %q", what, p, got[p], v)
		}
	}
	for p := range got {
		if _, ok := want[p]; !ok {
			t.Errorf("%s: %q should not exist", what, p)
		}
	}
}

// scratch lists what is in tmp/ and released/.
func scratch(t testing.TB, l policy.Level) (names []string) {
	t.Helper()
	for _, d := range []string{"tmp", "released"} {
		es, err := os.ReadDir(filepath.Join(l.Path, item.MetaFolder, d))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range es {
			names = append(names, d+"/"+e.Name())
		}
	}
	return names
}

func wantClean(t testing.TB, ls ...policy.Level) {
	t.Helper()
	for _, l := range ls {
		if left := scratch(t, l); len(left) > 0 {
			t.Errorf("%s: left in .tierflow: %v", l.Name, left)
		}
	}
}

func wantKind(t testing.TB, err error, kind fault.Kind, words ...string) {
	t.Helper()
	if !fault.Is(err, kind) {
		t.Fatalf("got %q (%v), want %q", fault.KindOf(err), err, kind)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}

func wantAbsent(t testing.TB, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s exists (%v)", path, err)
	}
}

// mustMake makes the copy and discards the record, as after an emit.
func mustMake(t testing.TB, m *mover.Mover, r mover.Request) *mover.Copy {
	t.Helper()
	made, err := m.Make(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	if err := made.Discard(); err != nil {
		t.Fatal(err)
	}
	return made
}

// at makes an FS that calls do before the n-th operation (from 1) of a step.
func at(step fsys.Step, n int, do func(path string) error) fsys.FS {
	count := 0
	return fsys.FS{Hook: func(s fsys.Step, path string) error {
		if s == step {
			if count++; count == n {
				return do(path)
			}
		}
		return nil
	}}
}

// failing makes an FS in which every operation of a step fails.
func failing(step fsys.Step, err error) fsys.FS {
	return fsys.FS{Hook: func(s fsys.Step, _ string) error {
		if s == step {
			return err
		}
		return nil
	}}
}

// recorder makes an FS that appends every step to steps.
func recorder(steps *[]fsys.Step) fsys.FS {
	return fsys.FS{Hook: func(s fsys.Step, _ string) error {
		*steps = append(*steps, s)
		return nil
	}}
}

func lstat(t testing.TB, path string) (st unix.Stat_t) {
	t.Helper()
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return st
}

func sameBytes(t testing.TB, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s has %d bytes (%v) and differs from the %d bytes wanted", path, len(got), err, len(want))
	}
}

func contains(steps []fsys.Step, s fsys.Step) bool { return slices.Contains(steps, s) }
