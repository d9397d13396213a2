package service

import (
	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/committer/internal/apply"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/settings"
	"github.com/tierflow/tierflow/shared/state"
)

// Settings are the flags and environment variables of the committer.
type Settings struct {
	settings.Common
	settings.Worker
	AdminListen string `name:"admin-listen" env:"TIERFLOW_ADMIN_LISTEN" default:"127.0.0.1:5002" help:"Address of health and metrics."`
	MaxAttempts string `name:"max-attempts" env:"TIERFLOW_MAX_ATTEMPTS" default:"8" help:"Attempts before an entry becomes a dead letter."`
}

// Config is what Settings come to.
type Config struct {
	settings.CommonValues
	workerID    string
	adminListen string
	maxAttempts int64
	migrate     bool // the schema, as soon as MySQL is there

	redis   redis.UniversalClient
	catalog *catalog.Catalog // of MySQL
}

// Check turns settings into a Config. The error names everything that is wrong with them. Nothing is connected yet.
func (s Settings) Check() (Config, error) {
	var p settings.Problems
	c := Config{
		CommonValues: s.Common.Check(&p),
		workerID:     s.Worker.Check(&p),
		adminListen:  p.Address("TIERFLOW_ADMIN_LISTEN", s.AdminListen),
		maxAttempts:  p.Int("TIERFLOW_MAX_ATTEMPTS", s.MaxAttempts, 1, 1_000_000),
	}
	var err error
	// Two connections for each partition, which reads while it finishes the batch before, and some for the rest.
	if c.redis, err = state.ConnectMany(c.RedisURL, 3, 2*c.Partitions+4); err != nil {
		p.Add("TIERFLOW_REDIS_URL", "%v", err)
	}
	if c.catalog, err = catalog.Open(c.MySQLDSN, catalog.Options{MaxConns: 4, LockWait: apply.LockWait}); err != nil {
		p.Add("TIERFLOW_MYSQL_DSN", "%v", err)
	}
	return c, p.Err()
}

// close ends the connections of a Config that Check returned without an error.
func (c Config) close() {
	_ = c.redis.Close() // the connections end with the process in any case
	_ = c.catalog.Close()
}
