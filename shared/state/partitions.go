package state

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
)

// Agree records the number of partitions in Redis where none is recorded, and else compares the two. It returns
// fault.Conflict where they differ: entries would be in streams that no consumer reads, so the caller must not read or write.
// Every service calls it repeatedly, because a wiped Redis takes a new number.
//
// In a cluster, the node that has the number may be the only one away. An earlier agreement then stays valid, so that the
// partitions of the other nodes are served.
func (s *Store) Agree(ctx context.Context) error {
	err := s.sameCount(ctx)
	if fault.Is(err, fault.Unavailable) && s.agree.Load() && s.someNodeAnswers(ctx) {
		return nil
	}
	s.agree.Store(err == nil)
	return err
}

// pingTimeout is how long a node may take to answer before it counts as away.
const pingTimeout = time.Second

func (s *Store) someNodeAnswers(ctx context.Context) bool {
	cluster, ok := s.rdb.(*redis.ClusterClient)
	if !ok {
		return false
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTimeout)
	defer cancel()
	var answers atomic.Bool
	_ = cluster.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error {
		if node.Ping(ctx).Err() == nil {
			answers.Store(true)
		}
		return nil
	})
	return answers.Load()
}

func (s *Store) sameCount(ctx context.Context) error {
	mine := strconv.Itoa(s.keys.Partitions())
	if err := s.alone(ctx); err != nil {
		return err
	}
	recorded, err := s.rdb.Get(ctx, s.keys.Count()).Result()
	if errors.Is(err, redis.Nil) {
		if err := s.unpartitioned(ctx); err != nil {
			return err
		}
		if err := s.rdb.SetNX(ctx, s.keys.Count(), mine, 0).Err(); err != nil {
			return unavailable("write", s.keys.Count(), err)
		}
		recorded, err = s.rdb.Get(ctx, s.keys.Count()).Result()
	}
	if err != nil {
		return unavailable("read", s.keys.Count(), err)
	}
	if recorded != mine {
		return disagree(fmt.Errorf("it is %s here, and %s in Redis (%s)", mine, recorded, s.keys.Count()))
	}
	return nil
}

// alone returns an error where the URL of a single Redis names a node of a cluster: the node has only some of the keys.
func (s *Store) alone(ctx context.Context) error {
	if _, cluster := s.rdb.(*redis.ClusterClient); cluster {
		return nil
	}
	info, err := s.rdb.Info(ctx, "cluster").Result()
	if err == nil && strings.Contains(info, "cluster_enabled:1") {
		return &fault.Error{Kind: fault.Conflict, Op: "use", Subject: "TIERFLOW_REDIS_URL",
			Err:  errors.New("this Redis is a node of a cluster"),
			Hint: "begin the URL with redis+cluster:// or rediss+cluster://, and set TIERFLOW_PARTITIONS"}
	}
	return nil // where INFO failed, the next command fails as well
}

// unpartitioned returns an error where this service has several partitions and Redis has the stream of a single one: it may
// have entries that no consumer would read any more.
func (s *Store) unpartitioned(ctx context.Context) error {
	if s.keys.Partitions() == 1 {
		return nil
	}
	views := Keys{prefix: s.keys.prefix, n: 1, bound: true}.Views()
	n, err := s.rdb.Exists(ctx, views).Result()
	if err != nil {
		return unavailable("read", views, err)
	}
	if n > 0 {
		return disagree(fmt.Errorf("it is %d here, and Redis has %s, the stream of a single partition", s.keys.Partitions(), views))
	}
	return nil
}

func disagree(err error) error {
	return &fault.Error{Kind: fault.Conflict, Op: "use", Subject: "TIERFLOW_PARTITIONS", Err: err,
		Hint: "give all services the same number; docs/scaling.md says how to change it"}
}

// agreed calls Agree until it has succeeded once.
func (s *Store) agreed(ctx context.Context) error {
	if s.agree.Load() {
		return nil
	}
	if err := s.Agree(ctx); err != nil {
		// The caller can only try again later. /readyz shows what is wrong.
		return fault.New(fault.Unavailable, "use", s.keys.Count(), err)
	}
	return nil
}

// CheckPlace returns fault.Malformed where a stream is not of an item's partition: somebody put an entry into the wrong
// stream, and a script would ack it in another one.
func (s *Store) CheckPlace(stream string, id item.ID) error {
	if s.keys.Partitions() == 1 {
		return nil
	}
	if _, p, ok := s.keys.OfStream(stream); !ok || p != s.keys.Partition(id) {
		return fault.New(fault.Malformed, "read entry of", stream,
			fmt.Errorf("item %s belongs to partition %s", id, PartitionName(s.keys.Partition(id))))
	}
	return nil
}
