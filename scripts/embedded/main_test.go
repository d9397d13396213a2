package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// start runs the program and returns its ready line, what ends its standard input, and its end.
func start(t *testing.T, ctx context.Context, args ...string) (line ready, closeStdin func() error, ended <-chan error) {
	t.Helper()
	stdin, parent := io.Pipe()
	answers, stdout := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := run(ctx, args, stdin, stdout)
		stdout.CloseWithError(err)
		done <- err
	}()
	must(t, json.NewDecoder(answers).Decode(&line))
	return line, parent.Close, done
}

func ends(t *testing.T, ended <-chan error) {
	t.Helper()
	select {
	case err := <-ended:
		must(t, err)
	case <-time.After(5 * time.Second):
		t.Fatal("still running")
	}
}

func TestTheReadyLineNamesServersThatAnswer(t *testing.T) {
	line, closeStdin, ended := start(t, t.Context())
	options, err := redis.ParseURL(line.RedisURL)
	must(t, err)
	r := redis.NewClient(options)
	defer r.Close()
	must(t, r.Ping(t.Context()).Err())
	equal(t, "the database", value(t, open(t, line.MySQLDSN), "SELECT DATABASE()"), database)
	must(t, closeStdin())
	ends(t, ended)
}

func TestTheProgramEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	_, _, ended := start(t, ctx)
	cancel()
	ends(t, ended)
}

func TestAnAddressThatIsTakenIsAnError(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer taken.Close()
	for _, flag := range []string{"--redis-listen", "--mysql-listen"} {
		if err := run(t.Context(), []string{flag, taken.Addr().String()}, nil, io.Discard); err == nil {
			t.Errorf("%s: no error", flag)
		}
	}
	if err := run(t.Context(), []string{"--nonsense"}, nil, io.Discard); !errors.As(err, new(usageError)) {
		t.Errorf("a wrong flag: %v", err)
	}
}
