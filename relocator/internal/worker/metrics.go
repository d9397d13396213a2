package worker

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are what the workers count.
type Metrics struct {
	settledTotal  *prometheus.CounterVec
	movedTotal    *prometheus.CounterVec
	bytesTotal    *prometheus.CounterVec
	seconds       prometheus.Histogram
	releasedTotal *prometheus.CounterVec
	deadTotal     *prometheus.CounterVec
	lostTotal     prometheus.Counter
	tierErrors    *prometheus.CounterVec
	tierSuspects  *prometheus.GaugeVec
	handedTotal   prometheus.Counter
	nobodyTotal   *prometheus.CounterVec
}

// NewMetrics registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
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
		tierErrors: counter("tier_errors_total", "Moves and releases that a tier has stopped, by level and kind: no-space, "+
			"tier-refused (it is away, or fails as a whole), suspect (an I/O error, read-only, permissions).", "level", "kind"),
		tierSuspects: prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "tierflow", Subsystem: "relocator", Name: "tier_suspect",
			Help: "1 from an error of kind suspect until a move that used the tier, or a release that cleared something there, has succeeded."}, []string{"level"}),
		deadTotal: counter("dead_total", "Entries that failed for good, by stage and reason.", "stage", "reason"),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "tierflow", Subsystem: "relocator",
			Name: "relocation_seconds", Help: "From the look-up to the durable copy.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 4, 12)}),
	}
	m.nobodyTotal = counter("unreachable_total",
		"Entries looked at, perhaps again, that need tiers which no living relocator reaches, by tiers.", "tiers")
	m.handedTotal = prometheus.NewCounter(prometheus.CounterOpts{Namespace: "tierflow", Subsystem: "relocator", Name: "handed_total",
		Help: "Entries given to relocators that reach tiers which this one does not."})
	m.lostTotal = prometheus.NewCounter(prometheus.CounterOpts{Namespace: "tierflow", Subsystem: "relocator", Name: "lost_total",
		Help: "Entries that somebody deleted from a stream while they were pending."})
	reg.MustRegister(m.seconds, m.lostTotal, m.handedTotal, m.tierSuspects)
	return m
}

// Lost counts an entry that was deleted while it was pending.
func (m *Metrics) Lost(string) { m.lostTotal.Inc() }

func (m *Metrics) tierError(level, kind string) { m.tierErrors.WithLabelValues(level, kind).Inc() }
func (m *Metrics) tierSuspect(level string, is bool) {
	m.tierSuspects.WithLabelValues(level).Set(map[bool]float64{true: 1}[is])
}

func (m *Metrics) handed() { m.handedTotal.Inc() }
func (m *Metrics) unreachable(tiers []string) {
	m.nobodyTotal.WithLabelValues(strings.Join(tiers, ",")).Inc()
}

func (m *Metrics) settled(reason string)     { m.settledTotal.WithLabelValues(reason).Inc() }
func (m *Metrics) released(outcome string)   { m.releasedTotal.WithLabelValues(outcome).Inc() }
func (m *Metrics) dead(stage, reason string) { m.deadTotal.WithLabelValues(stage, reason).Inc() }
func (m *Metrics) moved(method string, bytes int64, took time.Duration) {
	m.movedTotal.WithLabelValues(method).Inc()
	m.bytesTotal.WithLabelValues(method).Add(float64(bytes))
	m.seconds.Observe(took.Seconds())
}
