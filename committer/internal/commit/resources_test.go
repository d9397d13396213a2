package commit_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/tierflow/tierflow/shared/testenv/localserver"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// takeConnections takes every connection that the server has, while the committer has none, and returns what gives them back.
func takeConnections(t *testing.T, server *localserver.MySQL, root *sql.DB, _ string) (end func()) {
	t.Helper()
	do := func(statement string) {
		t.Helper()
		if _, err := root.Exec(statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	do("CREATE USER 'crowd'@'127.0.0.1'")
	do("SET GLOBAL max_connections = 10")
	do("ALTER USER 'tierflow'@'127.0.0.1' ACCOUNT LOCK")
	testserver.Eventually(t, "the committer has no session", 20*time.Second, func() error {
		killSessions(t, root)
		var n int
		err := root.QueryRow("SELECT COUNT(*) FROM information_schema.processlist WHERE user = 'tierflow'").Scan(&n)
		if err == nil && n > 0 {
			err = fmt.Errorf("it has %d", n)
		}
		return err
	})
	crowd, err := sql.Open("mysql", strings.Replace(server.DSN(""), "root@", "crowd@", 1))
	if err != nil {
		t.Fatal(err)
	}
	for {
		_, err := crowd.Conn(context.Background())
		var refused *mysql.MySQLError
		if errors.As(err, &refused) && refused.Number == 1040 {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	do("ALTER USER 'tierflow'@'127.0.0.1' ACCOUNT UNLOCK")
	return func() {
		crowd.Close()
		do("SET GLOBAL max_connections = 151")
		do("DROP USER 'crowd'@'127.0.0.1'")
	}
}

// smallTemporaryFolder is a folder of 64 MiB for a server's temporary files.
func smallTemporaryFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=64m,mode=1777", "none", dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s (these tests must run as root, with the right to mount)", err, out)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fillTemporary takes all room of the folder of temporary files, and returns what gives it back.
func fillTemporary(t *testing.T, _ *localserver.MySQL, _ *sql.DB, temporary string) (end func()) {
	t.Helper()
	path := filepath.Join(temporary, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(f, zeros{}); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the folder is not full: %v", err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }
