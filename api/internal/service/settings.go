// Package service is the api as a whole: its settings, and how its parts are put together.
package service

import (
	"net"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/settings"
	"github.com/tierflow/tierflow/shared/state"
)

// Settings are the flags and environment variables of the api.
type Settings struct {
	settings.Common
	Listen         string `name:"listen" env:"TIERFLOW_LISTEN" default:"127.0.0.1:5000" help:"Address of the HTTP service."`
	MaxBacklog     string `name:"max-backlog" env:"TIERFLOW_MAX_BACKLOG" default:"1000000" help:"New views are refused while so many are not settled."`
	InsecureNoAuth bool   `name:"insecure-no-auth" env:"TIERFLOW_INSECURE_NO_AUTH" help:"Listen on an address that is not loopback although nobody has to show a key."`
}

// Config is what Settings come to.
type Config struct {
	settings.CommonValues
	Listen     string
	MaxBacklog int64
	writes     redis.UniversalClient // for scripts: sends nothing twice
	reads      redis.UniversalClient // for what may be repeated
	catalog    *catalog.Catalog      // of MySQL
}

const maxMaxBacklog = 1 << 40

// Check turns settings into a Config; the error names everything that is wrong with them. Nothing is connected yet.
func (s Settings) Check() (Config, error) {
	var p settings.Problems
	c := Config{
		CommonValues: s.Common.Check(&p),
		Listen:       p.Address("TIERFLOW_LISTEN", s.Listen),
		MaxBacklog:   p.Int("TIERFLOW_MAX_BACKLOG", s.MaxBacklog, 1, maxMaxBacklog),
	}
	if c.Listen != "" && !loopback(c.Listen) && !s.InsecureNoAuth {
		p.Add("TIERFLOW_LISTEN", "%s is not a loopback address, and API keys are not there yet: everybody who reaches it could "+
			"move files. Listen on 127.0.0.1, or set TIERFLOW_INSECURE_NO_AUTH=true where a network or a proxy keeps others out", c.Listen)
	}
	var err error
	// One connection for each lane of package ingest, and some for the other scripts.
	if c.writes, err = state.ConnectMany(c.RedisURL, -1, c.Partitions+8); err != nil {
		p.Add("TIERFLOW_REDIS_URL", "%v", err)
	} else if c.reads, err = state.Connect(c.RedisURL, 1); err != nil {
		p.Add("TIERFLOW_REDIS_URL", "%v", err)
	}
	if c.catalog, err = catalog.Open(c.MySQLDSN, catalog.Options{}); err != nil {
		p.Add("TIERFLOW_MYSQL_DSN", "%v", err)
	}
	return c, p.Err()
}

func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// lease is never used by the api: it takes no locks.
const lease = time.Minute
