package localserver_test

import (
	"fmt"
	"net"
	"testing"

	"github.com/tierflow/tierflow/shared/testenv/localserver"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestAPortThatIsFoundFreeIsFreeAlthoughProcessesAreBeingStarted(t *testing.T) {
	testserver.StartProcesses(t)
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
