package localserver_test

import (
	"fmt"
	"net"
	"os/exec"
	"sync"
	"testing"

	"github.com/tierflow/tierflow/shared/localserver"
)

// A child has copies of its parent's descriptors until it runs its own program: a listener that its parent closes in that
// time goes on listening.
func TestAPortThatIsFoundFreeIsFreeAlthoughProcessesAreBeingStarted(t *testing.T) {
	stop := make(chan struct{})
	var starters sync.WaitGroup
	for range 4 {
		starters.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					if err := exec.Command("/bin/true").Run(); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	defer starters.Wait()
	defer close(stop)
	for range 300 {
		port, err := localserver.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
	}
}
