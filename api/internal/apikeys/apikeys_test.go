package apikeys_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tierflow/tierflow/api/internal/apikeys"
)

func generate(t testing.TB, name string, scopes apikeys.Scope) (secret, line string) {
	t.Helper()
	secret, line, err := apikeys.Generate(name, scopes)
	if err != nil {
		t.Fatal(err)
	}
	return secret, line
}

func TestAFileOfKeysHasCommentsEmptyLinesAndKeys(t *testing.T) {
	_, a := generate(t, "player", apikeys.Views)
	_, b := generate(t, "on-call.2", apikeys.Views|apikeys.Read|apikeys.Operate)
	ks, err := apikeys.Parse([]byte("# keys\n\n  # more\n" + a + "\n\t" + strings.ReplaceAll(b, " ", " \t ") + "\r\n"))
	if err != nil || len(ks) != 2 || ks[0].Name != "player" || ks[0].Scopes != apikeys.Views || ks[1].Name != "on-call.2" ||
		ks[1].Scopes.String() != "views,read,operate" {
		t.Fatalf("%+v %v", ks, err)
	}
}

func TestTheFileHoldsTheHashAndNotTheKey(t *testing.T) {
	secret, line := generate(t, "player", apikeys.Views)
	if strings.Contains(line, secret) || line != fmt.Sprintf("player views sha256:%x", sha256.Sum256([]byte(secret))) {
		t.Fatalf("%s: %s", secret, line)
	}
	other, _ := generate(t, "player", apikeys.Views)
	if other == secret || len(secret) < 43 {
		t.Fatalf("%s, %s", secret, other)
	}
}

func TestEveryWrongLineIsNamedAndNoneIsShown(t *testing.T) {
	secret, line := generate(t, "player", apikeys.Views)
	_, other := generate(t, "other", apikeys.Read)
	hash := strings.Fields(line)[2]
	_, err := apikeys.Parse([]byte(strings.Join([]string{
		line, secret, "a views " + secret, "b views,admin " + hash[:len(hash)-1] + "0", "-c views " + strings.Fields(other)[2],
		"player read sha256:" + strings.Repeat("1", 64), "d read " + hash, "e read " + strings.ToUpper(hash), "f read, operate " + hash,
	}, "\n")))
	if err == nil {
		t.Fatal("accepted")
	}
	for n := 2; n <= 9; n++ {
		if !strings.Contains(err.Error(), fmt.Sprintf("line %d: ", n)) {
			t.Errorf("line %d is not named: %v", n, err)
		}
	}
	if strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), hash) {
		t.Errorf("it shows a key: %v", err)
	}
}

func TestAFileWithoutAKeyOrWithTooManyIsWrong(t *testing.T) {
	for _, empty := range []string{"", "\n", "# nothing\n"} {
		if _, err := apikeys.Parse([]byte(empty)); err == nil {
			t.Errorf("%q is accepted", empty)
		}
	}
	var b strings.Builder
	for i := range 1001 {
		fmt.Fprintf(&b, "k%d read sha256:%064x\n", i, i)
	}
	if _, err := apikeys.Parse([]byte(b.String())); err == nil || !strings.Contains(err.Error(), "1001") {
		t.Errorf("%v", err)
	}
}

func TestAppendKeepsTheFileRight(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	_, a := generate(t, "a", apikeys.Read)
	if err := apikeys.Append(path, a); err != nil {
		t.Fatal(err)
	}
	// Some editors leave no newline at the end.
	if err := os.WriteFile(path, []byte("# ours\n"+a), 0o600); err != nil {
		t.Fatal(err)
	}
	_, b := generate(t, "b", apikeys.Read)
	_, again := generate(t, "a", apikeys.Views)
	if err := apikeys.Append(path, b); err != nil {
		t.Fatal(err)
	}
	if err := apikeys.Append(path, again); err == nil || !strings.Contains(err.Error(), "same name") {
		t.Fatalf("a second key of the same name: %v", err)
	}
	data, err := os.ReadFile(path)
	if err != nil || string(data) != "# ours\n"+a+"\n"+b+"\n" {
		t.Fatalf("%q %v", data, err)
	}
}

func TestKeysThatAreMadeAtTheSameTimeAllComeIntoTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	var wg sync.WaitGroup
	for i := range 20 {
		_, line := generate(t, fmt.Sprintf("k%d", i), apikeys.Read)
		wg.Go(func() {
			if err := apikeys.Append(path, line); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if ks, err := apikeys.Parse(data); err != nil || len(ks) != 20 {
		t.Fatalf("%d keys: %v", len(ks), err)
	}
}

// follow runs a file and returns the channel on which it reports changes.
func follow(t *testing.T, f *apikeys.File) <-chan error {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	told, done := make(chan error, 100), make(chan struct{})
	go func() {
		defer close(done)
		f.Run(ctx, func(err error) { told <- err })
	}()
	t.Cleanup(func() { cancel(); <-done })
	return told
}

func next(t *testing.T, told <-chan error) error {
	t.Helper()
	select {
	case err := <-told:
		return err
	case <-time.After(5 * time.Second): // of the bubble
		t.Fatal("no change is reported")
		return nil
	}
}

func TestAChangedFileIsReadAgainAndAWrongOneChangesNothing(t *testing.T) {
	synctest.Test(t, testAChangedFile) // whose clock does not wait
}

func testAChangedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	secret, a := generate(t, "a", apikeys.Read)
	later, b := generate(t, "b", apikeys.Read)
	write(a + "\n")
	f, err := apikeys.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	g := apikeys.NewGuard(f.Keys)
	check := func(what string, first, second bool) {
		t.Helper()
		for key, want := range map[string]bool{secret: first, later: second} {
			if got := g.Allow(request(key), http.Header{}, apikeys.Read) == nil; got != want {
				t.Errorf("%s: the key is allowed: %t, want %t", what, got, want)
			}
		}
	}
	told := follow(t, f)
	check("at start", true, false)

	write(a + "\n" + b + "\n")
	if err := next(t, told); err != nil {
		t.Fatal(err)
	}
	check("one more", true, true)

	write(b + "\nnonsense\n")
	if err := next(t, told); err == nil || !strings.Contains(err.Error(), path+": line 2") {
		t.Fatalf("a wrong file: %v", err)
	}
	check("wrong", true, true)

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := next(t, told); err == nil || !strings.Contains(err.Error(), path) {
		t.Fatalf("no file: %v", err)
	}
	check("gone", true, true)

	write(a + "\n" + b + "\n")
	if err := next(t, told); err != nil {
		t.Fatalf("as before: %v", err)
	}
	check("as before", true, true)

	// Replaced by a rename, and by a file that is as long.
	write(b + "\n")
	if err := next(t, told); err != nil {
		t.Fatal(err)
	}
	check("the first is revoked", false, true)
	if err := os.WriteFile(path+".new", []byte(a+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	if err := next(t, told); err != nil {
		t.Fatal(err)
	}
	check("replaced", true, false)
}

func request(key string) *http.Request {
	return &http.Request{Header: http.Header{"Authorization": {"Bearer " + key}}, RemoteAddr: "127.0.0.1:4711"}
}

func TestARightKeyCostsNoAllocation(t *testing.T) {
	secret, line := generate(t, "player", apikeys.Views)
	ks, err := apikeys.Parse([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	g := apikeys.NewGuard(func() []apikeys.Key { return ks })
	r, h := request(secret), http.Header{}
	if n := testing.AllocsPerRun(100, func() {
		if err := g.Allow(r, h, apikeys.Views); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func BenchmarkARightKeyAmongTen(b *testing.B) {
	var lines []string
	var secret string
	for i := range 10 {
		var line string
		secret, line = generate(b, fmt.Sprintf("k%d", i), apikeys.Views)
		lines = append(lines, line)
	}
	ks, err := apikeys.Parse([]byte(strings.Join(lines, "\n")))
	if err != nil {
		b.Fatal(err)
	}
	g := apikeys.NewGuard(func() []apikeys.Key { return ks })
	r, h := request(secret), http.Header{}
	b.ReportAllocs()
	for b.Loop() {
		if err := g.Allow(r, h, apikeys.Views); err != nil {
			b.Fatal(err)
		}
	}
}
