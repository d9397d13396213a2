// Package namespace runs a test program in a mount namespace of its own. It is for tests only.
package namespace

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// inside is set in the process that has a namespace of its own.
const inside = "TIERFLOW_TEST_IN_NAMESPACE"

// Inside tells whether this process has a namespace of its own.
func Inside() bool { return os.Getenv(inside) != "" }

// Main runs the test program again in a namespace (Run) and exits with its code. There it calls run and returns nil.
func Main(run func()) error {
	if Inside() {
		run()
		return nil
	}
	code, err := Run(inside + "=1")
	if err == nil {
		os.Exit(code)
	}
	return err
}

// Run runs the test program again, with the same arguments, in a private mount namespace, and returns its exit code. env is one
// more variable of its environment: name=value. When that process ends, for whatever reason, the kernel removes its mounts
// and loop devices. The error says why there is no namespace: Linux gives one to root only.
func Run(env string) (code int, err error) {
	runtime.LockOSThread() // Pdeathsig kills the child when the thread that started it ends
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), env)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(1, exit.ExitCode()), nil
	}
	return 0, err
}
