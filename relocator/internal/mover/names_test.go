package mover_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/shared/fault"
)

func TestInvalidNamesTouchNothing(t *testing.T) {
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

func TestUnusualValidNamesAreMoved(t *testing.T) {
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
	t.Run("folders nested too deep", func(t *testing.T) {
		from, to := routes[0].tiers(t)
		write(t, from.Path+"/deep"+strings.Repeat("/d", 120)+"/x", nil)
		_, err := mover.New(mover.Options{}).Make(context.Background(), request(from, to, "deep"))
		wantKind(t, err, fault.Unsupported, "deep")
	})
}
