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

// Agree records the number of partitions where none is recorded, and tells whether it is the recorded one: with
// another, entries would be written and looked for where nobody reads them. Every service asks now and then, because
// a wiped Redis takes a new number. fault.Conflict: it is another, and nothing may be read or written.
//
// Where only the node of a cluster is away that has the number, what was agreed before stands: the partitions of the others
// go on.
func (s *Store) Agree(ctx context.Context) error {
	err := s.sameCount(ctx)
	if fault.Is(err, fault.Unavailable) && s.agree.Load() && s.someNodeAnswers(ctx) {
		return nil
	}
	s.agree.Store(err == nil)
	return err
}

// pingTimeout is for a node that answers at once or is away.
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

// alone refuses a node of a cluster behind the URL of a single Redis: it answers for some keys and not for others.
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
	return nil // whatever else is wrong, the next command says
}

// unpartitioned refuses to begin with several partitions where the stream of a single one is: it may have entries that
// nobody would read any more.
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

// agreed makes sure once that the number of partitions is the recorded one.
func (s *Store) agreed(ctx context.Context) error {
	if s.agree.Load() {
		return nil
	}
	if err := s.Agree(ctx); err != nil {
		// Whoever asks can only try again later: what is wrong is shown by /readyz.
		return fault.New(fault.Unavailable, "use", s.keys.Count(), err)
	}
	return nil
}

// CheckPlace tells whether a stream is one of a content's partition. fault.Malformed: somebody put an entry into the
// wrong one, where a script would ack it in another stream than it came from.
func (s *Store) CheckPlace(stream string, id item.ID) error {
	if s.keys.Partitions() == 1 {
		return nil
	}
	if _, p, ok := s.keys.OfStream(stream); !ok || p != s.keys.Partition(id) {
		return fault.New(fault.Malformed, "read entry of", stream,
			fmt.Errorf("content %s belongs to partition %s", id, PartitionName(s.keys.Partition(id))))
	}
	return nil
}
