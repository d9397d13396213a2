package process_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tierflow/tierflow/shared/process"
)

// In a child process, the test binary is a program. A variable names its work, and it reports to its parent on its output.
func TestMain(m *testing.M) {
	work := map[string]func(context.Context) int{
		"drains": func(ctx context.Context) int {
			fmt.Println("begun")
			<-ctx.Done()
			fmt.Println("stopping")
			_, _ = io.ReadAll(os.Stdin) // its work lasts until the parent closes the input
			fmt.Println("done")
			return 7
		},
		"fails": func(context.Context) int { return process.Failed },
		"rests": func(ctx context.Context) int {
			process.CollectLate(ctx)
			inUse := make([]byte, 10<<20)
			for range 300 << 20 / len(inUse) {
				_ = append([]byte(nil), inUse...)
			}
			fmt.Println("much is held:", held() > 30<<20)
			for held() > 20<<20 {
				time.Sleep(50 * time.Millisecond)
			}
			fmt.Println("little is held")
			runtime.KeepAlive(inUse)
			return 0
		},
	}
	if f := work[os.Getenv("PROCESS_TEST_WORK")]; f != nil {
		os.Exit(process.Run(f))
	}
	os.Exit(m.Run())
}

// held returns the bytes that the system has given to the heap and that were not returned.
func held() uint64 {
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.HeapSys - s.HeapReleased
}

// child is a running program.
type child struct {
	*exec.Cmd
	t      *testing.T
	stdin  io.WriteCloser
	says   *bufio.Scanner
	stderr strings.Builder
}

func start(t *testing.T, work string) *child {
	t.Helper()
	c := &child{Cmd: exec.Command(os.Args[0]), t: t}
	c.Env = append(os.Environ(), "PROCESS_TEST_WORK="+work, "GORACE=atexit_sleep_ms=0", "GOGC=")
	c.Stderr = &c.stderr
	var err error
	if c.stdin, err = c.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.says = bufio.NewScanner(out)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill() }) // in case the test fails before the child's end
	return c
}

func (c *child) expect(line string) {
	c.t.Helper()
	if !c.says.Scan() || c.says.Text() != line {
		c.t.Fatalf("it says %q, not %q; %v, %s", c.says.Text(), line, c.says.Err(), c.stderr.String())
	}
}

func (c *child) signal(s syscall.Signal) {
	c.t.Helper()
	if err := c.Process.Signal(s); err != nil {
		c.t.Fatal(err)
	}
}

func (c *child) exits(code int) {
	c.t.Helper()
	_ = c.Wait()
	if got := c.ProcessState.ExitCode(); got != code {
		c.t.Errorf("exit code %d (%s), not %d; %s", got, c.ProcessState, code, c.stderr.String())
	}
}

func TestASignalEndsTheContextAndTheExitCodeIsTheProgramsOwn(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		c := start(t, "drains")
		c.expect("begun")
		c.signal(s)
		c.expect("stopping")
		c.stdin.Close()
		c.expect("done")
		c.exits(7)
	}
}

func TestASecondSignalEndsTheProcessAtOnce(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		c := start(t, "drains")
		c.expect("begun")
		c.signal(syscall.SIGTERM)
		c.expect("stopping")
		c.signal(s)
		c.exits(process.Failed)
		if !strings.Contains(c.stderr.String(), "second signal") {
			t.Errorf("it says %q", c.stderr.String())
		}
	}
}

func TestWithoutASignalTheExitCodeIsTheProgramsOwn(t *testing.T) {
	start(t, "fails").exits(process.Failed)
}

func TestAnIdleServiceReturnsTheMemoryOfItsGarbage(t *testing.T) {
	c := start(t, "rests")
	c.expect("much is held: true")
	c.expect("little is held")
	c.exits(process.OK)
}

func TestTheVersionTextNamesProgramVersionAndRevision(t *testing.T) {
	version, revision := process.Version, process.Revision
	defer func() { process.Version, process.Revision = version, revision }()
	if got := process.VersionText("api"); !strings.HasPrefix(got, "api dev (revision ") {
		t.Errorf("%q", got)
	}
	process.Version, process.Revision = "1.2.3", "abc"
	if got := process.VersionText("api"); got != "api 1.2.3 (revision abc)" {
		t.Errorf("%q", got)
	}
}
