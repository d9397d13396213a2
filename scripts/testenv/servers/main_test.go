package main

import (
	"context"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
)

// script runs a script of sh with the servers, and returns its exit code and what it wrote to the file $OUT.
func script(t *testing.T, ctx context.Context, set map[string]string, text string) (int, string) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	environ := []string{"OUT=" + out, "PATH=" + os.Getenv("PATH")}
	for name, value := range set {
		environ = append(environ, name+"="+value)
	}
	set["TIERFLOW_TEST_MYSQLD"] = os.Getenv("TIERFLOW_TEST_MYSQLD")
	code, err := run(ctx, []string{"sh", "-c", text}, func(name string) string { return set[name] }, environ)
	if err != nil {
		t.Error(err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return code, string(b)
}

func TestTheCommandHasServersThatAreGoneAfterIt(t *testing.T) {
	code, out := script(t, t.Context(), map[string]string{},
		`echo "$TIERFLOW_TEST_REDIS_URL $TIERFLOW_TEST_MYSQL_DSN" >$OUT; exit 7`)
	if code != 7 {
		t.Errorf("exit code %d, want the command's, 7", code)
	}
	redisURL, dsn, _ := strings.Cut(strings.TrimSpace(out), " ")
	u, err := url.Parse(redisURL)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range []string{u.Host, cfg.Addr} {
		if conn, err := net.Dial("tcp", addr); err == nil {
			conn.Close()
			t.Errorf("somebody still listens on %s", addr)
		}
	}
}

func TestServersThatAreGivenAreLeftAlone(t *testing.T) {
	given := map[string]string{"TIERFLOW_TEST_REDIS_URL": "redis://mine", "TIERFLOW_TEST_MYSQL_DSN": "mine@tcp(here)/"}
	code, out := script(t, t.Context(), given, `echo "$TIERFLOW_TEST_REDIS_URL $TIERFLOW_TEST_MYSQL_DSN" >$OUT`)
	if code != 0 || out != "redis://mine mine@tcp(here)/\n" {
		t.Errorf("exit code %d, servers %s", code, out)
	}
}

func TestAnInterruptIsPassedOnToTheCommand(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	given := map[string]string{"TIERFLOW_TEST_REDIS_URL": "redis://mine", "TIERFLOW_TEST_MYSQL_DSN": "mine@tcp(here)/"}
	began := filepath.Join(t.TempDir(), "began")
	given["BEGAN"] = began
	go func() {
		for _, err := os.Stat(began); err != nil; _, err = os.Stat(began) {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	code, out := script(t, ctx, given, `trap 'echo interrupted >$OUT; kill $!; exit 0' INT; sleep 1000 & touch $BEGAN; wait`)
	if code != 1 || out != "interrupted\n" {
		t.Errorf("exit code %d, the command said %q", code, out)
	}
}
