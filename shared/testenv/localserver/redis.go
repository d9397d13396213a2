package localserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// Redis is a private Redis with an append-only file and no snapshots.
type Redis struct{ *Server }

// FindRedis finds the machine's redis-server. The error says what to install.
func FindRedis() (string, error) {
	if path, ok := find("redis-server"); ok {
		return path, nil
	}
	return "", errors.New("found no redis-server: install Redis 7.0 or later " +
		"(Debian, Ubuntu: apt-get install redis-server; Fedora: dnf install redis)")
}

// StartRedis starts a server and returns when it answers.
func StartRedis(ctx context.Context, o Options) (*Redis, error) {
	binary := o.Binary
	if binary == "" {
		found, err := FindRedis()
		if err != nil {
			return nil, err
		}
		binary = found
	}
	fsync := o.AppendFsync
	if fsync == "" {
		fsync = "everysec"
	}
	s, err := newServer("redis", o)
	if err != nil {
		return nil, err
	}
	s.command = func() *exec.Cmd {
		cmd := exec.Command(binary, append([]string{"--bind", "127.0.0.1", "--port", strconv.Itoa(s.port), "--dir", s.dir,
			"--appendonly", "yes", "--appendfsync", fsync, "--save", ""}, o.Arguments...)...)
		cmd.Dir = s.dir
		return cmd
	}
	s.ready = func(ctx context.Context, pid int) error { return answersRedis(ctx, s.Addr(), pid) }
	if err := s.firstStart(ctx, o); err != nil {
		return nil, err
	}
	return &Redis{s}, nil
}

// answersRedis returns nil when the process is ready at the address. It does not use a client library, which would wait and
// log while no server listens.
func answersRedis(ctx context.Context, addr string, pid int) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("PING\r\nINFO server\r\nQUIT\r\n")); err != nil {
		return err
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		return err
	}
	ping, info, _ := strings.Cut(string(answer), "\r\n")
	switch {
	case ping != "+PONG":
		return errors.New(ping) // "-LOADING ..."
	case !strings.Contains(info, fmt.Sprintf("process_id:%d\r\n", pid)):
		return errors.New("somebody else's Redis answers")
	}
	return nil
}

// URL returns the URL of the server's database 0, redis://127.0.0.1:port/0.
func (r *Redis) URL() string { return "redis://" + r.Addr() + "/0" }
