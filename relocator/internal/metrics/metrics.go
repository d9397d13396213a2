// Package metrics has what the relocator counts. It touches nothing but a Prometheus registry. It is one package because
// some metrics have more than one writer: relocations and releases both write dead letters.
package metrics

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the counters of one relocator. Every method is safe for concurrent use.
type Metrics struct {
	settledTotal     *prometheus.CounterVec
	movedTotal       *prometheus.CounterVec
	bytesTotal       *prometheus.CounterVec
	seconds          prometheus.Histogram
	releasedTotal    *prometheus.CounterVec
	deadLettersTotal *prometheus.CounterVec
	lostTotal        prometheus.Counter
	tierErrors       *prometheus.CounterVec
	tierSuspects     *prometheus.GaugeVec
	reassignedTotal  prometheus.Counter
	unreachableTotal *prometheus.CounterVec
}

// New registers the metrics.
func New(reg prometheus.Registerer) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "tierflow", Subsystem: "relocator", Name: name, Help: help}, labels)
		reg.MustRegister(c)
		return c
	}
	m := &Metrics{
		settledTotal:  counter("settled_total", "View events that needed no move, by reason.", "reason"),
		movedTotal:    counter("relocated_total", "Copies made durable and emitted, by method.", "method"),
		bytesTotal:    counter("relocated_bytes_total", "Bytes of these copies, by method.", "method"),
		releasedTotal: counter("released_total", "Releases, by outcome.", "outcome"),
		tierErrors: counter("tier_errors_total", "Moves and releases that failed because of a tier, by level and kind: no-space, "+
			"tier-refused (it is away, or fails as a whole), suspect (an I/O error, read-only, permissions).", "level", "kind"),
		tierSuspects: prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "tierflow", Subsystem: "relocator", Name: "tier_suspect",
			Help: "1 after an error of kind suspect, until a move that used the tier or a release that removed something there has succeeded."}, []string{"level"}),
		deadLettersTotal: counter("dead_total", "Dead letters, by stage and reason.", "stage", "reason"),
		unreachableTotal: counter("unreachable_total",
			"Entries that wait because no living relocator reaches the tiers they need, by tiers. An entry counts each time it is tried.", "tiers"),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "tierflow", Subsystem: "relocator",
			Name: "relocation_seconds", Help: "Time from the look-up to the durable copy.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 4, 12)}),
		reassignedTotal: prometheus.NewCounter(prometheus.CounterOpts{Namespace: "tierflow", Subsystem: "relocator", Name: "handed_total",
			Help: "Entries reassigned to relocators that reach tiers which this one does not."}),
		lostTotal: prometheus.NewCounter(prometheus.CounterOpts{Namespace: "tierflow", Subsystem: "relocator", Name: "lost_total",
			Help: "Entries that somebody deleted from a stream while they were pending."}),
	}
	reg.MustRegister(m.seconds, m.lostTotal, m.reassignedTotal, m.tierSuspects)
	return m
}

// Lost counts an entry that was deleted while it was pending.
func (m *Metrics) Lost(string) { m.lostTotal.Inc() }

// TierError counts an error of a tier.
func (m *Metrics) TierError(level, kind string) { m.tierErrors.WithLabelValues(level, kind).Inc() }

// TierSuspect says whether a tier is suspect.
func (m *Metrics) TierSuspect(level string, suspect bool) {
	m.tierSuspects.WithLabelValues(level).Set(map[bool]float64{true: 1}[suspect])
}

// Reassigned counts an entry that another relocator has now.
func (m *Metrics) Reassigned() { m.reassignedTotal.Inc() }

// Unreachable counts an entry whose tiers no living relocator reaches.
func (m *Metrics) Unreachable(tiers []string) {
	m.unreachableTotal.WithLabelValues(strings.Join(tiers, ",")).Inc()
}

// Settled counts a view event that needed no move.
func (m *Metrics) Settled(reason string) { m.settledTotal.WithLabelValues(reason).Inc() }

// Released counts a release.
func (m *Metrics) Released(outcome string) { m.releasedTotal.WithLabelValues(outcome).Inc() }

// DeadLetter counts a dead letter.
func (m *Metrics) DeadLetter(stage, reason string) {
	m.deadLettersTotal.WithLabelValues(stage, reason).Inc()
}

// Moved counts a copy that was emitted, its size and the time since its look-up.
func (m *Metrics) Moved(method string, bytes int64, took time.Duration) {
	m.movedTotal.WithLabelValues(method).Inc()
	m.bytesTotal.WithLabelValues(method).Add(float64(bytes))
	m.seconds.Observe(took.Seconds())
}
