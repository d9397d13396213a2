package chaos_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/testenv/localserver"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// topology is the Redis of a world, behind gates, with the faults that it can have.
type topology interface {
	// url is the address of Redis for the service of this name, or for the test itself where the name is "".
	url(service string) string
	// gates are all gates through which services reach Redis.
	gates() []*testserver.Gate
	// flush empties Redis.
	flush(ctx context.Context) error
	// faults are the faults that only this topology has.
	faults() []fault
	// masters are those that answer, in any order, and servers are all.
	masters() []*localserver.Redis
	servers() []*localserver.Redis
	// heal starts everything again, and returns when everything runs.
	heal(ctx context.Context) error
}

// ofRequests judges only requests of clients, and lets the link from a replica to its master pass.
func ofRequests(judge func() testserver.Fate) func([]byte) testserver.Fate {
	return func(request []byte) testserver.Fate {
		if strings.Contains(string(request[:min(len(request), 64)]), "REPLCONF") || strings.Contains(string(request[:min(len(request), 64)]), "PSYNC") {
			return testserver.Pass
		}
		return judge()
	}
}

// single is one Redis that loses nothing that it has answered, and its replica. Each service has a gate of its own.
type single struct {
	w      *world
	redis  *localserver.Redis // the Redis that answers behind the gates
	other  *localserver.Redis // its replica
	front  *testserver.Gate   // the test's own way
	byName map[string]*testserver.Gate
}

func startSingle(ctx context.Context, w *world) *single {
	w.t.Helper()
	s := &single{w: w, byName: map[string]*testserver.Gate{}}
	for _, r := range []**localserver.Redis{&s.redis, &s.other} {
		one, err := localserver.StartRedis(ctx, localserver.Options{Dir: w.t.TempDir(), AppendFsync: "always", Binary: clocked()})
		w.must("start a Redis", err)
		w.t.Cleanup(func() { one.Close() })
		*r = one
	}
	w.must("replicate", s.replicate(ctx))
	return s
}

func (s *single) url(service string) string {
	g, url := testserver.RedisGate(s.w.t, s.redis.URL())
	if service == "" {
		s.front = g
	} else {
		s.byName[service] = g
	}
	return url
}

func (s *single) gates() (all []*testserver.Gate) {
	for _, g := range s.byName {
		all = append(all, g)
	}
	return all
}

func (s *single) flush(ctx context.Context) error { return s.w.Redis.FlushAll(ctx).Err() }

func (s *single) masters() []*localserver.Redis { return []*localserver.Redis{s.redis} }
func (s *single) servers() []*localserver.Redis { return []*localserver.Redis{s.redis, s.other} }

func (s *single) heal(ctx context.Context) error {
	return healEach(ctx, s.servers())
}

// healEach starts servers, and takes their limits away.
func healEach(ctx context.Context, servers []*localserver.Redis) error {
	for _, r := range servers {
		_ = r.Resume() // fails where it does not run
		err := r.Start(ctx)
		if err == nil {
			err = configure(ctx, r, "maxmemory", "0")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// on sends a command to one Redis, whether it is behind the gates or not.
func on[T any](r *localserver.Redis, ask func(*redis.Client) (T, error)) (T, error) {
	c := redis.NewClient(&redis.Options{Addr: r.Addr()})
	defer c.Close()
	return ask(c)
}

// replicate makes the other Redis the replica of the one that answers, and returns when it is up to date.
func (s *single) replicate(ctx context.Context) error {
	host, port, _ := strings.Cut(s.redis.Addr(), ":")
	for _, r := range []*localserver.Redis{s.redis, s.other} { // a replica gets its data at once
		if err := configure(ctx, r, "repl-diskless-sync-delay", "0"); err != nil {
			return err
		}
	}
	_, err := on(s.other, func(c *redis.Client) (string, error) { return c.ReplicaOf(ctx, host, port).Result() })
	if err != nil {
		return err
	}
	return eventually(ctx, func() error {
		info, err := on(s.other, func(c *redis.Client) (string, error) { return c.Info(ctx, "replication").Result() })
		if err == nil && !strings.Contains(info, "master_link_status:up") {
			err = errors.New(info)
		}
		return err
	})
}

func (s *single) faults() []fault {
	return append(killedAndPaused(func(*rand.Rand) *localserver.Redis { return s.redis }),
		fault{"a process is cut off from Redis", wires, false, func(_ context.Context, w *world, r *rand.Rand) error {
			v := w.anyService(r)
			w.note("cut %s off from Redis", v.Name)
			s.byName[v.Name].Close()
			last(r, 3*minIdle/2)
			s.byName[v.Name].Open()
			return nil
		}},
		fault{"Redis fails over to its replica", theRedis, true, func(ctx context.Context, w *world, _ *rand.Rand) error {
			w.note("fail over")
			if err := s.redis.Kill(); err != nil {
				return err
			}
			if _, err := on(s.other, func(c *redis.Client) (string, error) { return c.ReplicaOf(ctx, "NO", "ONE").Result() }); err != nil {
				return err
			}
			s.redis, s.other = s.other, s.redis
			for _, g := range append(s.gates(), s.front) {
				g.Redirect(s.redis.Addr())
			}
			if err := s.other.Start(ctx); err != nil {
				return err
			}
			return s.replicate(ctx)
		}})
}

// killedAndPaused are the faults of a server that comes back with everything that it has answered.
func killedAndPaused(which func(*rand.Rand) *localserver.Redis) []fault {
	return []fault{
		{"Redis is killed", theRedis, false, func(ctx context.Context, w *world, r *rand.Rand) error {
			server := which(r)
			w.note("kill Redis %s", server.Addr())
			if err := server.Kill(); err != nil {
				return err
			}
			last(r, time.Second)
			if err := server.Start(ctx); err != nil {
				return err
			}
			w.note("Redis is back")
			return nil
		}},
		{"Redis is paused", theRedis, false, func(_ context.Context, w *world, r *rand.Rand) error {
			server := which(r)
			w.note("pause Redis %s", server.Addr())
			if err := server.Pause(); err != nil {
				return err
			}
			last(r, 2*minIdle)
			return server.Resume()
		}},
	}
}

// cluster is six nodes that lose nothing that they have answered while the masters stay. Before each node there is a gate.
// The others know the node by its gate's address, so all clients and the node's replica go through the gate.
type cluster struct {
	w     *world
	nodes *localserver.RedisCluster
	front map[string]*testserver.Gate // by the node's address
}

func startCluster(ctx context.Context, w *world) *cluster {
	w.t.Helper()
	c := &cluster{w: w, front: map[string]*testserver.Gate{}}
	var err error
	c.nodes, err = localserver.StartRedisCluster(ctx, 3, localserver.Options{Dir: w.t.TempDir(), AppendFsync: "always", Binary: clocked(),
		Announce: func(addr string) (int, error) {
			g := testserver.NewGate(w.t, addr)
			c.front[addr] = g
			_, port, err := net.SplitHostPort(g.Addr())
			if err != nil {
				return 0, err
			}
			return strconv.Atoi(port)
		}})
	w.must("start a cluster", err)
	w.t.Cleanup(func() { c.nodes.Close() })
	return c
}

func (c *cluster) url(string) string {
	var hosts []string
	for _, g := range c.front {
		hosts = append(hosts, g.Addr())
	}
	return "redis+cluster://" + strings.Join(hosts, ",")
}

func (c *cluster) gates() (all []*testserver.Gate) {
	for _, g := range c.front {
		all = append(all, g)
	}
	return all
}

func (c *cluster) flush(ctx context.Context) error {
	for _, m := range c.nodes.Masters {
		if _, err := on(m, func(c *redis.Client) (string, error) { return c.FlushAll(ctx).Result() }); err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) masters() []*localserver.Redis { return slices.Clone(c.nodes.Masters) }
func (c *cluster) servers() []*localserver.Redis { return c.nodes.Nodes() }

func (c *cluster) heal(ctx context.Context) error {
	if err := healEach(ctx, c.servers()); err != nil {
		return err
	}
	return c.nodes.Wait(ctx)
}

func (c *cluster) anyMaster(r *rand.Rand) *localserver.Redis {
	return c.nodes.Masters[r.IntN(len(c.nodes.Masters))]
}

func (c *cluster) faults() []fault {
	return append(killedAndPaused(c.anyMaster),
		fault{"nobody reaches a master but the other nodes", wires, false, func(_ context.Context, w *world, r *rand.Rand) error {
			g := c.gates()[r.IntN(len(c.front))]
			w.note("close the gate %s", g.Addr())
			g.Close()
			last(r, 3*minIdle/2)
			g.Open()
			return nil
		}},
		fault{"a slot of views moves to another master", theRedis, false, func(ctx context.Context, w *world, r *rand.Rand) error {
			p := r.IntN(w.Keys.Partitions())
			slot, err := c.nodes.Slot(ctx, w.Keys.In(p).Views())
			if err != nil {
				return err
			}
			home, err := c.nodes.Owner(ctx, slot)
			if err != nil {
				return err
			}
			to := (home + 1 + r.IntN(len(c.nodes.Masters)-1)) % len(c.nodes.Masters)
			w.note("move slot %d, partition %d, from master %d to %d", slot, p, home, to)
			return c.nodes.MoveSlot(ctx, slot, to, func() { last(r, 200*time.Millisecond) })
		}},
		fault{"a master is killed, and the others vote its replica into its place", theRedis, true, func(ctx context.Context, w *world, r *rand.Rand) error {
			i := r.IntN(len(c.nodes.Masters))
			w.note("kill master %d, %s", i, c.nodes.Masters[i].Addr())
			if err := c.nodes.Failover(ctx, i); err != nil {
				return err
			}
			w.note("%s is master", c.nodes.Masters[i].Addr())
			if err := c.nodes.Replicas[i].Start(ctx); err != nil {
				return err
			}
			return c.nodes.Wait(ctx)
		}})
}

const (
	oneRedis = "one Redis"
	sixNodes = "six nodes"
)

var topologies = map[string]func(context.Context, *world) topology{
	oneRedis: func(ctx context.Context, w *world) topology { return startSingle(ctx, w) },
	sixNodes: func(ctx context.Context, w *world) topology { return startCluster(ctx, w) },
}

// partitionsOf has the number of partitions in a world of a topology.
var partitionsOf = map[string]int{oneRedis: 1, sixNodes: 8}
