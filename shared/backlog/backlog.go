// Package backlog exports what waits in the streams and what has failed for good, as metrics. Every api and every committer
// exports the same numbers, because either may be away. They are read from Redis when Prometheus asks, so they are true at
// rest as well.
package backlog

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tierflow/tierflow/shared/state"
)

const (
	// fresh is how long a reading is used for further scrapes, so that many scrapes cost Redis no more than one.
	fresh = time.Second
	// readTime bounds the wait for Redis. While Redis is away these metrics are absent, and the others are not.
	readTime = 2 * time.Second
)

// collector reads what waits at each scrape.
type collector struct {
	store                            *state.Store
	backlog, unsettled, oldest, dead *prometheus.Desc

	mu   sync.Mutex
	at   time.Time
	load state.Load
	err  error
}

// Register registers the metrics of the store's streams.
func Register(reg prometheus.Registerer, store *state.Store) {
	reg.MustRegister(&collector{
		store:     store,
		backlog:   prometheus.NewDesc("tierflow_backlog_events", "Entries of all streams that are not settled.", nil, nil),
		unsettled: prometheus.NewDesc("tierflow_unsettled_entries", "Entries that are not settled, by stage: relocate, commit, release.", []string{"stage"}, nil),
		oldest: prometheus.NewDesc("tierflow_oldest_unsettled_seconds", "Age of the oldest entry that is not settled, by stage; 0 where there is none.",
			[]string{"stage"}, nil),
		dead: prometheus.NewDesc("tierflow_dead_letters", "Dead letters now, by stage and reason. Both are empty for dead letters of older versions.",
			[]string{"stage", "reason"}, nil),
	})
}

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.backlog, c.unsettled, c.oldest, c.dead} {
		ch <- d
	}
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	load, err := c.read()
	if err != nil {
		return
	}
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	gauge(c.backlog, float64(load.Unsettled()))
	for _, s := range load.Stages {
		gauge(c.unsettled, float64(s.Unsettled), s.Stage)
		gauge(c.oldest, s.Oldest.Seconds(), s.Stage)
	}
	for kind, n := range load.Dead {
		gauge(c.dead, float64(n), kind.Stage, kind.Reason)
	}
	if len(load.Dead) == 0 {
		gauge(c.dead, 0, "", "") // without a series, an alert on the sum would never end
	}
}

// read returns the numbers of a moment ago, or reads them.
func (c *collector) read() (state.Load, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.at) < fresh {
		return c.load, c.err
	}
	ctx, cancel := context.WithTimeout(context.Background(), readTime)
	defer cancel()
	c.load, c.err = c.store.Load(ctx)
	c.at = time.Now()
	return c.load, c.err
}
