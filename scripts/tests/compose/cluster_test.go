package compose_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

var nodes = []string{"redis", "redis-2", "redis-3", "redis-4", "redis-5", "redis-6"}

// cluster changes the world to Redis Cluster as an operator does, until the test's end. It returns the changed world, which
// has its own items.
func (w *world) cluster(t *testing.T) *world {
	t.Helper()
	env := filepath.Join(w.clone, ".env")
	was := must[[]byte](t)(os.ReadFile(env))
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(w.logs())
		}
		must[string](t)(w.compose(append([]string{"rm", "--stop", "--force", "cluster"}, nodes...)...))
		ok(t, os.WriteFile(env, was, 0o600))
		w.scale(t, 1)
	})
	ok(t, os.WriteFile(env, []byte(strings.Replace(string(was), "STACK_REDIS=redis", "STACK_REDIS=cluster", 1)), 0o600))
	must[string](t)(w.command("./scripts/up"))
	on := *w
	var addresses []string
	for _, n := range nodes {
		addresses = append(addresses, w.address(t, n)+":6379")
	}
	on.Stack = must[*stack.Stack](t)(stack.Attach(stack.AttachOptions{
		API: w.listen, APIKey: must[string](t)(w.secret("api-key-admin")), MySQLDSN: w.dsn, Local: w.local, Partitions: 16,
		RedisURL: fmt.Sprintf("redis+cluster://operator:%s@%s", must[string](t)(w.secret("redis-operator")), strings.Join(addresses, ",")),
	}))
	t.Cleanup(func() { ok(t, on.Close()) })
	return &on
}

// address returns a service's address in the network of the servers. This machine reaches it, because it is the network's
// gateway.
func (w *world) address(t *testing.T, service string) string {
	t.Helper()
	return w.inspect(t, w.containers(t, service)[0], fmt.Sprintf("{{(index .NetworkSettings.Networks %q).IPAddress}}", w.project+"_back"))
}

// failing is how CLUSTER NODES flags a node that is dead or may be dead.
var failing = regexp.MustCompile(`fail[?, ]`)

// waitCluster waits until every node says that every slot is served, and every replica follows its master.
func (w *world) waitCluster(t *testing.T) {
	t.Helper()
	testserver.Eventually(t, "the cluster is well", patience, func() error {
		for _, n := range nodes {
			out, err := w.compose("exec", "-T", n, "sh", "-c",
				"/etc/tierflow/redis-cli CLUSTER INFO; /etc/tierflow/redis-cli INFO replication; /etc/tierflow/redis-cli CLUSTER NODES")
			if err != nil {
				return err
			}
			if !strings.Contains(out, "cluster_state:ok") || strings.Contains(out, "master_link_status:down") || failing.MatchString(out) {
				return fmt.Errorf("%s: %s", n, out)
			}
		}
		return nil
	})
}

func TestRedisClusterIsOneLineAndGoesOnWhenAMasterDiesAndWhenAllNodesHaveNewAddresses(t *testing.T) {
	w.begin(t)
	on := w.cluster(t)
	defer func() { w.next = on.next }()
	on.checkHardened(t, "redis-6", "cluster")
	ids := on.add(t, "bronze", 40, sampleSize)
	partitions := map[int]bool{}
	for _, id := range ids {
		partitions[on.Keys.Partition(id)] = true
	}
	if len(partitions) < 10 {
		t.Fatalf("the items are in only %d partitions", len(partitions))
	}
	move := func(count item.Count) {
		t.Helper()
		for _, id := range ids {
			testserver.Eventually(t, "a view is accepted", patience, func() error { return on.Post(t.Context(), id, count) })
		}
		on.checkSettled(t)
	}
	move(1500)

	master := func(name string) bool {
		out := must[string](t)(w.compose("exec", "-T", name, "/etc/tierflow/redis-cli", "ROLE"))
		return strings.HasPrefix(out, "master")
	}
	at := slices.IndexFunc(nodes[1:], master)
	if at < 0 {
		t.Fatal("no other node than the first is a master")
	}
	dead := nodes[1+at]
	must[string](t)(w.command("docker", "kill", w.containers(t, dead)[0]))
	move(2500) // its replica is promoted
	must[string](t)(w.compose("up", "--detach", "--wait", "--no-build"))
	w.waitCluster(t)
	if master(dead) {
		t.Errorf("%s came back as a master", dead)
	}

	before := map[string]string{}
	for _, n := range nodes {
		before[n] = w.address(t, n)
	}
	must[string](t)(w.compose(append([]string{"stop"}, nodes...)...))
	// The node with the highest address starts first and gets a lower one. So of two nodes, at most one gets its own
	// address again.
	order := slices.Clone(nodes)
	slices.SortFunc(order, func(a, b string) int { return netip.MustParseAddr(before[b]).Compare(netip.MustParseAddr(before[a])) })
	changed := 0
	for _, n := range order {
		must[string](t)(w.compose("start", n))
		if now := w.address(t, n); now != before[n] {
			changed++
		}
	}
	if changed < 3 {
		t.Fatalf("only %d nodes have a new address", changed)
	}
	w.waitCluster(t)
	move(10)
	w.waitHealthy(t)

	for _, n := range nodes { // as in world.refusals
		if out := must[string](t)(w.compose("exec", "-T", n, "/etc/tierflow/redis-cli", "ACL", "LOG")); out != "" {
			t.Errorf("%s refused the services: %s", n, out)
		}
	}
}

func TestTheProfileClusterAloneSaysWhatIsMissing(t *testing.T) {
	w.begin(t)
	t.Cleanup(func() {
		must[string](t)(w.compose(append([]string{"--profile", "cluster", "rm", "--stop", "--force", "cluster"}, nodes[1:]...)...))
	})
	_, err := w.compose("--profile", "cluster", "up", "--detach", "--wait", "cluster")
	if err == nil {
		t.Fatal("there was no error")
	}
	out := must[string](t)(w.compose("--profile", "cluster", "logs", "--no-color", "cluster"))
	if !strings.Contains(out, "write STACK_REDIS=cluster into .env and run ./scripts/up") {
		t.Error(out)
	}
}
