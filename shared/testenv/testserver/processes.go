package testserver

import (
	"context"
	"os/exec"
	"sync"
	"testing"
)

// StartProcesses starts processes, one after the other, until the test ends. A child has copies of its parent's
// descriptors until it runs its own program: a listener that its parent closes in that time goes on listening.
func StartProcesses(t *testing.T) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	var starters sync.WaitGroup
	for range 4 {
		starters.Go(func() {
			for ctx.Err() == nil {
				if err := exec.Command("/bin/true").Run(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	t.Cleanup(func() {
		stop()
		starters.Wait()
	})
}
