// Package service is the api as a whole: its settings, and how its parts are put together.
package service

import (
	"net"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/api/internal/apikeys"
	"github.com/tierflow/tierflow/api/internal/registry"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/settings"
	"github.com/tierflow/tierflow/shared/state"
)

// Settings are the flags and environment variables of the api.
type Settings struct {
	settings.Common
	Listen         string `name:"listen" env:"TIERFLOW_LISTEN" default:"127.0.0.1:5000" help:"Address of the HTTP service."`
	MaxBacklog     string `name:"max-backlog" env:"TIERFLOW_MAX_BACKLOG" default:"1000000" help:"New views are refused while so many entries of all streams are not settled."`
	APIKeysFile    string `name:"api-keys-file" env:"TIERFLOW_API_KEYS_FILE" help:"A file of API keys, as new-key makes them. Every call but health needs one then. It may change at any time."`
	InsecureNoAuth bool   `name:"insecure-no-auth" env:"TIERFLOW_INSECURE_NO_AUTH" help:"Listen without API keys on an address that is not loopback."`
}

// Config is what Settings come to.
type Config struct {
	settings.CommonValues
	Listen     string
	MaxBacklog int64
	keys       *apikeys.File         // nil: everybody may do everything
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
	var err error
	if s.APIKeysFile != "" {
		if c.keys, err = apikeys.Open(s.APIKeysFile); err != nil {
			p.Add("TIERFLOW_API_KEYS_FILE", "%v", err)
		}
	} else if c.Listen != "" && !loopback(c.Listen) && !s.InsecureNoAuth {
		p.Add("TIERFLOW_LISTEN", "%s is not a loopback address, and there are no API keys: everybody who reaches it could move "+
			"files. Make keys with api new-key and name their file in TIERFLOW_API_KEYS_FILE, listen on 127.0.0.1, or set "+
			"TIERFLOW_INSECURE_NO_AUTH=true where a network or a proxy keeps others out", c.Listen)
	}
	// Two connections for each queue of package ingest, and some for the other scripts.
	if c.writes, err = state.ConnectMany(c.RedisURL, -1, 2*c.Partitions+8); err != nil {
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

// lease is how long the api's locks last; it takes them only to forget items.
const lease = registry.ForgetLease
