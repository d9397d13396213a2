// Command screenshot writes a picture of the dashboard, with sample items and moves in flight:
//
//	screenshot FILE
//
// ./scripts/screenshot builds it and starts it with the servers that TIERFLOW_TEST_REDIS_URL and
// TIERFLOW_TEST_MYSQL_DSN name.
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
	"golang.org/x/sync/errgroup"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/process"
)

func main() {
	const usage = "usage: screenshot FILE"
	switch {
	case len(os.Args) == 2 && (os.Args[1] == "-h" || os.Args[1] == "--help"):
		fmt.Println(usage)
		return
	case len(os.Args) != 2 || strings.HasPrefix(os.Args[1], "-"):
		fmt.Fprintf(os.Stderr, "screenshot: unknown arguments %q\n%s\n", os.Args[1:], usage)
		os.Exit(process.Settings)
	}
	redisURL, dsn := os.Getenv("TIERFLOW_TEST_REDIS_URL"), os.Getenv("TIERFLOW_TEST_MYSQL_DSN")
	os.Exit(process.Run(func(ctx context.Context) int {
		if err := take(ctx, os.Args[1], redisURL, dsn, os.Environ()); err != nil {
			fmt.Fprintln(os.Stderr, "screenshot:", err)
			return process.Failed
		}
		return process.OK
	}))
}

// take starts the stack, posts views until it has taken the picture, and stops the stack.
func take(ctx context.Context, file, redisURL, dsn string, environ []string) (err error) {
	dir, err := os.MkdirTemp("", "tierflow-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	gold, ok := stack.SecondFilesystem(dir, 256<<20)
	if !ok {
		return errors.New("moves are copies only between two file systems, and this machine has one")
	}
	defer os.RemoveAll(gold)

	root, err := stack.Root()
	if err != nil {
		return err
	}
	cache, err := stack.DefaultCache(ctx, root)
	if err != nil {
		return err
	}
	if err := stack.Build(ctx, stack.BuildOptions{Root: root, Cache: cache, Dir: dir}); err != nil {
		return err
	}
	if dsn, err = makeDatabase(ctx, dsn); err != nil {
		return err
	}
	s, err := stack.New(ctx, stack.Options{
		Programs: dir, Dir: dir, Environ: environ, RedisURL: redisURL, MySQLDSN: dsn, Relocators: 2,
		Tiers:    map[string]string{"gold": filepath.Join(gold, "gold")},
		Settings: map[string]string{"TIERFLOW_BANDWIDTH": "2MiB"}, // a copy lasts longer than the browser needs
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	samples := library()
	if err := s.Add(ctx, samples...); err != nil {
		return err
	}
	if err := s.Start(ctx); err != nil {
		return err
	}

	g, gctx := errgroup.WithContext(ctx)
	posting, stop := context.WithCancel(gctx)
	g.Go(func() error { return post(posting, s, samples) })
	g.Go(func() error {
		defer stop()
		return photograph(gctx, dir, "http://"+s.API.Addr, file)
	})
	return g.Wait()
}

// makeDatabase makes the stack's database, and returns its DSN.
func makeDatabase(ctx context.Context, dsn string) (string, error) {
	c, err := mysql.ParseDSN(dsn)
	if err != nil {
		return "", fmt.Errorf("TIERFLOW_TEST_MYSQL_DSN: %w", err)
	}
	db, err := sql.Open("mysql", dsn)
	if err != nil {
		return "", err
	}
	defer db.Close()
	c.DBName = "screenshot"
	_, err = db.ExecContext(ctx, "CREATE DATABASE screenshot")
	return c.FormatDSN(), err
}

// library has the items in the picture: small ones on the lower tiers, which move by rename, and large ones, whose copies
// to gold take long.
func library() (all []stack.Sample) {
	names := []string{"news/morning", "sport/final", "music/session", "films/harbour", "series/island", "talks/opening"}
	for n := range 24 {
		p := stack.Sample{ID: item.ID(n + 1), Filename: fmt.Sprintf("%s-%02d.mp4", names[n%len(names)], n/len(names)+1), Level: "bronze", Size: 40 << 10}
		if n%4 == 0 {
			p.Size = 20 << 20
		}
		switch n % 6 {
		case 1, 4:
			p.Level = "silver"
		case 3:
			p.Level = "gold"
		}
		all = append(all, p)
	}
	return all
}

// post posts views until ctx ends: large items become popular, counts of small ones rise and fall.
func post(ctx context.Context, s *stack.Stack, samples []stack.Sample) error {
	for turn := 0; ; turn++ {
		for n, p := range samples {
			count := item.Count(2000 + 137*n)
			if p.Size < 1<<20 {
				count = item.Count(200 + (n*389+turn*777)%1700)
			}
			err := s.Post(ctx, p.ID, count)
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				return err
			}
			select {
			case <-time.After(60 * time.Millisecond):
			case <-ctx.Done():
				return nil
			}
		}
	}
}

// photograph takes the picture a few seconds after it has opened the page, so that the page shows some events.
func photograph(ctx context.Context, dir, url, file string) error {
	file, err := filepath.Abs(file)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
		"--user-data-dir="+filepath.Join(dir, "browser"), "--window-size=1280,1000", "--virtual-time-budget=20000",
		"--screenshot="+file, url)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("chromium: %w\n%s", err, out)
	}
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	fmt.Printf("%s: %d KB\n", file, info.Size()>>10)
	return nil
}
