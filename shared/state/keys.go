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
// Contents are spread over partitions. All keys of a content lie in its partition, whose keys share a hash tag and
// thus a slot of Redis Cluster: every script touches one slot. With one partition there is no tag.
//
// The names of streams are those of a partition: In or Of says of which. Keys of one partition alone need not be asked.
type Keys struct {
	prefix string
	n      int    // partitions
	tag    string // of the partition whose streams are named
	bound  bool   // to a partition
}

// NewKeys takes the prefix of all keys. There is one partition.
func NewKeys(prefix string) Keys { return Keys{prefix: prefix, n: 1, bound: true} }

// Partitioned are the keys of so many partitions, 1 or more.
func (k Keys) Partitioned(n int) Keys { return Keys{prefix: k.prefix, n: n, bound: n == 1} }

// Partitions is their number.
func (k Keys) Partitions() int { return k.n }

// Partition is where a content's keys lie: the CRC-32 (IEEE) of its decimal digits modulo the number of partitions.
// MySQL computes the same: CRC32(cid) MOD n. It must never change: entries under way would be looked for elsewhere.
func (k Keys) Partition(id item.ID) int {
	if k.n == 1 {
		return 0
	}
	var digits [20]byte
	return int(crc32.ChecksumIEEE(strconv.AppendInt(digits[:0], int64(id), 10)) % uint32(k.n))
}

// In are the keys of partition p.
func (k Keys) In(p int) Keys {
	if k.n == 1 {
		return k
	}
	return Keys{prefix: k.prefix, n: k.n, tag: "{" + PartitionName(p) + "}:", bound: true}
}

// Of are the keys of a content's partition.
func (k Keys) Of(id item.ID) Keys { return k.In(k.Partition(id)) }

// Each are the keys of every partition, in order.
func (k Keys) Each() []Keys {
	all := make([]Keys, k.n)
	for p := range all {
		all[p] = k.In(p)
	}
	return all
}

// OfStream are the keys of the partition to which a stream belongs; ok is false where it is none of ours.
func (k Keys) OfStream(stream string) (keys Keys, p int, ok bool) {
	name, ours := strings.CutPrefix(stream, k.prefix)
	if !ours {
		return Keys{}, 0, false
	}
	if k.n > 1 {
		tag, rest, tagged := strings.Cut(name, ":")
		n, err := strconv.Atoi(strings.Trim(tag, "{p}"))
		if !tagged || err != nil || n < 0 || n >= k.n || tag != "{"+PartitionName(n)+"}" {
			return Keys{}, 0, false
		}
		name, p = rest, n
	}
	switch name {
	case "views", "relocated", "committed", "dead":
		return k.In(p), p, true
	}
	return Keys{}, 0, false
}

// PartitionName is how a partition is called in keys and to users: p07.
func PartitionName(p int) string { return fmt.Sprintf("p%02d", p) }

func (k Keys) stream(name string) string {
	if !k.bound {
		panic("state: the key of a stream was asked for without a partition")
	}
	return k.prefix + k.tag + name
}

// Views is the stream of view events.
func (k Keys) Views() string { return k.stream("views") }

// Relocated is the stream of durable copies that wait for their commit.
func (k Keys) Relocated() string { return k.stream("relocated") }

// Committed is the stream of copies to clear.
func (k Keys) Committed() string { return k.stream("committed") }

// Dead is the stream of what failed for good.
func (k Keys) Dead() string { return k.stream("dead") }

// Backoff says which pending entries of a group have failed, and when they are due.
func (k Keys) Backoff(group string) string { return k.stream("backoff:" + group) }

// Content is a content's state, JSON.
func (k Keys) Content(id item.ID) string { return k.of("content:", id) }

// Lock says who is at work on a content.
func (k Keys) Lock(id item.ID) string { return k.of("lock:", id) }

// Progress has the bytes of the move in flight.
func (k Keys) Progress(id item.ID) string { return k.of("progress:", id) }

func (k Keys) of(name string, id item.ID) string {
	return k.prefix + k.Of(id).tag + name + id.String()
}

// Paused is there while relocations are paused, of all partitions.
func (k Keys) Paused() string { return k.prefix + "paused" }

// Count records the number of partitions, on which all services must agree.
func (k Keys) Count() string { return k.prefix + "partitions" }

// Workers are the living workers of a group: when each was last heard of, and which tiers it reaches.
func (k Keys) Workers(group string) string { return k.prefix + "workers:" + group }

// Unreachable are the sets of tiers that no living relocator reaches, though entries wait for one.
func (k Keys) Unreachable() string { return k.prefix + "unreachable" }
