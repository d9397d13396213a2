package live

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
)

// Ref names an entry of one kind of stream over all partitions. The zero Ref is before them all. Refs are in the order
// of entry ids, and of partitions where two ids are the same.
type Ref struct {
	Partition int
	ID        string
}

// Text is how a Ref is shown: the entry's id, with its partition in front where there are several, p07:1732318370000-0.
func (r Ref) Text(k state.Keys) string {
	if k.Partitions() == 1 {
		return r.ID
	}
	return state.PartitionName(r.Partition) + ":" + r.ID
}

// ParseRef reads what Text writes.
func ParseRef(k state.Keys, s string) (Ref, error) {
	bad := func() (Ref, error) {
		example := Ref{ID: "1732318370000-0"}.Text(k)
		return Ref{}, fault.New(fault.Malformed, "", "", fmt.Errorf("%q is not the id of an entry, such as %s", s, example))
	}
	r := Ref{ID: s}
	if k.Partitions() > 1 {
		name, id, found := strings.Cut(s, ":")
		p, err := strconv.Atoi(strings.TrimPrefix(name, "p"))
		if !found || err != nil || p < 0 || p >= k.Partitions() || name != state.PartitionName(p) {
			return bad()
		}
		r = Ref{p, id}
	}
	if !ValidID(r.ID) {
		return bad()
	}
	return r, nil
}

// start is where XRANGE and XPENDING begin in partition p for what comes after r.
func (r Ref) start(p int) string {
	switch {
	case r.ID == "":
		return "-"
	case p <= r.Partition:
		return "(" + r.ID
	}
	return r.ID
}

func (r Ref) compare(o Ref) int {
	switch {
	case stream.Newer(o.ID, r.ID):
		return -1
	case stream.Newer(r.ID, o.ID):
		return 1
	}
	return r.Partition - o.Partition
}

// DeadEntry is an entry of dead.
type DeadEntry struct {
	Ref    Ref
	Values map[string]any
}

// Dead reads limit entries of dead at most, oldest first over all partitions, after a Ref. next is where to go on from,
// nil at the end.
func Dead(ctx context.Context, rdb redis.UniversalClient, keys state.Keys, after Ref, limit int) (dead []DeadEntry, next *Ref, err error) {
	all := keys.Each()
	pages := make([]*redis.XMessageSliceCmd, len(all))
	// The pipeline's error is that of its first failed command; each command has its own.
	_, _ = rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for p, k := range all {
			pages[p] = pipe.XRangeN(ctx, k.Dead(), after.start(p), "+", int64(limit))
		}
		return nil
	})
	for p, page := range pages {
		ms, err := page.Result()
		if err != nil {
			return nil, nil, fault.New(fault.Unavailable, "read", all[p].Dead(), err)
		}
		for _, m := range ms {
			dead = append(dead, DeadEntry{Ref{p, m.ID}, m.Values})
		}
	}
	slices.SortFunc(dead, func(a, b DeadEntry) int { return a.Ref.compare(b.Ref) })
	if len(dead) >= limit {
		dead = dead[:limit]
		next = &dead[limit-1].Ref
	}
	return dead, next, nil
}
