package stack

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/tierflow/tierflow/shared/testenv/child"
	"github.com/tierflow/tierflow/shared/testenv/localserver"
)

// Service is one process of a service. Start waits until it is ready, Launch does not; see child.Process.
type Service struct {
	*child.Process

	Name string // unique in its stack, such as relocator-2; also its TIERFLOW_WORKER_ID
	Addr string // host:port of its HTTP (health and metrics; for the api, all of its routes); the same over all starts

	// Settings are added to the stack's settings and override them. A change takes effect at the next start.
	Settings map[string]string
}

// service makes a service of the stack and does not start it. addr "" takes a free port.
func (s *Stack) service(program, name, addr string) (*Service, error) {
	if addr == "" {
		port, err := localserver.FreePort()
		if err != nil {
			return nil, err
		}
		addr = fmt.Sprintf("127.0.0.1:%d", port)
	}
	listen := "TIERFLOW_ADMIN_LISTEN"
	if program == API {
		listen = "TIERFLOW_LISTEN"
	}
	v := &Service{Name: name, Addr: addr, Settings: map[string]string{listen: addr, "TIERFLOW_WORKER_ID": name}}
	v.Process = child.New(child.Options{
		Name: name,
		Log:  filepath.Join(s.o.Dir, name+".log"),
		Command: func() *exec.Cmd {
			cmd := exec.Command(filepath.Join(s.o.Programs, program), "serve")
			cmd.Dir = s.o.Dir
			cmd.Env = slices.Concat(s.environment, assignments(v.Settings))
			return cmd
		},
		Ready: func(ctx context.Context, _ int) error { return v.ready(ctx) },
	})
	return v, nil
}

// Terminate stops the service as an operator does and returns its exit code.
func (v *Service) Terminate(ctx context.Context) (code int, err error) {
	if err := v.Stop(); err != nil {
		return 0, err
	}
	return v.Wait(ctx)
}

// ready returns nil when /readyz says that the service is ready.
func (v *Service) ready(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+v.Addr+"/readyz", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, body)
	}
	return nil
}
