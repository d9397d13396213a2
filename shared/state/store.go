package state

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/tierflow/tierflow/shared/content"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
)

// Options of a Store. All are required.
type Options struct {
	Redis redis.UniversalClient
	Keys  Keys
	TTL   time.Duration // life of a state that is done
	Lease time.Duration // life of a lock between two renewals
}

// Store runs the protocol's scripts.
type Store struct {
	rdb  redis.UniversalClient
	keys Keys
	ttl  time.Duration
	lock time.Duration
}

// NewStore makes a Store. It talks to nobody yet.
func NewStore(o Options) *Store {
	return &Store{rdb: o.Redis, keys: o.Keys, ttl: o.TTL, lock: o.Lease}
}

// Keys returns the key names in use.
func (s *Store) Keys() Keys { return s.keys }

// Connect parses a Redis URL (redis://, rediss://, unix://) and sets what Tierflow relies on. maxRetries is -1 for
// the client that appends views: go-redis' default sends an XADD again when its reply is lost.
func Connect(url string, maxRetries int) (*redis.Client, error) {
	o, err := redis.ParseURL(url)
	if err != nil {
		return nil, err
	}
	redis.SetLogger(silent{})
	o.MaxRetries = maxRetries
	o.ContextTimeoutEnabled = true
	o.DialTimeout = 2 * time.Second
	o.DialerRetries = 1 // whoever needs Redis tries again by himself, and the api must say at once that it is away
	o.PipelinePoolSize = -1
	// Only managed Redis offers it; asking costs a command for each connection.
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return redis.NewClient(o), nil
}

// Get reads a content's state. ok is false where there is none, or one that cannot be read: both mean that no
// newer event is known.
func (s *Store) Get(ctx context.Context, id content.ID) (st State, ok bool, err error) {
	v, err := s.rdb.Get(ctx, s.keys.Content(id)).Result()
	if errors.Is(err, redis.Nil) {
		return State{}, false, nil
	}
	if err != nil {
		return State{}, false, unavailable("read state", id.String(), err)
	}
	st, err = Parse(v)
	return st, err == nil, nil
}

// GetMany reads the states of many contents on one trip, nil for each that Get has none for.
func (s *Store) GetMany(ctx context.Context, ids []content.ID) ([]*State, error) {
	states := make([]*State, len(ids))
	if len(ids) == 0 {
		return states, nil
	}
	keys := make([]string, len(ids))
	for i, id := range ids {
		keys[i] = s.keys.Content(id)
	}
	values, err := s.rdb.MGet(ctx, keys...).Result()
	if err != nil {
		return nil, unavailable("read states", "", err)
	}
	for i, v := range values {
		text, ok := v.(string)
		if !ok {
			continue
		}
		if st, err := Parse(text); err == nil {
			states[i] = &st
		}
	}
	return states, nil
}

// Forget deletes the state of a content that is no more.
func (s *Store) Forget(ctx context.Context, id content.ID) error {
	if err := s.rdb.Del(ctx, s.keys.Content(id)).Err(); err != nil {
		return unavailable("forget state", id.String(), err)
	}
	return nil
}

// Unsettled is the number of view events that no relocator has settled: unread and pending.
func (s *Store) Unsettled(ctx context.Context) (int64, error) {
	groups, err := s.rdb.XInfoGroups(ctx, s.keys.Views()).Result()
	if err != nil && !isNoKey(err) {
		return 0, unavailable("read backlog", s.keys.Views(), err)
	}
	for _, g := range groups {
		if g.Name == GroupRelocator && g.Lag >= 0 {
			return g.Pending + g.Lag, nil
		}
	}
	// No group yet, or a lag that Redis cannot tell: the stream's length is the upper bound.
	n, err := s.rdb.XLen(ctx, s.keys.Views()).Result()
	if err != nil {
		return 0, unavailable("read backlog", s.keys.Views(), err)
	}
	return n, nil
}

// Now is Redis' time, the only clock that entry ids know.
func (s *Store) Now(ctx context.Context) (time.Time, error) {
	t, err := s.rdb.Time(ctx).Result()
	if err != nil {
		return time.Time{}, unavailable("read", "time", err)
	}
	return t, nil
}

// Paused tells whether relocations are paused.
func (s *Store) Paused(ctx context.Context) (bool, error) {
	n, err := s.rdb.Exists(ctx, s.keys.Paused()).Result()
	if err != nil {
		return false, unavailable("read", s.keys.Paused(), err)
	}
	return n == 1, nil
}

// SetPaused pauses or resumes relocations; by says who, for those who look with redis-cli.
func (s *Store) SetPaused(ctx context.Context, paused bool, by string) error {
	var err error
	if paused {
		err = s.rdb.Set(ctx, s.keys.Paused(), by, 0).Err()
	} else {
		err = s.rdb.Del(ctx, s.keys.Paused()).Err()
	}
	if err != nil {
		return unavailable("write", s.keys.Paused(), err)
	}
	return nil
}

// Newer tells whether stream id a is newer than b. Ids are two numbers of up to 64 bits, so they are compared as
// digits. An empty id is older than any.
func Newer(a, b string) bool {
	am, as, _ := strings.Cut(a, "-")
	bm, bs, _ := strings.Cut(b, "-")
	if am != bm {
		return longer(am, bm)
	}
	return longer(as, bs)
}

func longer(a, b string) bool {
	if len(a) != len(b) {
		return len(a) > len(b)
	}
	return a > b
}

// unavailable wraps an error of Redis: whatever it is, the way on is to try again later.
func unavailable(op, subject string, err error) error {
	return fault.New(fault.Unavailable, op, subject, err)
}

func isNoKey(err error) bool { return strings.Contains(err.Error(), "no such key") }

func formatNow() string { return event.FormatTime(time.Now()) }

// silent is go-redis' logger: what it would print, callers get as errors, and log once.
type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}
