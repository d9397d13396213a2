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

// slots is the number of hash slots of a Redis Cluster.
const slots = 16384

// nodeTimeout, in milliseconds, is how long a node may be silent before the others consider it failed. voteTimeout
// replaces it during a failover.
const (
	nodeTimeout = "15000"
	voteTimeout = "2000"
)

// RedisCluster is a private Redis Cluster: masters, and one replica for each.
type RedisCluster struct {
	Masters, Replicas []*Redis // Replicas[i] replicates Masters[i]
}

// StartRedisCluster starts masters and as many replicas. It returns when all nodes know that every slot is served and that
// every replica follows its master. Each node has these Options; if they name a folder, each node has a folder in it. Nodes
// do not fail over by themselves, so a busy machine causes no failover: see Failover. While a master is away, the
// others serve their slots (cluster-require-full-coverage no).
func StartRedisCluster(ctx context.Context, masters int, o Options) (*RedisCluster, error) {
	c := &RedisCluster{}
	options := make([]Options, 2*masters)
	for i := range options {
		var err error
		if options[i], err = nodeOptions(i, o); err != nil {
			return nil, err
		}
	}
	nodes := make([]*Redis, len(options))
	errs := make([]error, len(options))
	var wg sync.WaitGroup
	for i, o := range options {
		wg.Go(func() { nodes[i], errs[i] = StartRedis(ctx, o) })
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

// nodeOptions returns the options of node i.
func nodeOptions(i int, o Options) (Options, error) {
	bus, err := FreePort() // the default, ten thousand above the other port, can be a port of an outgoing connection
	if err != nil {
		return o, err
	}
	if o.Dir != "" {
		o.Dir = filepath.Join(o.Dir, "node-"+strconv.Itoa(i+1))
	}
	o.Arguments = []string{"--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(bus), "--cluster-node-timeout", nodeTimeout,
		"--cluster-require-full-coverage", "no", "--cluster-replica-no-failover", "yes", "--repl-diskless-sync-delay", "0"}
	if o.Announce != nil {
		if o.Port, err = FreePort(); err != nil {
			return o, err
		}
		announced, err := o.Announce(fmt.Sprintf("127.0.0.1:%d", o.Port))
		if err != nil {
			return o, err
		}
		o.Arguments = append(o.Arguments, "--cluster-announce-port", strconv.Itoa(announced))
	}
	return o, nil
}

// Nodes returns all nodes, the masters first.
func (c *RedisCluster) Nodes() []*Redis {
	return append(append([]*Redis{}, c.Masters...), c.Replicas...)
}

// URL returns a URL that names all nodes.
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

// client returns a client that talks only to this node.
func (r *Redis) client() *redis.Client {
	return redis.NewClient(&redis.Options{Addr: r.Addr(), MaxRetries: -1})
}

// join joins the nodes to one cluster.
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
		// Nodes with equal epochs would first have to resolve the conflict.
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
		// A node can follow another only after it has heard of it.
		if err := until(ctx, func() error { return clients[r].ClusterReplicate(ctx, id).Err() }); err != nil {
			return fmt.Errorf("%s: replicate: %w", r.Addr(), err)
		}
	}
	return c.Wait(ctx)
}

// Wait returns when every node that runs finds every slot served, and every running replica is in step with its master.
func (c *RedisCluster) Wait(ctx context.Context) error {
	return c.eachRunning(ctx, func(node *redis.Client) error {
		info, err := node.ClusterInfo(ctx).Result()
		if err != nil {
			return err
		}
		if !strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, "cluster_slots_ok:16384") ||
			!strings.Contains(info, fmt.Sprintf("cluster_known_nodes:%d", len(c.Nodes()))) {
			return errors.New(info)
		}
		repl, err := node.Info(ctx, "replication").Result()
		if err == nil && strings.Contains(repl, "role:slave") && !strings.Contains(repl, "master_link_status:up") {
			err = errors.New(repl)
		}
		return err
	})
}

// CaughtUp returns when Replicas[i] has every write that its master has answered before the call.
func (c *RedisCluster) CaughtUp(ctx context.Context, i int) error {
	offset := func(node *Redis, field string) (int64, error) {
		client := node.client()
		defer client.Close()
		info, err := client.Info(ctx, "replication").Result()
		if err != nil {
			return 0, err
		}
		_, rest, _ := strings.Cut(info, field+":")
		text, _, _ := strings.Cut(rest, "\r\n")
		return strconv.ParseInt(text, 10, 64)
	}
	want, err := offset(c.Masters[i], "master_repl_offset")
	if err != nil {
		return err
	}
	return until(ctx, func() error {
		got, err := offset(c.Replicas[i], "slave_repl_offset")
		if err == nil && got < want {
			err = fmt.Errorf("the replica has come to %d of %d", got, want)
		}
		return err
	})
}

// Failover kills Masters[i]. It returns when the other masters have elected its replica and every running node knows. It
// exchanges the two in Masters and Replicas. The killed node follows the new master when it is started again. Replication
// is asynchronous: writes that the killed node had answered and not yet sent are lost.
func (c *RedisCluster) Failover(ctx context.Context, i int) (err error) {
	dead, heir := c.Masters[i], c.Replicas[i]
	if err := c.nodeTimeout(ctx, voteTimeout); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, c.nodeTimeout(context.WithoutCancel(ctx), nodeTimeout))
	}()
	client := heir.client()
	defer client.Close()
	for setting, during := range map[string][2]string{
		"cluster-replica-no-failover":     {"no", "yes"},
		"cluster-replica-validity-factor": {"0", "10"}, // 0: a replica may be elected however old its data is
	} {
		if err := client.ConfigSet(ctx, setting, during[0]).Err(); err != nil {
			return err
		}
		defer func() {
			err = errors.Join(err, client.ConfigSet(context.WithoutCancel(ctx), setting, during[1]).Err())
		}()
	}
	id, err := client.ClusterMyID(ctx).Result()
	if err != nil {
		return err
	}
	old := c.id(ctx, dead)
	if err := dead.Kill(); err != nil {
		return err
	}
	c.Masters[i], c.Replicas[i] = heir, dead
	return c.eachRunning(ctx, func(node *redis.Client) error {
		list, err := slotMap(ctx, node)
		if err != nil {
			return err
		}
		serves := false
		for _, s := range list {
			if s.Nodes[0].ID == old {
				return fmt.Errorf("slots from %d are still the dead one's", s.Start)
			}
			serves = serves || s.Nodes[0].ID == id
		}
		if !serves {
			return fmt.Errorf("%s serves no slot", heir.Addr())
		}
		return nil
	})
}

// eachRunning waits until every node that runs passes the check.
func (c *RedisCluster) eachRunning(ctx context.Context, check func(*redis.Client) error) error {
	for _, node := range c.Nodes() {
		if node.PID() == 0 {
			continue
		}
		client := node.client()
		err := until(ctx, func() error { return check(client) })
		client.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", node.Addr(), err)
		}
	}
	return nil
}

// Slot returns the hash slot of a key.
func (c *RedisCluster) Slot(ctx context.Context, key string) (int, error) {
	client := c.Masters[0].client()
	defer client.Close()
	n, err := client.ClusterKeySlot(ctx, key).Result()
	return int(n), err
}

// Owner returns the index of the master that has a slot.
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

// MoveSlot moves a slot, with its keys, to Masters[to], as resharding does. It calls during, which may be nil, while the
// slot is on both nodes: then they refuse or redirect commands for keys that they do not have. It waits until all nodes
// serve, and retries until ctx ends, because no node serves a slot whose move is incomplete.
func (c *RedisCluster) MoveSlot(ctx context.Context, slot, to int, during func()) error {
	if err := c.Wait(ctx); err != nil {
		return err
	}
	target := c.Masters[to].client()
	defer target.Close()
	list, err := slotMap(ctx, target)
	if err != nil {
		return err
	}
	sourceID := ""
	for _, s := range list {
		if s.Start <= slot && slot <= s.End {
			sourceID = s.Nodes[0].ID
		}
	}
	targetID, err := target.ClusterMyID(ctx).Result()
	if err != nil {
		return err
	}
	if sourceID == targetID {
		return nil
	}
	var source *redis.Client // at its own address, which may differ from the one that clients use
	var others []*redis.Client
	for i, m := range c.Masters {
		client := m.client()
		defer client.Close()
		if c.id(ctx, m) == sourceID {
			source = client
		} else if i != to {
			others = append(others, client)
		}
	}
	if source == nil {
		return fmt.Errorf("no master has slot %d", slot)
	}
	if err := target.Do(ctx, "CLUSTER", "SETSLOT", slot, "IMPORTING", sourceID).Err(); err != nil {
		return err
	}
	if err := source.Do(ctx, "CLUSTER", "SETSLOT", slot, "MIGRATING", targetID).Err(); err != nil {
		return err
	}
	if during != nil {
		during()
	}
	err = until(ctx, func() error {
		for {
			keys, err := source.ClusterGetKeysInSlot(ctx, slot, 100).Result()
			if err != nil || len(keys) == 0 {
				return err
			}
			args := []any{"MIGRATE", "127.0.0.1", c.Masters[to].port, "", 0, 10_000, "KEYS"}
			for _, k := range keys {
				args = append(args, k)
			}
			if err := source.Do(ctx, args...).Err(); err != nil {
				return err
			}
		}
	})
	if err != nil {
		return err
	}
	for _, node := range append([]*redis.Client{target, source}, others...) {
		if err := until(ctx, func() error { return node.Do(ctx, "CLUSTER", "SETSLOT", slot, "NODE", targetID).Err() }); err != nil {
			return err
		}
	}
	return nil
}

// Announce makes the cluster name another port for a node, such as that of a proxy in front of it. 0 restores the node's
// own port. Announce returns when all nodes name the new port.
func (c *RedisCluster) Announce(ctx context.Context, node *Redis, port int) (err error) {
	client := node.client()
	defer client.Close()
	if err := client.ConfigSet(ctx, "cluster-announce-port", strconv.Itoa(port)).Err(); err != nil {
		return err
	}
	if port == 0 {
		port = node.port
	}
	// A ping tells the other nodes. It comes after half the node timeout at the latest.
	if err := c.nodeTimeout(ctx, "1000"); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, c.nodeTimeout(context.WithoutCancel(ctx), nodeTimeout))
	}()
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
			return knownAt(list, id, fmt.Sprintf("127.0.0.1:%d", port))
		})
		other.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// knownAt checks that the list knows the node with this id at this address only.
func knownAt(list []redis.ClusterSlot, id, addr string) error {
	for _, s := range list {
		for _, n := range s.Nodes {
			if n.ID == id && n.Addr != addr {
				return fmt.Errorf("%s is still known as %s", id, n.Addr)
			}
		}
	}
	return nil
}

// nodeTimeout sets the node timeout of every running node.
func (c *RedisCluster) nodeTimeout(ctx context.Context, ms string) error {
	for _, n := range c.Nodes() {
		if n.PID() == 0 {
			continue
		}
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

// slotMap returns which nodes serve which slots, as a node reports it. The master of a slot comes first.
func slotMap(ctx context.Context, node *redis.Client) ([]redis.ClusterSlot, error) {
	//nolint:staticcheck // CLUSTER SHARDS, which replaces it, lists nodes by shard: who is a slot's master takes more code
	return node.ClusterSlots(ctx).Result()
}
