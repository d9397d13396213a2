package stack

import (
	"errors"
	"fmt"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
)

// AttachOptions say how a running Tierflow is reached.
type AttachOptions struct {
	API      string // host:port
	APIKey   string // "" sends none
	RedisURL string
	MySQLDSN string

	Partitions int // 0 is 1

	// Local turns the path of a level into where this process finds that folder.
	Local func(path string) string
}

// Attach makes a Stack of a Tierflow that somebody else runs, such as Docker Compose: it is driven and checked, but has
// no service to start or stop. The caller must Close it.
func Attach(o AttachOptions) (*Stack, error) {
	s := &Stack{API: &Service{Name: API, Addr: o.API}, Keys: state.NewKeys(state.DefaultPrefix).Partitioned(max(o.Partitions, 1)), local: o.Local, key: o.APIKey,
		contents: map[item.ID]*expected{}}
	var err error
	if s.Redis, err = state.Connect(o.RedisURL, 3); err != nil {
		return nil, fmt.Errorf("Redis URL: %w", err)
	}
	if s.Catalog, err = catalog.Open(o.MySQLDSN, catalog.Options{MaxConns: 4}); err != nil {
		return nil, errors.Join(err, s.Redis.Close())
	}
	return s, nil
}

// at is where the folder of a level lies for this process.
func (s *Stack) at(path string) string {
	if s.local == nil {
		return path
	}
	return s.local(path)
}
