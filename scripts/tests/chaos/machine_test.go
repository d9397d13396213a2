package chaos_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/shared/testenv/namespace"
)

// withOwnMounts calls run in a private mount namespace. Where this is not permitted, the tests run here, without the faults of
// disks.
func withOwnMounts(run func()) {
	if !namespace.Inside() {
		thawLeftovers()
	}
	if err := namespace.Main(run); err != nil {
		run()
	}
}

// thawLeftovers thaws the disks of test programs that were killed together with the process that would have thawed them.
// Such a disk keeps its loop device although nothing mounts it.
func thawLeftovers() {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, file := range files {
		name, err := os.ReadFile(file)
		if err != nil {
			continue // the device is gone
		}
		var pid int
		_, rest, ours := strings.Cut(filepath.Base(string(name)), diskPrefix)
		if _, err := fmt.Sscanf(rest, "%d-", &pid); !ours || err != nil || syscall.Kill(pid, 0) == nil {
			continue
		}
		device := "/dev/" + filepath.Base(filepath.Dir(filepath.Dir(file)))
		at, err := os.MkdirTemp("", diskPrefix)
		if err == nil {
			if err = exec.Command("mount", device, at).Run(); err == nil {
				err = errors.Join(exec.Command("fsfreeze", "-u", at).Run(), unix.Unmount(at, 0))
			}
			err = errors.Join(err, os.Remove(at))
		}
		fmt.Fprintf(os.Stderr, "thaw %s, which a killed test has left: %v\n", device, err)
	}
}

var leftOut sync.Map

// leaveOut says once what this machine cannot do.
func leaveOut(what string) {
	kind, _, _ := strings.Cut(what, ":")
	if _, said := leftOut.LoadOrStore(kind, true); !said {
		fmt.Fprintf(os.Stderr, "\n!!! this machine cannot make %s\n\n", what)
	}
}
