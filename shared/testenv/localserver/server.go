package localserver

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/tierflow/tierflow/shared/testenv/child"
)

const portAttempts = 5

// Server is the common part of Redis and MySQL: one child process with a port and a folder. Both stay the same over any
// number of stops and starts. Its methods may be called from several goroutines.
type Server struct {
	*child.Process
	dir     string
	madeDir bool
	port    int
	command func() *exec.Cmd                         // the process to run, without its output
	ready   func(ctx context.Context, pid int) error // nil when this very process answers
}

// newServer makes the folder and chooses the first port.
func newServer(name string, o Options) (*Server, error) {
	s := &Server{dir: o.Dir, port: o.Port}
	if s.dir == "" {
		dir, err := os.MkdirTemp("", "tierflow-"+name+"-")
		if err != nil {
			return nil, err
		}
		s.dir, s.madeDir = dir, true
	} else {
		dir, err := filepath.Abs(s.dir)
		if err != nil {
			return nil, err
		}
		s.dir = dir
		_, err = os.Lstat(dir)
		s.madeDir = errors.Is(err, os.ErrNotExist)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	s.Process = child.New(child.Options{
		Name: name, Log: filepath.Join(s.dir, name+".log"),
		Command: func() *exec.Cmd { return s.command() },
		Ready:   func(ctx context.Context, pid int) error { return s.ready(ctx, pid) },
	})
	if s.port == 0 {
		port, err := FreePort()
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
		s.port = port
	}
	return s, nil
}

// firstStart starts s. If another program has meanwhile taken the port that newServer chose, it chooses another.
func (s *Server) firstStart(ctx context.Context, o Options) error {
	for attempt := 1; ; attempt++ {
		err := s.Start(ctx)
		if err == nil {
			return nil
		}
		if o.Port == 0 && attempt < portAttempts && !portFree(s.port) {
			if port, perr := FreePort(); perr == nil {
				s.port = port
				continue
			}
		}
		return errors.Join(err, s.Close())
	}
}

// Addr returns the server's address, "127.0.0.1:port".
func (s *Server) Addr() string { return fmt.Sprintf("127.0.0.1:%d", s.port) }

// Dir returns the server's folder.
func (s *Server) Dir() string { return s.dir }

// Close stops the server, and removes its folder if the start made it. The folder of an earlier server stays. To keep the
// data of a server, call Stop instead.
func (s *Server) Close() error {
	err := s.Stop()
	if s.madeDir {
		err = errors.Join(err, os.RemoveAll(s.dir))
	}
	return err
}

// FreePort finds a port on 127.0.0.1 on which no program listens. It is below Linux' range for outgoing connections (from
// 32768 on). In that range, a client that dials a stopped server could get the same port as its own, and would be connected
// to itself.
//
// The port is reserved for this process until it ends: FreePort gives it to no other process. So a server or a proxy that
// is away for a while finds it free when it comes back.
func FreePort() (int, error) {
	for range 1000 {
		port := 20000 + rand.IntN(12000)
		if reserve(port) && portFree(port) {
			return port, nil
		}
	}
	return 0, errors.New("found no free port between 20000 and 32000 on 127.0.0.1")
}

var reserved struct {
	sync.Mutex
	by []net.PacketConn // never closed: they close when the process ends
}

// reserve takes the UDP port of the same number, which nothing here uses, as a sign to other processes.
func reserve(port int) bool {
	c, err := net.ListenPacket("udp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return false
	}
	reserved.Lock()
	defer reserved.Unlock()
	reserved.by = append(reserved.by, c)
	return true
}

// portFree tests a port by connecting to it. Listening on it could keep the port busy after the close: a child that is being
// started meanwhile has a copy of the listener until it runs its own program.
func portFree(port int) bool {
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err == nil {
		c.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}
