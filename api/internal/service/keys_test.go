package service_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tierflow/tierflow/api/internal/apikeys"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func newKey(t *testing.T, name string, scopes apikeys.Scope) (secret, line string) {
	t.Helper()
	secret, line, err := apikeys.Generate(name, scopes)
	if err != nil {
		t.Fatal(err)
	}
	return secret, line
}

func writeKeys(t *testing.T, path string, lines ...string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestACallNeedsAKeyWithItsScope(t *testing.T) {
	views, viewsLine := newKey(t, "player", apikeys.Views)
	read, readLine := newKey(t, "web", apikeys.Read)
	operate, operateLine := newKey(t, "on-call", apikeys.Operate)
	a := start(t, options{keysFile: writeKeys(t, filepath.Join(t.TempDir(), "keys"), viewsLine, readLine, operateLine)})
	a.insert(7, "bronze", "g.mp4")

	a.wantProblem("POST", "/post_sentence", form, "cid=7&count=1964", 401, "unauthorized", "Authorization: Bearer")
	a.key = read
	a.wantProblem("POST", "/post_sentence", form, "cid=7&count=1964", 403, "forbidden", "views")
	a.wantProblem("POST", "/v1/pause", "", "", 403, "forbidden", "operate")
	if vs := a.views(); len(vs) > 0 {
		t.Fatalf("%v were appended without the right to", vs)
	}
	a.key = views
	if status, body := a.post("cid=7&count=1964"); status != 200 || !strings.Contains(body, `"target": "silver"`) {
		t.Fatalf("%d %s", status, body)
	}
	a.wantProblem("GET", "/v1/contents/7", "", "", 403, "forbidden", "read")
	a.key = operate
	a.want(200, "PUT", "/v1/contents/7/pin", `{"level":"bronze"}`, nil)
	a.wantProblem("GET", "/v1/events", "", "", 403, "forbidden", "read")
	a.key = read
	a.want(200, "GET", "/v1/contents/7", "", nil)
	resp := a.request("GET", "/v1/events", "", nil)
	defer resp.Body.Close()
	first := make([]byte, 12)
	if _, err := io.ReadFull(resp.Body, first); err != nil || resp.StatusCode != 200 || string(first) != "retry: 1000\n" {
		t.Fatalf("%d %q %v", resp.StatusCode, first, err)
	}
}

func TestKeysChangeWithoutARestartAndAWrongFileIsReported(t *testing.T) {
	old, oldLine := newKey(t, "old", apikeys.Read)
	fresh, freshLine := newKey(t, "fresh", apikeys.Read)
	path := writeKeys(t, filepath.Join(t.TempDir(), "keys"), oldLine)
	a := start(t, options{keysFile: path})
	answers := func(key string) int {
		a.key = key
		status, _ := a.do("GET", "/v1/levels", "", "")
		return status
	}
	if answers(old) != 200 || answers(fresh) != 401 {
		t.Fatalf("at start: %d and %d", answers(old), answers(fresh))
	}
	readyz := func() (status int, body string) {
		a.key = ""
		return a.do("GET", "/readyz", "", "")
	}

	writeKeys(t, path, freshLine, "and more")
	testserver.Eventually(t, "the warning", 30*time.Second, func() error {
		if _, body := readyz(); !strings.Contains(body, `"api-keys"`) || !strings.Contains(body, "line 2") {
			return errors.New(body)
		}
		return nil
	})
	if status, body := readyz(); status != 200 || !strings.Contains(body, `"ready"`) {
		t.Fatalf("a wrong file of keys takes a service out of use that works: %d %s", status, body)
	}
	if answers(old) != 200 || answers(fresh) != 401 {
		t.Fatalf("a wrong file changes the keys: %d and %d", answers(old), answers(fresh))
	}

	writeKeys(t, path, freshLine)
	testserver.Eventually(t, "the new key", 30*time.Second, func() error {
		if answers(fresh) != 200 {
			return errors.New("refused")
		}
		return nil
	})
	if answers(old) != 401 {
		t.Fatal("the old key is still good")
	}
	testserver.Eventually(t, "no warning", 30*time.Second, func() error {
		if _, body := readyz(); strings.Contains(body, "warnings") {
			return errors.New(body)
		}
		return nil
	})
}
