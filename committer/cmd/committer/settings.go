package main

import (
	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/settings"
	"github.com/tierflow/tierflow/shared/state"
)

// arguments are the flags and variables, as kong fills them.
type arguments struct {
	settings.Common
	settings.Worker
	AdminListen string `name:"admin-listen" env:"TIERFLOW_ADMIN_LISTEN" default:"127.0.0.1:5002" help:"Address of health and metrics."`
	MaxAttempts string `name:"max-attempts" env:"TIERFLOW_MAX_ATTEMPTS" default:"8" help:"Attempts before an entry goes to dead."`

	Serve struct {
		Migrate bool `help:"Migrate the schema as soon as MySQL is there."`
	} `cmd:"" default:"withargs" help:"Commit until SIGTERM (the default)."`
	Migrate     struct{} `cmd:"" help:"Apply the migrations that are missing and print their names. Safe to run from several places at once."`
	Healthcheck struct{} `cmd:"" help:"Exit 0 if the committer that runs here is ready."`
	Version     struct{} `cmd:"" help:"Print the version."`
}

// values are the arguments, checked.
type values struct {
	settings.CommonValues
	workerID    string
	adminListen string
	maxAttempts int64

	redis   redis.UniversalClient
	catalog *catalog.Catalog
}

func (a arguments) check() (values, error) {
	var p settings.Problems
	v := values{
		CommonValues: a.Common.Check(&p),
		workerID:     a.Worker.Check(&p),
		adminListen:  p.Address("TIERFLOW_ADMIN_LISTEN", a.AdminListen),
		maxAttempts:  p.Int("TIERFLOW_MAX_ATTEMPTS", a.MaxAttempts, 1, 1_000_000),
	}
	var err error
	// Two for each partition, which reads while it tells of the batch before, and some for the rest.
	if v.redis, err = state.ConnectMany(v.RedisURL, 3, 2*v.Partitions+4); err != nil {
		p.Add("TIERFLOW_REDIS_URL", "%v", err)
	}
	if v.catalog, err = catalog.Open(v.MySQLDSN, catalog.Options{MaxConns: 4}); err != nil {
		p.Add("TIERFLOW_MYSQL_DSN", "%v", err)
	}
	return v, p.Err()
}
