package service

import (
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/settings"
	"github.com/tierflow/tierflow/shared/state"
)

// Settings are the flags and environment variables of the relocator.
type Settings struct {
	settings.Common
	settings.Worker
	AdminListen  string `name:"admin-listen" env:"TIERFLOW_ADMIN_LISTEN" default:"127.0.0.1:5001" help:"Address of health and metrics."`
	Concurrency  string `name:"concurrency" env:"TIERFLOW_CONCURRENCY" default:"256" help:"Moves at once, and as many releases; at most three quarters of them to one tier. Of large items, 32 are copied at once."`
	MaxAttempts  string `name:"max-attempts" env:"TIERFLOW_MAX_ATTEMPTS" default:"8" help:"Attempts before an entry becomes a dead letter."`
	ReleaseGrace string `name:"release-grace" env:"TIERFLOW_RELEASE_GRACE" default:"5s" help:"How long the old copy stays after the commit: at least the time between a reader's look-up and its open, caches and replication lag included."`
	Verify       string `name:"verify" env:"TIERFLOW_VERIFY" default:"readback" help:"What is compared after a copy: readback (what the disk holds) or stream (what was read)."`
	Tiers        string `name:"tiers" env:"TIERFLOW_TIERS" help:"Levels whose tiers this host reaches, with commas between, such as bronze,silver; all where empty. Moves that need other tiers go to relocators that reach them."`
	Bandwidth    string `name:"bandwidth" env:"TIERFLOW_BANDWIDTH" default:"0" help:"Maximum bytes a second of all copies together, such as 100MiB; 0 for no limit."`
}

// Config is what Settings come to.
type Config struct {
	settings.CommonValues
	workerID    string
	adminListen string
	concurrency int
	maxAttempts int64
	grace       time.Duration
	verify      mover.Verify
	bandwidth   int64    // bytes a second; 0: no limit
	tiers       []string // nil: all

	redis   redis.UniversalClient // for scripts
	readers redis.UniversalClient // for reads that block: no script waits for them
	catalog *catalog.Catalog      // of MySQL
}

// Check turns settings into a Config. The error names everything that is wrong with them. Nothing is connected yet.
func (s Settings) Check() (Config, error) {
	var p settings.Problems
	c := Config{
		CommonValues: s.Common.Check(&p),
		workerID:     s.Worker.Check(&p),
		adminListen:  p.Address("TIERFLOW_ADMIN_LISTEN", s.AdminListen),
		concurrency:  int(p.Int("TIERFLOW_CONCURRENCY", s.Concurrency, 1, 1024)),
		maxAttempts:  p.Int("TIERFLOW_MAX_ATTEMPTS", s.MaxAttempts, 1, 1_000_000),
		grace:        p.Duration("TIERFLOW_RELEASE_GRACE", s.ReleaseGrace, 0),
		verify:       mover.Verify(p.OneOf("TIERFLOW_VERIFY", s.Verify, []string{string(mover.ReadBack), string(mover.Stream)})),
		bandwidth:    p.Rate("TIERFLOW_BANDWIDTH", s.Bandwidth),
		tiers:        checkTiers(&p, s.Tiers),
	}
	var err error
	if c.redis, err = state.Connect(c.RedisURL, 3); err != nil {
		p.Add("TIERFLOW_REDIS_URL", "%v", err)
	} else if c.readers, err = state.ConnectMany(c.RedisURL, 3, 2*c.Partitions+4); err != nil {
		p.Add("TIERFLOW_REDIS_URL", "%v", err)
	}
	if c.catalog, err = catalog.Open(c.MySQLDSN, catalog.Options{}); err != nil {
		p.Add("TIERFLOW_MYSQL_DSN", "%v", err)
	}
	return c, p.Err()
}

// close ends the connections of a Config that Check returned without an error.
func (c Config) close() {
	_ = c.readers.Close() // the connections end with the process in any case
	_ = c.redis.Close()
	_ = c.catalog.Close()
}

// store is the part of Redis that the protocol uses.
func (c Config) store() *state.Store {
	keys := state.NewKeys(c.RedisPrefix).Partitioned(c.Partitions)
	return state.NewStore(state.Options{Redis: c.redis, Keys: keys, TTL: c.StateTTL, Lease: c.MinIdle})
}

// checkTiers reads names of levels with commas between. Whether such levels exist is checked against MySQL later.
func checkTiers(p *settings.Problems, value string) []string {
	if value == "" {
		return nil
	}
	tiers := strings.Split(value, ",")
	for i, t := range tiers {
		if t == "" || strings.ContainsFunc(t, func(r rune) bool { return r <= ' ' || r > '~' || r == '*' }) || slices.Contains(tiers[:i], t) {
			p.Add("TIERFLOW_TIERS", "%q is not a list of levels such as bronze,silver, each once", value)
			return nil
		}
	}
	return tiers
}
