// Command embedded runs a small Redis and a small MySQL inside one process, on loopback, for the quickstart on a
// machine that has Go and no servers. When both answer it prints one line of JSON,
//
//	{"redis_url":"redis://127.0.0.1:40001/0","mysql_dsn":"tierflow:tierflow@tcp(127.0.0.1:40002)/tierflow","notice":"…"}
//
// and runs until SIGTERM or SIGINT, or until its standard input is closed. So it ends with the process that started
// it, however that one ends. It exits 0. A start that fails exits 1, a wrong flag 2.
//
// The servers are imitations (miniredis and go-mysql-server). Where they differ from the real ones in a way that
// Tierflow can see, this program corrects them; the services have no code for it. All data is in memory. A test with
// these servers proves nothing about the real ones.
//
// It is a module of its own, outside go.work, because the two servers have more dependencies than everything else
// together. Build it with GOWORK=off.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// lockWait is how long a statement waits for another connection's transaction before it fails with 1205.
const lockWait = 10 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout)
	var wrong usageError
	switch {
	case errors.Is(err, flag.ErrHelp):
	case errors.As(err, &wrong):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "embedded:", err)
		os.Exit(1)
	}
}

// usageError is a wrong flag, or a call for help. The flag package has already printed the message.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// ready is the line that tells the parent where the servers are.
type ready struct {
	RedisURL string `json:"redis_url"`
	MySQLDSN string `json:"mysql_dsn"`
	Notice   string `json:"notice"`
}

// run starts both servers, writes the ready line to stdout, and returns when ctx ends or stdin is closed.
func run(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	flags := flag.NewFlagSet("embedded", flag.ContinueOnError)
	redisAddr := flags.String("redis-listen", "127.0.0.1:0", "where Redis listens; port 0 takes a free one")
	mysqlAddr := flags.String("mysql-listen", "127.0.0.1:0", "where MySQL listens; port 0 takes a free one")
	if err := flags.Parse(args); err != nil {
		return usageError{err}
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "embedded: unknown arguments %q\n", flags.Args())
		flags.Usage()
		return usageError{errors.New("unknown arguments")}
	}

	redisURL, stopRedis, err := startRedis(*redisAddr)
	if err != nil {
		return fmt.Errorf("start Redis: %w", err)
	}
	defer stopRedis()
	mysqlDSN, stopMySQL, err := startMySQL(*mysqlAddr, lockWait)
	if err != nil {
		return fmt.Errorf("start MySQL: %w", err)
	}
	defer stopMySQL()

	line := ready{RedisURL: redisURL, MySQLDSN: mysqlDSN, Notice: "data is in memory and gone at the end"}
	if err := json.NewEncoder(stdout).Encode(line); err != nil {
		return err
	}

	closed := make(chan struct{})
	go func() {
		io.Copy(io.Discard, stdin) // it ends when the process that holds the other side ends
		close(closed)
	}()
	select {
	case <-ctx.Done():
	case <-closed:
	}
	return nil
}
