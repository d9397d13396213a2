package commit

import "github.com/prometheus/client_golang/prometheus"

// Metrics are the counters of one committer.
type Metrics struct {
	settled     *prometheus.CounterVec
	deadLetters *prometheus.CounterVec
	lost        prometheus.Counter
	batch       prometheus.Histogram
	seconds     prometheus.Histogram
	latency     prometheus.Histogram
}

// NewMetrics registers the metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	const namespace, subsystem = "tierflow", "committer"
	m := &Metrics{
		settled: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem,
			Name: "settled_total", Help: "Relocations settled, by outcome: committed or superseded."}, []string{"outcome"}),
		deadLetters: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem,
			Name: "dead_total", Help: "Dead letters, by reason."}, []string{"reason"}),
		lost: prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem,
			Name: "lost_total", Help: "Entries that somebody deleted from the stream while they were pending."}),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: namespace, Subsystem: subsystem,
			Name: "batch_entries", Help: "Entries in a batch.", Buckets: []float64{1, 2, 5, 10, 20, 50, 100, 200, 500}}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: namespace, Subsystem: subsystem,
			Name: "commit_seconds", Help: "Time of a batch in MySQL, retries included.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14)}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: namespace, Subsystem: subsystem,
			Name: "latency_seconds", Help: "Time from the durable copy to the settled commit.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16)}),
	}
	for _, outcome := range []string{"committed", "superseded"} {
		m.settled.WithLabelValues(outcome) // shown from the start, as 0
	}
	reg.MustRegister(m.settled, m.deadLetters, m.lost, m.batch, m.seconds, m.latency)
	return m
}
