package localserver

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// slots is how many hash slots a Redis Cluster has.
const slots = 16384

// nodeTimeout, in milliseconds, is how long a node may be silent before the others hold it for dead.
const nodeTimeout = "15000"

// RedisCluster is a private Redis Cluster: masters, and one replica for each.
type RedisCluster struct {
	Masters, Replicas []*Redis // Replicas[i] is Masters[i]'s, until one is promoted
}

// StartRedisCluster starts masters and as many replicas, and returns when all of them know that every slot is served
// and every replica follows its master. Options are those of each node; where a folder is given, each has one in it.
// Nodes fail over by themselves only after a quarter of a minute, so that none does because the machine is busy: see
// Promote.
func StartRedisCluster(ctx context.Context, masters int, o Options) (*RedisCluster, error) {
	c := &RedisCluster{}
	nodes := make([]*Redis, 2*masters)
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i := range nodes {
		wg.Go(func() { nodes[i], errs[i] = startNode(ctx, i, o) })
	}
	wg.Wait()
	for i, n := range nodes {
		if n == nil {
			continue
		}
		if i < masters {
			c.Masters = append(c.Masters, n)
		} else {
			c.Replicas = append(c.Replicas, n)
		}
	}
	err := errors.Join(errs...)
	if err == nil {
		err = c.join(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func startNode(ctx context.Context, i int, o Options) (*Redis, error) {
	bus, err := FreePort() // the default, ten thousand above the other, lies among the ports of outgoing connections
	if err != nil {
		return nil, err
	}
	if o.Dir != "" {
		o.Dir = filepath.Join(o.Dir, "node-"+strconv.Itoa(i+1))
	}
	o.arguments = []string{"--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(bus), "--cluster-node-timeout", nodeTimeout,
		"--repl-diskless-sync-delay", "0"}
	return StartRedis(ctx, o)
}

// Nodes are all of them, the masters first.
func (c *RedisCluster) Nodes() []*Redis {
	return append(append([]*Redis{}, c.Masters...), c.Replicas...)
}

// URL names all nodes.
func (c *RedisCluster) URL() string {
	var hosts []string
	for _, n := range c.Nodes() {
		hosts = append(hosts, n.Addr())
	}
	return "redis+cluster://" + strings.Join(hosts, ",")
}

// Close stops all nodes and removes the folders that were made for them.
func (c *RedisCluster) Close() error {
	var errs []error
	for _, n := range c.Nodes() {
		errs = append(errs, n.Close())
	}
	return errors.Join(errs...)
}

// client talks to this node alone.
func (r *Redis) client() *redis.Client {
	return redis.NewClient(&redis.Options{Addr: r.Addr(), MaxRetries: -1})
}

// join makes one cluster of the nodes.
func (c *RedisCluster) join(ctx context.Context) error {
	clients := map[*Redis]*redis.Client{}
	for _, n := range c.Nodes() {
		clients[n] = n.client()
		defer clients[n].Close()
	}
	n := len(c.Masters)
	for i, m := range c.Masters {
		if err := clients[m].ClusterAddSlotsRange(ctx, slots*i/n, slots*(i+1)/n-1).Err(); err != nil {
			return fmt.Errorf("%s: add slots: %w", m.Addr(), err)
		}
		// Nodes that begin with the same epoch would have to settle who is first.
		if err := clients[m].Do(ctx, "CLUSTER", "SET-CONFIG-EPOCH", i+1).Err(); err != nil {
			return fmt.Errorf("%s: %w", m.Addr(), err)
		}
	}
	first := c.Masters[0]
	for _, other := range c.Nodes()[1:] {
		bus, err := clients[other].ConfigGet(ctx, "cluster-port").Result()
		if err == nil {
			err = clients[first].Do(ctx, "CLUSTER", "MEET", "127.0.0.1", other.port, bus["cluster-port"]).Err()
		}
		if err != nil {
			return fmt.Errorf("%s: meet: %w", other.Addr(), err)
		}
	}
	for i, r := range c.Replicas {
		id, err := clients[c.Masters[i]].ClusterMyID(ctx).Result()
		if err != nil {
			return err
		}
		// A node can follow another only once it has heard of it.
		if err := until(ctx, func() error { return clients[r].ClusterReplicate(ctx, id).Err() }); err != nil {
			return fmt.Errorf("%s: replicate: %w", r.Addr(), err)
		}
	}
	return c.Wait(ctx)
}

// Wait returns when every node that runs finds every slot served, and every running replica is in step with its master.
func (c *RedisCluster) Wait(ctx context.Context) error {
	for _, node := range c.Nodes() {
		if node.PID() == 0 {
			continue
		}
		client := node.client()
		err := until(ctx, func() error {
			info, err := client.ClusterInfo(ctx).Result()
			if err != nil {
				return err
			}
			if !strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, fmt.Sprintf("cluster_known_nodes:%d", len(c.Nodes()))) {
				return errors.New(info)
			}
			repl, err := client.Info(ctx, "replication").Result()
			if err == nil && strings.Contains(repl, "role:slave") && !strings.Contains(repl, "master_link_status:up") {
				err = errors.New(repl)
			}
			return err
		})
		client.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", node.Addr(), err)
		}
	}
	return nil
}

// Promote makes the replica of Masters[i], which need not run any more, the master of its slots, and exchanges the two.
// It returns when every running node knows.
func (c *RedisCluster) Promote(ctx context.Context, i int) error {
	client := c.Replicas[i].client()
	defer client.Close()
	id, err := client.ClusterMyID(ctx).Result()
	if err != nil {
		return err
	}
	if err := client.Do(ctx, "CLUSTER", "FAILOVER", "TAKEOVER").Err(); err != nil {
		return err
	}
	c.Masters[i], c.Replicas[i] = c.Replicas[i], c.Masters[i]
	for _, node := range c.Nodes() {
		if node.PID() == 0 {
			continue
		}
		other := node.client()
		err := until(ctx, func() error {
			list, err := slotMap(ctx, other)
			if err != nil {
				return err
			}
			for _, s := range list {
				if s.Start == slots*i/len(c.Masters) && s.Nodes[0].ID != id {
					return fmt.Errorf("slots from %d are served by %s", s.Start, s.Nodes[0].Addr)
				}
			}
			return nil
		})
		other.Close()
		if err != nil {
			return fmt.Errorf("%s does not know of the promoted replica: %w", node.Addr(), err)
		}
	}
	return nil
}

// Slot is the hash slot of a key.
func (c *RedisCluster) Slot(ctx context.Context, key string) (int, error) {
	client := c.Masters[0].client()
	defer client.Close()
	n, err := client.ClusterKeySlot(ctx, key).Result()
	return int(n), err
}

// Owner is the index of the master that has a slot.
func (c *RedisCluster) Owner(ctx context.Context, slot int) (int, error) {
	client := c.Masters[0].client()
	defer client.Close()
	list, err := slotMap(ctx, client)
	if err != nil {
		return 0, err
	}
	for _, s := range list {
		for i, m := range c.Masters {
			if s.Start <= slot && slot <= s.End && s.Nodes[0].ID == c.id(ctx, m) {
				return i, nil
			}
		}
	}
	return 0, fmt.Errorf("nobody has slot %d", slot)
}

func (c *RedisCluster) id(ctx context.Context, r *Redis) string {
	client := r.client()
	defer client.Close()
	return client.ClusterMyID(ctx).Val()
}

// MoveSlot gives a slot, with its keys, to Masters[to], as resharding does. during, which may be nil, is called while
// the slot belongs to both: keys that are not there yet are refused or sent on.
func (c *RedisCluster) MoveSlot(ctx context.Context, slot, to int, during func()) error {
	target := c.Masters[to].client()
	defer target.Close()
	list, err := slotMap(ctx, target)
	if err != nil {
		return err
	}
	sourceID, sourceAddr := "", ""
	for _, s := range list {
		if s.Start <= slot && slot <= s.End {
			sourceID, sourceAddr = s.Nodes[0].ID, s.Nodes[0].Addr
		}
	}
	targetID, err := target.ClusterMyID(ctx).Result()
	if err != nil {
		return err
	}
	if sourceID == targetID {
		return nil
	}
	source := redis.NewClient(&redis.Options{Addr: sourceAddr, MaxRetries: -1})
	defer source.Close()
	if err := target.Do(ctx, "CLUSTER", "SETSLOT", slot, "IMPORTING", sourceID).Err(); err != nil {
		return err
	}
	if err := source.Do(ctx, "CLUSTER", "SETSLOT", slot, "MIGRATING", targetID).Err(); err != nil {
		return err
	}
	if during != nil {
		during()
	}
	for {
		keys, err := source.ClusterGetKeysInSlot(ctx, slot, 100).Result()
		if err != nil {
			return err
		}
		if len(keys) == 0 {
			break
		}
		args := []any{"MIGRATE", "127.0.0.1", c.Masters[to].port, "", 0, 10_000, "KEYS"}
		for _, k := range keys {
			args = append(args, k)
		}
		if err := source.Do(ctx, args...).Err(); err != nil {
			return err
		}
	}
	for _, node := range append([]*redis.Client{target, source}, c.others(sourceAddr, to)...) {
		err := node.Do(ctx, "CLUSTER", "SETSLOT", slot, "NODE", targetID).Err()
		if node != target && node != source {
			node.Close()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// others are clients of the masters that a slot's move does not concern.
func (c *RedisCluster) others(sourceAddr string, to int) (clients []*redis.Client) {
	for i, m := range c.Masters {
		if i != to && m.Addr() != sourceAddr {
			clients = append(clients, m.client())
		}
	}
	return clients
}

// Announce makes a node known to clients by another port, such as that of a proxy in front of it; 0 is its own again. It
// returns when all nodes say so.
func (c *RedisCluster) Announce(ctx context.Context, node *Redis, port int) (err error) {
	client := node.client()
	defer client.Close()
	if err := client.ConfigSet(ctx, "cluster-announce-port", strconv.Itoa(port)).Err(); err != nil {
		return err
	}
	if port == 0 {
		port = node.port
	}
	// Nodes hear of it with a ping, which comes at the latest after half the node timeout.
	if err := c.nodeTimeout(ctx, "1000"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.nodeTimeout(context.WithoutCancel(ctx), nodeTimeout)) }()
	id, err := client.ClusterMyID(ctx).Result()
	if err != nil {
		return err
	}
	for _, n := range c.Nodes() {
		other := n.client()
		err := until(ctx, func() error {
			list, err := slotMap(ctx, other)
			if err != nil {
				return err
			}
			for _, s := range list {
				for _, n := range s.Nodes {
					if n.ID == id && n.Addr != fmt.Sprintf("127.0.0.1:%d", port) {
						return fmt.Errorf("%s is still known as %s", node.Addr(), n.Addr)
					}
				}
			}
			return nil
		})
		other.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *RedisCluster) nodeTimeout(ctx context.Context, ms string) error {
	for _, n := range c.Nodes() {
		client := n.client()
		err := client.ConfigSet(ctx, "cluster-node-timeout", ms).Err()
		client.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// until calls check until it returns nil, or until ctx ends: then it returns check's last error.
func until(ctx context.Context, check func() error) error {
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// slotMap is what a node says of who serves which slots, each master first.
func slotMap(ctx context.Context, node *redis.Client) ([]redis.ClusterSlot, error) {
	//nolint:staticcheck // CLUSTER SHARDS, which replaces it, lists nodes by shard: who is a slot's master takes more code
	return node.ClusterSlots(ctx).Result()
}
