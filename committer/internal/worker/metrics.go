package worker

import "github.com/prometheus/client_golang/prometheus"

// Metrics are what a Worker counts.
type Metrics struct {
	settled *prometheus.CounterVec
	dead    *prometheus.CounterVec
	lost    prometheus.Counter
	batch   prometheus.Histogram
	seconds prometheus.Histogram
	latency prometheus.Histogram
}

// NewMetrics registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	const namespace, subsystem = "tierflow", "committer"
	m := &Metrics{
		settled: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem,
			Name: "settled_total", Help: "Relocations settled, by outcome: committed or superseded."}, []string{"outcome"}),
		dead: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem,
			Name: "dead_total", Help: "Entries that failed for good, by reason."}, []string{"reason"}),
		lost: prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem,
			Name: "lost_total", Help: "Pending entries that somebody deleted from the stream."}),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: namespace, Subsystem: subsystem,
			Name: "batch_entries", Help: "Entries in a batch.", Buckets: []float64{1, 2, 5, 10, 20, 50, 100, 200, 500}}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: namespace, Subsystem: subsystem,
			Name: "commit_seconds", Help: "A batch's time in MySQL, repetitions included.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14)}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: namespace, Subsystem: subsystem,
			Name: "latency_seconds", Help: "From the durable copy to the settled commit.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16)}),
	}
	for _, outcome := range []string{"committed", "superseded"} {
		m.settled.WithLabelValues(outcome) // there from the start, as 0
	}
	reg.MustRegister(m.settled, m.dead, m.lost, m.batch, m.seconds, m.latency)
	return m
}
