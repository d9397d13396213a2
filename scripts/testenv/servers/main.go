// Command servers runs a command with private Redis and MySQL servers:
//
//	servers go test ./...
//
// It sets TIERFLOW_TEST_REDIS_URL and TIERFLOW_TEST_MYSQL_DSN for the command, prints both, and stops the servers
// when the command has ended. If one is set already, it stays as it is, and no server is started for it.
// TIERFLOW_TEST_MYSQLD picks the program of the MySQL server. The exit code is the command's.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/tierflow/tierflow/shared/process"
	"github.com/tierflow/tierflow/shared/testenv/localserver"
)

func main() {
	const usage = "usage: servers COMMAND [ARGUMENT...]"
	switch {
	case len(os.Args) == 2 && (os.Args[1] == "-h" || os.Args[1] == "--help"):
		fmt.Println(usage)
		return
	case len(os.Args) < 2 || strings.HasPrefix(os.Args[1], "-"):
		fmt.Fprintf(os.Stderr, "servers: unknown arguments %q\n%s\n", os.Args[1:], usage)
		os.Exit(process.Settings)
	}
	os.Exit(process.Run(func(ctx context.Context) int {
		code, err := run(ctx, os.Args[1:], os.Getenv, os.Environ())
		if err != nil {
			fmt.Fprintln(os.Stderr, "servers:", err)
			code = max(code, process.Failed)
		}
		return code
	}))
}

// run returns the command's exit code, or 0 if it could not start the command. When ctx ends, the command gets SIGINT.
func run(ctx context.Context, command []string, getenv func(string) string, environ []string) (code int, err error) {
	type server struct {
		variable string
		start    func() (value string, stop func() error, err error)
	}
	servers := []server{
		{"TIERFLOW_TEST_REDIS_URL", func() (string, func() error, error) {
			// With "no", only a crash of the machine loses data.
			s, err := localserver.StartRedis(ctx, localserver.Options{AppendFsync: "no"})
			if err != nil {
				return "", nil, err
			}
			return s.URL(), s.Close, nil
		}},
		{"TIERFLOW_TEST_MYSQL_DSN", func() (string, func() error, error) {
			s, err := localserver.StartMySQL(ctx, localserver.Options{Binary: getenv("TIERFLOW_TEST_MYSQLD")})
			if err != nil {
				return "", nil, err
			}
			return s.DSN(""), s.Close, nil
		}},
	}
	for _, s := range servers {
		value := getenv(s.variable)
		if value == "" {
			var stop func() error
			if value, stop, err = s.start(); err != nil {
				return 0, err
			}
			defer func() { err = errors.Join(err, stop()) }()
			environ = append(environ, s.variable+"="+value)
		}
		fmt.Fprintf(os.Stderr, "%s=%s\n", s.variable, value)
	}

	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = environ
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) } // go test passes it on to its tests
	cmd.WaitDelay = 30 * time.Second
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return process.Failed, nil // also if its exit code is 0, because it did not finish
	case errors.As(err, &exit):
		return exit.ExitCode(), nil
	}
	return 0, err
}
