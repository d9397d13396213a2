package fsys_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
)

const step fsys.Step = "test"

func root(t *testing.T) (*fsys.File, string) {
	t.Helper()
	dir := t.TempDir()
	f, _, err := fsys.FS{}.OpenRoot(step, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f, dir
}

func TestNoNameLeavesItsFolder(t *testing.T) {
	r, dir := root(t)
	err := errors.Join(os.MkdirAll(dir+"/in/sub", 0o755), os.WriteFile(dir+"/secret", []byte("s"), 0o644),
		os.Symlink("../secret", dir+"/in/up"), os.Symlink("sub", dir+"/in/down"), os.Symlink("/", dir+"/in/abs"))
	if err != nil {
		t.Fatal(err)
	}
	in, _, err := fsys.FS{}.OpenDir(step, r, "in")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	for _, name := range []string{"../secret", "sub/../../secret", "/etc/passwd", "up", "down", "down/x", "abs", "abs/etc/passwd", ""} {
		for _, open := range []func(fsys.Step, *fsys.File, string) (*fsys.File, unix.Stat_t, error){fsys.FS{}.Open, fsys.FS{}.OpenDir} {
			f, _, err := open(step, in, name)
			if err == nil {
				f.Close()
				t.Errorf("%q was opened", name)
			}
			var kind *fsys.KindError
			if link := strings.HasPrefix(name, "up") || strings.HasPrefix(name, "down") || strings.HasPrefix(name, "abs"); link && !errors.As(err, &kind) {
				t.Errorf("%q: %v", name, err)
			}
		}
	}
}

func TestRemoveAllFollowsNoSymbolicLink(t *testing.T) {
	r, dir := root(t)
	outside := t.TempDir()
	err := errors.Join(os.WriteFile(outside+"/x", nil, 0o644), os.MkdirAll(dir+"/d/sub/deep", 0o755),
		os.Symlink(outside, dir+"/d/sub/link"), os.Symlink(outside, dir+"/top"), unix.Mkfifo(dir+"/d/fifo", 0o600),
		os.WriteFile(dir+"/d/sub/deep/x", nil, 0o400), os.Chmod(dir+"/d/sub/deep", 0o500))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"d", "top", "absent"} {
		if err := (fsys.FS{}).RemoveAll(context.Background(), step, r, name); err != nil {
			t.Error(err)
		}
	}
	if es, _ := os.ReadDir(dir); len(es) != 0 {
		t.Errorf("left %v", es)
	}
	if _, err := os.Stat(filepath.Join(outside, "x")); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	why := errors.New("why")
	cancel(why)
	if err := (fsys.FS{}).RemoveAll(ctx, step, r, "d"); err != why {
		t.Errorf("got %v", err)
	}
}

func TestAHookGetsStepAndPathAndMayFailOrShortenAnOperation(t *testing.T) {
	_, dir := root(t)
	boom := errors.New("boom")
	answer := error(nil)
	var seen []string
	fs := fsys.FS{Hook: func(s fsys.Step, path string) error {
		seen = append(seen, string(s)+" "+strings.TrimPrefix(path, dir))
		return answer
	}}
	r, _, err := fs.OpenRoot(fsys.OpenTier, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	f, err := fs.Create(fsys.CreateTemp, r, "x")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	answer = fsys.ShortWrite(3)
	if n, err := fs.WriteAt(fsys.WriteTemp, f, []byte("abcdef"), 0); n != 3 || err != nil {
		t.Errorf("wrote %d, %v", n, err)
	}
	answer = boom
	for _, err := range []error{fs.Fsync(fsys.FsyncTemp, f), fs.Unlink(fsys.RemoveTemp, r, "x"), fs.Link(fsys.Publish, r, "x", r, "y")} {
		if !errors.Is(err, boom) {
			t.Errorf("got %v", err)
		}
	}
	want := "open-tier |create-temp /x|write-temp /x|fsync-temp /x|remove-temp /x|publish /y"
	if got := strings.Join(seen, "|"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	es, _ := os.ReadDir(dir)
	if len(es) != 1 {
		t.Errorf("an operation was done although its hook failed: %v", es)
	}
}

func TestASkippedOperationSucceedsAndDoesNothing(t *testing.T) {
	r, dir := root(t)
	if err := os.WriteFile(dir+"/x", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	fs := fsys.FS{Hook: func(fsys.Step, string) error { return fsys.Skip }}
	err := errors.Join(fs.Unlink(step, r, "x"), fs.Mkdir(step, r, "y", 0o755), fs.Fsync(step, r))
	if es, _ := os.ReadDir(dir); err != nil || len(es) != 1 {
		t.Errorf("%v, %v", err, es)
	}
	if f, _, err := fs.Open(step, r, "x"); !errors.Is(err, unix.EBADF) {
		f.Close()
		t.Errorf("a skipped open returned %v", err)
	}
}
