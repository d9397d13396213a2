package state

import (
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"

	"github.com/tierflow/tierflow/shared/item"
)

// DefaultPrefix begins every key unless a setting says otherwise.
const DefaultPrefix = "tierflow:"

// Consumer groups; each belongs to one stream of every partition.
const (
	GroupRelocator = "relocator" // on Keys.Views
	GroupCommitter = "committer" // on Keys.Relocated
	GroupReleaser  = "releaser"  // on Keys.Committed
)

// Keys makes every key name; no other place does.
//
// Items are spread over partitions. All keys of an item lie in its partition. The keys of a partition share a hash tag and
// so a slot of Redis Cluster: every script touches one slot. With one partition there is no tag.
//
// Each partition has streams of its own: In or Of chooses the partition. With a single partition neither is needed.
type Keys struct {
	prefix string
	n      int    // partitions
	tag    string // hash tag of the chosen partition
	bound  bool   // a partition is chosen
}

// NewKeys makes the keys of a single partition. prefix begins every key.
func NewKeys(prefix string) Keys { return Keys{prefix: prefix, n: 1, bound: true} }

// Partitioned returns the keys of n partitions, 1 or more.
func (k Keys) Partitioned(n int) Keys { return Keys{prefix: k.prefix, n: n, bound: n == 1} }

// Partitions is the number of partitions.
func (k Keys) Partitions() int { return k.n }

// Partition is the partition of an item: the CRC-32 (IEEE) of the decimal digits of its cid, modulo the number of
// partitions. MySQL computes the same: CRC32(cid) MOD n. It must never change: no service would find the entries under way.
func (k Keys) Partition(id item.ID) int {
	if k.n == 1 {
		return 0
	}
	var digits [20]byte
	return int(crc32.ChecksumIEEE(strconv.AppendInt(digits[:0], int64(id), 10)) % uint32(k.n))
}

// In returns the keys of partition p.
func (k Keys) In(p int) Keys {
	if k.n == 1 {
		return k
	}
	return Keys{prefix: k.prefix, n: k.n, tag: "{" + PartitionName(p) + "}:", bound: true}
}

// Of returns the keys of an item's partition.
func (k Keys) Of(id item.ID) Keys { return k.In(k.Partition(id)) }

// Each returns the keys of every partition, in order.
func (k Keys) Each() []Keys {
	all := make([]Keys, k.n)
	for p := range all {
		all[p] = k.In(p)
	}
	return all
}

// OfStream returns the keys of the partition that a stream belongs to, and its number. ok is false where the stream is none
// of Tierflow's.
func (k Keys) OfStream(stream string) (keys Keys, p int, ok bool) {
	_, p, ok = k.StreamName(stream)
	if !ok {
		return Keys{}, 0, false
	}
	return k.In(p), p, true
}

// StreamName returns the name of one of Tierflow's streams, such as views, and the number of its partition.
func (k Keys) StreamName(stream string) (name string, p int, ok bool) {
	name, ours := strings.CutPrefix(stream, k.prefix)
	if !ours {
		return "", 0, false
	}
	if k.n > 1 {
		tag, rest, tagged := strings.Cut(name, ":")
		n, err := strconv.Atoi(strings.Trim(tag, "{p}"))
		if !tagged || err != nil || n < 0 || n >= k.n || tag != "{"+PartitionName(n)+"}" {
			return "", 0, false
		}
		name, p = rest, n
	}
	switch name {
	case "views", "relocated", "committed", "dead":
		return name, p, true
	}
	return "", 0, false
}

// PartitionName is the name of a partition in keys and for users: p07.
func PartitionName(p int) string { return fmt.Sprintf("p%02d", p) }

func (k Keys) stream(name string) string {
	if !k.bound {
		panic("state: a stream has no key without a partition: call In or Of first")
	}
	return k.prefix + k.tag + name
}

// Views is the stream of view events.
func (k Keys) Views() string { return k.stream("views") }

// Relocated is the stream of durable copies that wait for their commit.
func (k Keys) Relocated() string { return k.stream("relocated") }

// Committed is the stream of copies to release.
func (k Keys) Committed() string { return k.stream("committed") }

// Dead is the stream of dead letters.
func (k Keys) Dead() string { return k.stream("dead") }

// DeadIndex is a hash: the dead letter of each item, stage and, of later stages, level.
func (k Keys) DeadIndex() string { return k.stream("dead:index") }

// DeadReasons is a hash: the number of dead letters by stage and reason.
func (k Keys) DeadReasons() string { return k.stream("dead:reasons") }

// dead are the keys that every script takes that changes dead.
func (k Keys) dead() []string { return []string{k.Dead(), k.DeadIndex(), k.DeadReasons()} }

// Backoff is a sorted set: which pending entries of a group have failed, and when each is due.
func (k Keys) Backoff(group string) string { return k.stream("backoff:" + group) }

// Walker is the consumer of a group that looks for entries of dead ones. It expires.
func (k Keys) Walker(group string) string { return k.stream("walker:" + group) }

// State is an item's state, as JSON.
func (k Keys) State(id item.ID) string { return k.of("content:", id) }

// Lock is the lock of an item. Its value is the holder's Token.
func (k Keys) Lock(id item.ID) string { return k.of("lock:", id) }

// Progress is a hash with the bytes of an item's move in flight.
func (k Keys) Progress(id item.ID) string { return k.of("progress:", id) }

func (k Keys) of(name string, id item.ID) string {
	return k.prefix + k.Of(id).tag + name + id.String()
}

// Paused exists while relocations are paused, in all partitions.
func (k Keys) Paused() string { return k.prefix + "paused" }

// Holding is a hash: the relocators that begin no moves, and the pause that each has seen.
func (k Keys) Holding() string { return k.prefix + "holding" }

// Services is a hash: what each program reports of itself.
func (k Keys) Services() string { return k.prefix + "services" }

// Count records the number of partitions, which all services must share.
func (k Keys) Count() string { return k.prefix + "partitions" }

// Workers is a hash: the time of the last heartbeat of each worker of a group, and the tiers that it reaches.
func (k Keys) Workers(group string) string { return k.prefix + "workers:" + group }

// Waiting is a hash: what waits at a worker of a group. It is one for all partitions.
func (k Keys) Waiting(group, worker string) string {
	return k.prefix + "waiting:" + group + ":" + worker
}

// Unreachable is a hash: the sets of tiers that entries wait for and that no living relocator reaches.
func (k Keys) Unreachable() string { return k.prefix + "unreachable" }
