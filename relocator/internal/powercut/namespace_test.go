package powercut_test

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// inNamespace runs this test program again, with the same arguments, in a private mount namespace, and returns its exit
// code.
func inNamespace() (int, error) {
	for _, tool := range []string{"mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "btrfs"} {
		if _, err := exec.LookPath(tool); err != nil {
			return 1, err
		}
	}
	dir, err := os.MkdirTemp("", "tierflow-powercut-")
	if err != nil {
		return 1, err
	}
	defer os.Remove(dir)
	runtime.LockOSThread() // Pdeathsig kills the child when the thread that started it ends
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), "TIERFLOW_TEST_POWERCUT_DIR="+dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(1, exit.ExitCode()), nil
	}
	return 0, err
}
