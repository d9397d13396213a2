package child_test

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tierflow/tierflow/shared/testenv/child"
)

// shell returns a Process that runs a script of sh. It is ready when the script has written "ready" and its process id.
func shell(t *testing.T, script string) *child.Process {
	t.Helper()
	var p *child.Process
	p = child.New(child.Options{
		Name: "script", Log: filepath.Join(t.TempDir(), "log"),
		Command: func() *exec.Cmd { return exec.Command("sh", "-c", script) },
		Ready: func(_ context.Context, pid int) error {
			if !strings.Contains(p.Log(), fmt.Sprintf("ready %d\n", pid)) {
				return errors.New("it has not said ready")
			}
			return nil
		},
	})
	t.Cleanup(func() { p.Kill() })
	return p
}

// polite exits with 7 at SIGTERM. It uses wait because a signal interrupts wait, but not a sleep in the foreground.
const polite = `trap 'kill $!; exit 7' TERM; sleep 1000 & echo ready $$; wait`

func TestStopWaitsForTheExitCode(t *testing.T) {
	p := shell(t, polite)
	for range 2 {
		if err := p.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if p.PID() == 0 {
			t.Fatal("a running program has process id 0")
		}
		if err := p.Stop(); err != nil {
			t.Fatal(err)
		}
		if code, err := p.Wait(t.Context()); code != 7 || err != nil {
			t.Fatalf("exit code %d, %v, want 7", code, err)
		}
		if pid := p.PID(); pid != 0 {
			t.Fatalf("after Stop the process id is %d", pid)
		}
	}
}

func TestAPausedProgramIsStoppedAllTheSame(t *testing.T) {
	p := shell(t, polite)
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	if code, _ := p.Wait(t.Context()); code != 7 {
		t.Fatalf("exit code %d, want 7", code)
	}
}

func TestAKilledProgramHasNoExitCode(t *testing.T) {
	p := shell(t, polite)
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if code, err := p.Wait(t.Context()); code != -1 || err != nil {
		t.Fatalf("exit code %d, %v, want -1", code, err)
	}
	if err := p.Signal(syscall.SIGCONT); err == nil {
		t.Fatal("a signal to a program that is gone was no error")
	}
}

func TestAProgramThatEndsAtOnceIsAnErrorThatShowsWhatItSaid(t *testing.T) {
	err := shell(t, `echo "there is no such disk" >&2; exit 3`).Start(t.Context())
	if err == nil || !strings.Contains(err.Error(), "there is no such disk") || !strings.Contains(err.Error(), "exit status 3") {
		t.Fatalf("the error is %v", err)
	}
}

func TestAProgramThatDoesNotGetReadyIsGoneWhenStartGivesUp(t *testing.T) {
	p := shell(t, `sleep 1000`)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := p.Start(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("the error is %v", err)
	}
	if pid := p.PID(); pid != 0 {
		t.Fatalf("process %d lives", pid)
	}
}
