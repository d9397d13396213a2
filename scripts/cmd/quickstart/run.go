package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/state"
)

const (
	webAddress = "127.0.0.1:5000" // the api's default; if it is taken, the quickstart uses a free port
	grace      = "1s"
	goodbye    = time.Minute // the time limit for stopping and removing everything
)

// quickstart is one run.
type quickstart struct {
	arguments
	began   time.Time
	environ []string
	out     screen

	root, cache string
	dir         string // everything on disk, except for one tier
	tiers       map[string]string
	otherFS     bool   // gold is on another file system
	prefix      string // of the keys in Redis
	redis       *server
	mysql       *server
	stack       *stack.Stack
}

// run does everything in order, and undoes it in reverse:
//
//	folder ─▶ build ∥ Redis ∥ MySQL ─▶ tiers, schema ─▶ services ─▶ items ─▶ tour ─▶ check (--once)
//	                                                                             └─▶ show moves until Ctrl-C
func (q *quickstart) run(ctx context.Context) (err error) {
	q.prefix = state.DefaultPrefix
	if q.root, err = stack.Root(); err != nil {
		return err
	}
	if q.cache, err = stack.DefaultCache(ctx, q.root); err != nil {
		return err
	}
	if q.dir, err = os.MkdirTemp("", "tierflow-"); err != nil {
		return err
	}
	// The removal has a context of its own, so that it goes on after ctx has ended.
	end, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var undo []func() error
	defer func() {
		time.AfterFunc(goodbye, cancel)
		for i := len(undo) - 1; i >= 0; i-- {
			err = errors.Join(err, undo[i]())
		}
	}()
	undo = append(undo, func() error { return os.RemoveAll(q.dir) })

	q.out.heading("Tierflow quickstart")
	if err := q.prepare(ctx); err != nil {
		for _, s := range []*server{q.redis, q.mysql} {
			if s != nil {
				err = errors.Join(err, s.release(end))
			}
		}
		return err
	}
	undo = append(undo, func() error { return q.redis.release(end) }, func() error { return q.mysql.release(end) })

	if folder, ok := stack.SecondFilesystem(q.dir, 64<<20); ok {
		undo = append(undo, func() error { return os.RemoveAll(folder) })
		q.tiers = map[string]string{"gold": filepath.Join(folder, "gold")}
		q.otherFS = true
	}
	q.stack, err = stack.New(ctx, stack.Options{
		Programs: q.dir, Dir: q.dir, Environ: q.environ, Tiers: q.tiers,
		RedisURL: q.redis.address, RedisPrefix: q.prefix, MySQLDSN: q.mysql.address,
		APIListen: freeWebAddress(), Settings: map[string]string{"TIERFLOW_RELEASE_GRACE": grace},
	})
	if err != nil {
		return err
	}
	undo = append(undo, q.stack.Close)
	if err := q.tour(ctx); err != nil {
		if ctx.Err() == nil {
			err = fmt.Errorf("%w\n%s", err, q.stack.Logs())
		}
		return err
	}
	return nil
}

// prepare builds the services and finds or starts the servers, all at once.
func (q *quickstart) prepare(ctx context.Context) error {
	q.out.line("building", "api, relocator, committer (the first time takes a minute or two)")
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return stack.Build(gctx, stack.BuildOptions{Root: q.root, Cache: q.cache, Dir: q.dir})
	})
	var noRedis, noMySQL string
	servers, sctx := errgroup.WithContext(gctx)
	servers.Go(func() (err error) { q.redis, noRedis, err = q.startRedis(sctx); return err })
	servers.Go(func() (err error) { q.mysql, noMySQL, err = q.startMySQL(sctx); return err })
	g.Go(func() error {
		if err := servers.Wait(); err != nil || q.redis != nil && q.mysql != nil {
			return err
		}
		redis, mysql, err := q.startEmbedded(gctx)
		if err != nil {
			return err
		}
		if q.redis == nil {
			redis.note = noRedis
			q.redis = redis
		}
		if q.mysql == nil {
			mysql.note = noMySQL
			q.mysql = mysql
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return err
	}
	for _, s := range []struct {
		name string
		*server
	}{{"redis", q.redis}, {"mysql", q.mysql}} {
		q.out.line(s.name, "%s", s.about)
		if s.note != "" {
			q.out.line("", "%s", s.note)
		}
	}
	return nil
}

// freeWebAddress returns the api's usual address, or "" if another program listens there.
func freeWebAddress() string {
	l, err := net.Listen("tcp", webAddress)
	if err != nil {
		return ""
	}
	l.Close()
	return webAddress
}
