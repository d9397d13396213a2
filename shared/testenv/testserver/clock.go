package testserver

import (
	_ "embed"
	"encoding/binary"
	"errors"
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

// clockFile has the seconds by which a Redis' clock is ahead. It is in the server's own folder.
const clockFile = "clock"

// ClockRedisProgram makes a redis-server in a folder. SetClock sets the wall clock of servers with this program. A library
// that is loaded into Redis does it; gcc makes the library.
func ClockRedisProgram(dir string) (program string, err error) {
	redis, err := localserver.FindRedis()
	if err != nil {
		return "", err
	}
	source, library, program := filepath.Join(dir, "clock.c"), filepath.Join(dir, "clock.so"), filepath.Join(dir, "redis-server")
	if err := os.WriteFile(source, clockLibrary, 0o600); err != nil {
		return "", err
	}
	if out, err := exec.Command("gcc", "-shared", "-fPIC", "-o", library, source).CombinedOutput(); err != nil {
		return "", fmt.Errorf("gcc: %w: %s", err, out)
	}
	script := fmt.Sprintf("#!/bin/sh\n[ -e %[1]s ] || printf '\\0\\0\\0\\0\\0\\0\\0\\0' >%[1]s\n"+
		"LD_PRELOAD=%[2]s TIERFLOW_TEST_CLOCK=%[1]s exec %[3]s \"$@\"\n", clockFile, library, redis)
	return program, os.WriteFile(program, []byte(script), 0o700)
}

// SetClock puts the wall clock of a Redis ahead of this machine's by whole seconds, or behind it, at once. The clock stays so
// over starts.
func SetClock(r *localserver.Redis, ahead time.Duration) error {
	var seconds [8]byte
	binary.NativeEndian.PutUint64(seconds[:], uint64(int64(ahead/time.Second)))
	f, err := os.OpenFile(filepath.Join(r.Dir(), clockFile), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(seconds[:], 0)
	return errors.Join(err, f.Close())
}

// ClockRedis starts a Redis of the test's own, and returns what sets its clock, as SetClock does.
func ClockRedis(t testing.TB) (url string, set func(ahead time.Duration)) {
	t.Helper()
	program, err := ClockRedisProgram(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r, err := localserver.StartRedis(t.Context(), localserver.Options{Binary: program})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r.URL(), func(ahead time.Duration) {
		t.Helper()
		if err := SetClock(r, ahead); err != nil {
			t.Fatal(err)
		}
	}
}
