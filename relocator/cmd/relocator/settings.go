package main

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

// arguments are the flags and variables, as kong fills them.
type arguments struct {
	settings.Common
	settings.Worker
	AdminListen  string `name:"admin-listen" env:"TIERFLOW_ADMIN_LISTEN" default:"127.0.0.1:5001" help:"Address of health and metrics."`
	Concurrency  string `name:"concurrency" env:"TIERFLOW_CONCURRENCY" default:"256" help:"Moves at once, and as many releases. Of large files, 32 are copied at once."`
	MaxAttempts  string `name:"max-attempts" env:"TIERFLOW_MAX_ATTEMPTS" default:"8" help:"Attempts before an entry goes to dead."`
	ReleaseGrace string `name:"release-grace" env:"TIERFLOW_RELEASE_GRACE" default:"5s" help:"How long the old copy stays after the commit: at least the time between a reader's look-up and its open, caches and replication lag included."`
	Verify       string `name:"verify" env:"TIERFLOW_VERIFY" default:"readback" help:"What is compared after a copy: readback (what the disk holds) or stream (what was read)."`
	Tiers        string `name:"tiers" env:"TIERFLOW_TIERS" help:"Levels whose tiers this host reaches, with commas between, such as bronze,silver; all where empty. Moves that need others go to relocators that reach them."`
	Bandwidth    string `name:"bandwidth" env:"TIERFLOW_BANDWIDTH" default:"0" help:"Most bytes a second over all copies, such as 100MiB; 0 for no limit."`

	Serve       struct{} `cmd:"" default:"1" help:"Relocate until SIGTERM (the default)."`
	Healthcheck struct{} `cmd:"" help:"Exit 0 if the relocator that runs here is ready."`
	Version     struct{} `cmd:"" help:"Print the version."`
	InitTiers   struct{} `cmd:"" help:"Make the tiers' roots and identities; changes nothing the second time. Exit 1 where another identity is found."`
	VerifyTiers struct {
		Repair bool `help:"Mend what is safe, and say what is left and why."`
		Digest bool `help:"Read every file and compare its bytes with the digest of its last copy."`
	} `cmd:"" name:"verify" help:"Compare MySQL with all tiers. Exit 0 clean, 1 findings, 2 could not look."`
}

// values are the arguments, checked.
type values struct {
	settings.CommonValues
	workerID    string
	adminListen string
	concurrency int
	maxAttempts int64
	grace       time.Duration
	verify      mover.Verify
	bandwidth   int64
	tiers       []string // nil: all

	redis   redis.UniversalClient
	catalog *catalog.Catalog
}

func (a arguments) check() (values, error) {
	var p settings.Problems
	v := values{
		CommonValues: a.Common.Check(&p),
		workerID:     a.Worker.Check(&p),
		adminListen:  p.Address("TIERFLOW_ADMIN_LISTEN", a.AdminListen),
		concurrency:  int(p.Int("TIERFLOW_CONCURRENCY", a.Concurrency, 1, 1024)),
		maxAttempts:  p.Int("TIERFLOW_MAX_ATTEMPTS", a.MaxAttempts, 1, 1_000_000),
		grace:        p.Duration("TIERFLOW_RELEASE_GRACE", a.ReleaseGrace, 0),
		verify:       mover.Verify(p.OneOf("TIERFLOW_VERIFY", a.Verify, []string{string(mover.ReadBack), string(mover.Stream)})),
		bandwidth:    p.Rate("TIERFLOW_BANDWIDTH", a.Bandwidth),
		tiers:        checkTiers(&p, a.Tiers),
	}
	var err error
	if v.redis, err = state.Connect(v.RedisURL, 3); err != nil {
		p.Add("TIERFLOW_REDIS_URL", "%v", err)
	}
	if v.catalog, err = catalog.Open(v.MySQLDSN, catalog.Options{}); err != nil {
		p.Add("TIERFLOW_MYSQL_DSN", "%v", err)
	}
	return v, p.Err()
}

// checkTiers reads names of levels with commas between; whether there are such levels, MySQL knows.
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
