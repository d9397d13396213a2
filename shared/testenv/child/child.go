// Package child runs a program as a child process that can be stopped, killed, paused and started again. The child
// dies with this process, even when this process is killed with SIGKILL. Its importers are localserver and the
// programs under scripts.
package child

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

const (
	readyTimeout = 60 * time.Second // a first start on a busy machine
	stopTimeout  = 60 * time.Second // a clean stop of MySQL flushes its whole buffer pool
	logTail      = 4 << 10
)

// Options are the options of a Process.
type Options struct {
	Name    string                                   // for errors
	Log     string                                   // the file to which the output is appended
	Command func() *exec.Cmd                         // makes the program for a start; if it sets Stdout, that output is not in Log
	Ready   func(ctx context.Context, pid int) error // nil when this very process answers; only Launch does without
}

// Process is one program over any number of stops and starts. Its methods may be called from several goroutines.
type Process struct {
	o Options

	mu  sync.Mutex
	run *run // the last start; nil before the first
}

// New makes a Process that has not been started.
func New(o Options) *Process { return &Process{o: o} }

// Start starts the program and returns when it answers. It does nothing when the program runs. After an error the program
// does not run; the error ends with its output.
func (p *Process) Start(ctx context.Context) error {
	if p.PID() != 0 {
		return nil
	}
	if err := p.Launch(); err != nil {
		return err
	}
	if err := p.AwaitReady(ctx); err != nil {
		return errors.Join(err, p.Kill())
	}
	return nil
}

// Launch starts the program and does not wait for it. It does nothing when the program runs.
func (p *Process) Launch() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.run.lives() {
		return nil
	}
	r, err := start(p.o.Command(), p.o.Log)
	if err != nil {
		return fmt.Errorf("start %s: %w", p.o.Name, err)
	}
	p.run = r
	return nil
}

// AwaitReady returns when the program answers, or an error when it ends or a minute has passed.
func (p *Process) AwaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	r := p.last()
	if r == nil {
		return fmt.Errorf("%s is not running", p.o.Name)
	}
	fail := func(err error) error {
		return fmt.Errorf("start %s: %w; the end of %s:\n%s", p.o.Name, err, p.o.Log, p.Log())
	}
	for {
		err := p.o.Ready(ctx, r.pid)
		if err == nil {
			return nil
		}
		select {
		case <-r.done:
			return fail(fmt.Errorf("it ended at once: %s", r.state))
		case <-ctx.Done():
			return fail(fmt.Errorf("%w; the last answer was: %w", ctx.Err(), err))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Stop ends the program with SIGTERM and waits for it: ExitCode has the result. It does nothing when the program is
// stopped, and resumes a paused one first. It kills a program that takes longer than a minute, and returns an error.
func (p *Process) Stop() error {
	r := p.last()
	if !r.lives() {
		return nil
	}
	_ = r.signal(syscall.SIGTERM) // these fail when it has just ended by itself
	_ = r.signal(syscall.SIGCONT)
	select {
	case <-r.done:
		return nil
	case <-time.After(stopTimeout):
		return errors.Join(p.Kill(), fmt.Errorf("%s did not stop within %s and was killed; the end of its log:\n%s",
			p.o.Name, stopTimeout, p.Log()))
	}
}

// Kill ends the program with SIGKILL, as a crash would, and waits until it is gone.
func (p *Process) Kill() error {
	r := p.last()
	if !r.lives() {
		return nil
	}
	err := r.signal(syscall.SIGKILL)
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	if err == nil {
		<-r.done
	}
	return err
}

// Pause stops the program with SIGSTOP: its connections stay open and nothing answers.
func (p *Process) Pause() error { return p.Signal(syscall.SIGSTOP) }

// Resume lets a paused program go on.
func (p *Process) Resume() error { return p.Signal(syscall.SIGCONT) }

// Signal sends a signal and does not wait. It is an error when the program does not run.
func (p *Process) Signal(sig os.Signal) error {
	r := p.last()
	if !r.lives() {
		return fmt.Errorf("%s is not running", p.o.Name)
	}
	return r.signal(sig)
}

// Wait returns when the program has ended, with its exit code, or -1 if a signal ended it. It also returns when ctx ends.
func (p *Process) Wait(ctx context.Context) (code int, err error) {
	r := p.last()
	if r == nil {
		return 0, fmt.Errorf("%s was never started", p.o.Name)
	}
	select {
	case <-r.done:
		return r.state.ExitCode(), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("wait for the end of %s: %w", p.o.Name, ctx.Err())
	}
}

// PID returns the process id of the running program, or 0 while it is stopped.
func (p *Process) PID() int {
	r := p.last()
	if !r.lives() {
		return 0
	}
	return r.pid
}

// LogFile is the file with all of the program's output.
func (p *Process) LogFile() string { return p.o.Log }

// Log returns the end of the program's output, at most 4 KiB.
func (p *Process) Log() string {
	b, err := os.ReadFile(p.o.Log)
	if err != nil {
		return err.Error()
	}
	if cut := len(b) - logTail; cut > 0 {
		b = b[cut:]
		b = b[bytes.IndexByte(b, '\n')+1:]
	}
	return string(b)
}

func (p *Process) last() *run {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.run
}

// run is one run of the program.
type run struct {
	pid    int
	signal func(os.Signal) error // safe after the end
	done   chan struct{}         // closed when the process is gone
	state  *os.ProcessState      // how it ended; read after done
}

func (r *run) lives() bool {
	if r == nil {
		return false
	}
	select {
	case <-r.done:
		return false
	default:
		return true
	}
}

// start starts cmd so that it dies with this process. Linux sends Pdeathsig when the thread that called fork ends
// (prctl(2), PR_SET_PDEATHSIG), and Go may end a thread at any time. So a goroutine locks its thread from the start to the
// end of the child.
func start(cmd *exec.Cmd, logPath string) (*run, error) {
	logFile, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer logFile.Close()
	cmd.Stderr = logFile
	if cmd.Stdout == nil {
		cmd.Stdout = logFile
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL, // a paused child would not react to any other
		Setpgid:   true,            // Ctrl-C in a terminal must reach only this process, which ends its children in its own order
	}
	r := &run{done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		r.pid, r.signal = cmd.Process.Pid, cmd.Process.Signal
		started <- nil
		_ = cmd.Wait() // ProcessState has the result
		r.state = cmd.ProcessState
		close(r.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return r, nil
}
