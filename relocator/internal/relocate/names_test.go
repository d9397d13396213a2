package relocate_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/relocatortest"
)

// The items have names and files of every kind that people may have put into the database and onto a tier.
func TestItemsThatCannotBeMovedBecomeDeadLettersAndNothingOutsideIsTouched(t *testing.T) {
	w := relocatortest.New(t)
	bronze := w.Roots["bronze"]
	outside := t.TempDir()
	if err := os.WriteFile(outside+"/x", []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := func(to string) func(string) error { return func(p string) error { return os.Symlink(to, p) } }
	node := func(mode uint32, dev uint64) func(string) error {
		return func(p string) error { return unix.Mknod(p, mode|0o644, int(dev)) }
	}
	cases := []struct {
		name   string
		plant  func(path string) error // nil: nothing
		reason string
	}{
		{"..", nil, "invalid-name"},
		{"../outside", nil, "invalid-name"},
		{"a/../../outside", nil, "invalid-name"},
		{outside + "/x", nil, "invalid-name"},
		{"nul\x00/x", nil, "invalid-name"},
		{"empty//component", nil, "invalid-name"},
		{strings.Repeat("b", 256), nil, "invalid-name"},
		{".tierflow/tier.json", nil, "invalid-name"},
		{"link-out", link(outside + "/x"), "unsupported"},
		{"link-folder", link(outside), "unsupported"},
		{"link-parent/x", func(p string) error { return os.Symlink(outside, filepath.Dir(p)) }, "unsupported"},
		{"link-dangling", link("nowhere"), "unsupported"},
		{"fifo", node(unix.S_IFIFO, 0), "unsupported"},
		{"socket", node(unix.S_IFSOCK, 0), "unsupported"},
		{"character-device", node(unix.S_IFCHR, unix.Mkdev(1, 3)), "unsupported"},
		{"block-device", node(unix.S_IFBLK, unix.Mkdev(7, 0)), "unsupported"},
		{"folder/with-link", func(p string) error { return errors.Join(os.MkdirAll(p, 0o755), os.Symlink(outside, p+"/l")) }, "unsupported"},
		{"not-there", nil, "missing-file"},
	}
	want := map[string]string{}
	for i, c := range cases {
		if c.plant != nil {
			if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Dir(bronze+"/"+c.name)), 0o755), plantIn(bronze, c.name, c.plant)); err != nil {
				t.Fatalf("%v (this test must run as root)", err)
			}
		}
		w.Exec("INSERT INTO contents (cid, content_level, filename) VALUES (?, 'bronze', ?)", i+1, c.name)
		want[fmt.Sprint(i+1)] = c.reason
	}
	good := map[int][]byte{}
	for i, name := range []string{"line\nbreak", strings.Repeat("c", 255), `back\slash "quote" %2e%2e`, "é/\t"} {
		id := len(cases) + 1 + i
		good[id] = w.Item(id, name)
	}

	w.Relocator("r1")
	w.Releaser("r1")
	w.Committer()
	for id := range len(cases) + len(good) {
		w.Post(id+1, 2500) // to gold, on another file system
	}
	got := map[string]string{}
	for _, m := range w.DeadLetters(len(cases)) {
		got[m.Values["cid"].(string)] = m.Values["reason"].(string)
		if m.Values["error"] == "" || m.Values["stage"] != "relocate" {
			t.Errorf("dead: %v", m.Values)
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("reasons\n got %v\nwant %v", got, want)
	}
	w.Settled()
	for _, id := range slices.Sorted(maps.Keys(good)) {
		w.Lies(id, "gold", good[id])
	}
	onlySecret(t, outside)
}

func plantIn(root, name string, plant func(string) error) error {
	if dir := filepath.Dir(name); dir != "." && !strings.HasPrefix(name, "link-parent/") {
		if err := os.MkdirAll(root+"/"+dir, 0o755); err != nil {
			return err
		}
	}
	return plant(root + "/" + name)
}

func onlySecret(t *testing.T, outside string) {
	t.Helper()
	es, err := os.ReadDir(outside)
	body, rerr := os.ReadFile(outside + "/x")
	if err != nil || rerr != nil || len(es) != 1 || string(body) != "secret" {
		t.Errorf("outside: %v, %q (%v, %v)", es, body, err, rerr)
	}
}

// The folder is swapped at a few steps. The tests of package mover swap it at every step.
func TestAFolderSwappedForALinkDuringTheMoveBecomesADeadLetter(t *testing.T) {
	for _, c := range []struct {
		step          fsys.Step
		level, reason string
	}{
		{fsys.OpenSource, "bronze", "unsupported"},
		{fsys.CreateTemp, "bronze", "unsupported"},
		{fsys.MakeFolder, "gold", "conflict"},
	} {
		t.Run(string(c.step), func(t *testing.T) {
			w := relocatortest.New(t)
			outside := t.TempDir()
			if err := os.WriteFile(outside+"/x", []byte("secret"), 0o600); err != nil {
				t.Fatal(err)
			}
			w.Item(1, "a/x")
			folder := w.Roots[c.level] + "/a"
			var once sync.Once
			w.FS = fsys.FS{Hook: func(s fsys.Step, _ string) error {
				if s == c.step {
					once.Do(func() {
						if err := os.Rename(folder, folder+"-real"); err != nil && !errors.Is(err, os.ErrNotExist) {
							t.Error(err)
						}
						if err := os.Symlink(outside, folder); err != nil {
							t.Error(err)
						}
					})
				}
				return nil
			}}
			w.Relocator("r1")
			w.Releaser("r1")
			w.Committer()
			w.Post(1, 2500)
			if m := w.DeadLetters(1)[0]; m.Values["reason"] != c.reason {
				t.Errorf("dead: %v", m.Values)
			}
			onlySecret(t, outside)
		})
	}
}
