package state

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// clusterReload bounds how long a client may use an old map of a cluster's slots. It reads the map at once when a node fails
// or answers MOVED.
const clusterReload = 10 * time.Second

// Connect makes a client for the URL of a Redis, with the options that Tierflow relies on. It does not connect yet. The URL
// is one of
//
//	redis://[user:password@]host[:port][/database]    rediss:// with TLS, unix:///path of a socket
//	redis+cluster://[user:password@]host[:port][,host[:port]…]    rediss+cluster:// with TLS
//
// where the hosts of a cluster are any of its nodes: the client finds the others through them.
//
// maxRetries is how often a command may be sent again when its reply was lost or its server is away. It is -1 for the client
// that appends views, because an XADD that is sent twice makes two events. That client sends a command again only where a
// cluster answers MOVED, ASK, TRYAGAIN or CLUSTERDOWN, which means that it was not run.
func Connect(url string, maxRetries int) (redis.UniversalClient, error) {
	return ConnectMany(url, maxRetries, 0)
}

// ConnectMany is Connect for callers that need up to conns connections to a node at the same time. The client opens no more
// than it needs.
func ConnectMany(url string, maxRetries, conns int) (redis.UniversalClient, error) {
	redis.SetLogger(silent{})
	if scheme, _, _ := strings.Cut(url, "://"); strings.HasSuffix(scheme, "+cluster") {
		return connectCluster(url, maxRetries, conns)
	}
	if _, rest, _ := strings.Cut(url, "://"); !strings.HasPrefix(url, "unix:") {
		host, _, _ := strings.Cut(rest[strings.LastIndex(rest, "@")+1:], "/")
		if strings.Contains(host, ",") {
			return nil, errors.New("several hosts are a cluster: redis+cluster://host1:port,host2:port")
		}
	}
	o, err := redis.ParseURL(url)
	if err != nil {
		return nil, err
	}
	o.MaxRetries = maxRetries
	o.ContextTimeoutEnabled = true
	o.DialTimeout = 2 * time.Second
	o.DialerRetries = 1 // all callers try again themselves, and the api must answer at once that Redis is away
	o.PipelinePoolSize = -1
	o.PoolSize = max(o.PoolSize, conns)
	// Only managed Redis has these notifications, and each connection would cost a command more.
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return redis.NewClient(o), nil
}

func connectCluster(text string, maxRetries, conns int) (redis.UniversalClient, error) {
	o, err := parseClusterURL(text)
	if err != nil {
		return nil, err
	}
	o.ContextTimeoutEnabled = true
	o.DialTimeout = 2 * time.Second
	o.DialerRetries = 1
	o.PipelinePoolSize = -1
	o.PoolSize = max(o.PoolSize, conns)
	o.ClusterStateReloadInterval = clusterReload
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	// In a cluster, go-redis counts retries and redirects together. Three redirects are needed to follow a slot.
	o.MaxRedirects = max(maxRetries, 3)
	c := redis.NewClusterClient(o)
	c.AddHook(clusterHook{client: c, once: maxRetries < 0})
	return c, nil
}

// parseClusterURL reads redis+cluster://user:password@host1:port,host2:port.
func parseClusterURL(text string) (*redis.ClusterOptions, error) {
	scheme, rest, _ := strings.Cut(text, "://")
	scheme = strings.TrimSuffix(scheme, "+cluster")
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	authority, tail := rest[:end], rest[end:]
	user := ""
	if at := strings.LastIndex(authority, "@"); at >= 0 {
		user, authority = authority[:at+1], authority[at+1:]
	}
	hosts := strings.Split(authority, ",")
	for i, h := range hosts {
		if h == "" {
			return nil, errors.New("a host is missing: redis+cluster://host1:port,host2:port")
		}
		if u, err := url.Parse("redis://" + h); err != nil || u.Hostname() == "" {
			return nil, fmt.Errorf("%q is not a host with a port", h)
		} else if u.Port() == "" {
			hosts[i] = h + ":6379"
		}
	}
	u, err := url.Parse(scheme + "://" + user + hosts[0] + tail)
	if err != nil {
		return nil, errors.New("the URL cannot be read: redis+cluster://user:password@host1:port,host2:port") // without its password
	}
	if db := strings.Trim(u.Path, "/"); db != "" && db != "0" {
		return nil, fmt.Errorf("a cluster has database 0 only, not %q", db)
	}
	q := u.Query()
	for _, name := range []string{"read_only", "route_by_latency", "route_by_latency_tolerance", "route_randomly", "max_redirects", "max_retries"} {
		if q.Has(name) { // a replica may return old data, and maxRetries decides about repeats
			return nil, fmt.Errorf("the parameter %s is not allowed", name)
		}
	}
	for _, h := range hosts[1:] {
		q.Add("addr", h)
	}
	u.RawQuery = q.Encode()
	return redis.ParseClusterURL(u.String())
}

// clusterHook makes go-redis look for a promoted replica as soon as a node fails. With once, it also keeps go-redis from
// sending a command twice that may have been run.
type clusterHook struct {
	client *redis.ClusterClient
	once   bool
}

func (h clusterHook) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h clusterHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if h.once {
			cmd = once{cmd}
		}
		for wait := 5 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
			err := next(ctx, cmd)
			h.look(ctx, err)
			if !h.once || !notRun(err) {
				return err
			}
			select {
			case <-ctx.Done():
				return err
			case <-time.After(wait):
			}
		}
	}
}

func (h clusterHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if h.once {
			wrapped := make([]redis.Cmder, len(cmds))
			for i, c := range cmds {
				wrapped[i] = once{c}
			}
			cmds = wrapped
		}
		err := next(ctx, cmds)
		h.look(ctx, err)
		return err
	}
}

// look makes go-redis read the map of slots again where a node did not answer. ReloadState works in the background and
// limits its own rate.
func (h clusterHook) look(ctx context.Context, err error) {
	var answered redis.Error
	if err != nil && !errors.As(err, &answered) {
		h.client.ReloadState(ctx)
	}
}

// once is a command that go-redis sends again only where a node has said that it did not run it.
type once struct{ redis.Cmder }

func (once) NoRetry() bool { return true }

// notRun reports whether the cluster has refused a command because a slot moves to another node, or has no master now.
func notRun(err error) bool {
	return redis.HasErrorPrefix(err, "TRYAGAIN") || redis.HasErrorPrefix(err, "CLUSTERDOWN")
}

// silent is go-redis' logger. It prints nothing, because callers get the same errors and log them.
type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}
