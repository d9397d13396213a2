package powercut_test

import (
	"os"
	"os/exec"

	"github.com/tierflow/tierflow/shared/testenv/namespace"
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
	return namespace.Run("TIERFLOW_TEST_POWERCUT_DIR=" + dir)
}
