package stack

import (
	"errors"
	"fmt"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
)

// AttachOptions say how to reach a running Tierflow.
type AttachOptions struct {
	API      string // host:port
	APIKey   string // "" sends none
	RedisURL string
	MySQLDSN string

	Partitions int // 0 means 1

	// Local returns the path at which this process finds the folder of a level.
	Local func(path string) string
}

// Attach makes a Stack for a running Tierflow that something else has started, such as Docker Compose. The Stack can post
// and check, but has no service to start or stop. The caller must Close it.
func Attach(o AttachOptions) (*Stack, error) {
	s := &Stack{API: &Service{Name: API, Addr: o.API}, Keys: state.NewKeys(state.DefaultPrefix).Partitioned(max(o.Partitions, 1)), local: o.Local, key: o.APIKey,
		expected: map[item.ID]*expected{}}
	var err error
	if s.Redis, err = state.Connect(o.RedisURL, 3); err != nil {
		return nil, fmt.Errorf("Redis URL: %w", err)
	}
	if s.Catalog, err = catalog.Open(o.MySQLDSN, catalog.Options{MaxConns: 4}); err != nil {
		return nil, errors.Join(err, s.Redis.Close())
	}
	return s, nil
}

// at returns the path at which this process finds the folder of a level.
func (s *Stack) at(path string) string {
	if s.local == nil {
		return path
	}
	return s.local(path)
}
