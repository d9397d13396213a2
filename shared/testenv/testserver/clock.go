package testserver

import (
	_ "embed"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/tierflow/tierflow/shared/testenv/localserver"
)

//go:embed testdata/clock.c
var clockLibrary []byte

// ClockRedis starts a Redis of the test's own. set puts its wall clock ahead of this machine's by whole seconds, or behind it,
// at once. A library that is loaded into Redis does it; gcc makes the library.
func ClockRedis(t testing.TB) (url string, set func(ahead time.Duration)) {
	t.Helper()
	redis, err := localserver.FindRedis()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	source, library := filepath.Join(dir, "clock.c"), filepath.Join(dir, "clock.so")
	clock, program := filepath.Join(dir, "clock"), filepath.Join(dir, "redis-server")
	set = func(ahead time.Duration) {
		t.Helper()
		f, err := os.OpenFile(clock, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var seconds [8]byte
		binary.NativeEndian.PutUint64(seconds[:], uint64(int64(ahead/time.Second)))
		if _, err := f.WriteAt(seconds[:], 0); err != nil {
			t.Fatal(err)
		}
	}
	set(0)
	if err := os.WriteFile(source, clockLibrary, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "gcc", "-shared", "-fPIC", "-o", library, source).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	script := fmt.Sprintf("#!/bin/sh\nLD_PRELOAD=%s TIERFLOW_TEST_CLOCK=%s exec %s \"$@\"\n", library, clock, redis)
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	r, err := localserver.StartRedis(t.Context(), localserver.Options{Binary: program})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r.URL(), set
}
