// Package metrics has what the relocator counts. It touches nothing but a Prometheus registry. It is one package because
// some metrics have more than one writer: relocations and releases both write dead letters.
package metrics

import (
	"strings"
	"sync/atomic"
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
	tierStates       *prometheus.GaugeVec
	reassignedTotal  prometheus.Counter
	unreachableTotal *prometheus.CounterVec

	moves, bytes atomic.Int64 // by all methods
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
		tierStates: prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "tierflow", Subsystem: "relocator", Name: "tier_state",
			Help: "1 for the state of each tier, 0 for the others: usable, unknown (not looked at yet), away, failing (cannot be written to), " +
				"full, hanging."}, []string{"level", "state"}),
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
	reg.MustRegister(m.seconds, m.lostTotal, m.reassignedTotal, m.tierSuspects, m.tierStates)
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

// TierState says which one of all states a tier has.
func (m *Metrics) TierState(level, state string, all []string) {
	for _, s := range all {
		m.tierStates.WithLabelValues(level, s).Set(map[bool]float64{true: 1}[s == state])
	}
}

// waiting reports how many entries wait, by reason.
type waiting struct {
	desc *prometheus.Desc
	now  func() map[string]int
}

func (w waiting) Describe(ch chan<- *prometheus.Desc) { ch <- w.desc }

func (w waiting) Collect(ch chan<- prometheus.Metric) {
	for reason, n := range w.now() {
		if reason == "" {
			reason = "retry"
		}
		ch <- prometheus.MustNewConstMetric(w.desc, prometheus.GaugeValue, float64(n), reason)
	}
}

// Waiting registers the gauge of entries that wait. now tells how many do, by reason; no reason: the next attempt.
func Waiting(reg prometheus.Registerer, now func() map[string]int) {
	reg.MustRegister(waiting{prometheus.NewDesc("tierflow_relocator_waiting",
		"Entries that wait here, by reason: count (the item's row was written a moment ago), grace, lock (another worker has the item), "+
			"retry (the next attempt), server (Redis or MySQL), slot (all that their tiers may have are taken), tier, tier-away, "+
			"tier-failing, tier-full, tier-hanging, tier-unknown, unreachable.",
		[]string{"reason"}, nil), now})
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
	m.moves.Add(1)
	m.bytes.Add(bytes)
	m.movedTotal.WithLabelValues(method).Inc()
	m.bytesTotal.WithLabelValues(method).Add(float64(bytes))
	m.seconds.Observe(took.Seconds())
}

// MovedTotal returns how many copies were emitted, and their bytes.
func (m *Metrics) MovedTotal() (moves, bytes int64) { return m.moves.Load(), m.bytes.Load() }
