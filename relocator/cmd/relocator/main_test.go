package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/service"
	"github.com/tierflow/tierflow/shared/process"
)

// TestMain makes this test binary the program, but for one thing: where TIERFLOW_TEST_STEPS names a unix socket, the program
// asks its listener before every operation on files. With it scripts/tests/e2e stops and ends real processes at any step,
// and the program itself has no switch for that. Under any other name than the program's, it runs the tests.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) != "relocator" {
		os.Exit(m.Run())
	}
	os.Exit(process.Run(func(ctx context.Context) int {
		var fs fsys.FS
		if socket := os.Getenv("TIERFLOW_TEST_STEPS"); socket != "" {
			conn, err := net.Dial("unix", socket)
			if err != nil {
				fmt.Fprintln(os.Stderr, "relocator: TIERFLOW_TEST_STEPS:", err)
				return process.Settings
			}
			fs.Hook = asking(conn)
		}
		return service.Main(ctx, os.Args[1:], os.Stdout, os.Stderr, fs)
	}))
}

// asking returns a hook that writes a line for every operation, with its goroutine, step and quoted path. Then it
// waits for a byte: 'g' lets the operation go on, 's' leaves it out. Meanwhile a signal may stop or end the process.
func asking(conn net.Conn) fsys.Hook {
	var mu sync.Mutex
	answers := bufio.NewReader(conn)
	return func(step fsys.Step, path string) error {
		var buf [64]byte
		goroutine, _, _ := bytes.Cut(bytes.TrimPrefix(buf[:runtime.Stack(buf[:], false)], []byte("goroutine ")), []byte(" "))
		mu.Lock()
		defer mu.Unlock()
		if _, err := fmt.Fprintf(conn, "%s %s %q\n", goroutine, step, path); err != nil {
			return err
		}
		switch answer, err := answers.ReadByte(); {
		case err != nil:
			return err
		case answer == 's':
			return fsys.Skip
		case answer != 'g':
			return errors.New("TIERFLOW_TEST_STEPS: unknown answer")
		}
		return nil
	}
}
