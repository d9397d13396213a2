package benchmarks

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// ran makes samples of a measurement that accepts 100 counts in the second 1 and settles them in the second 2.
func ran(begin time.Time) []Moment {
	at := func(seconds int, accepted, settled int64) Moment {
		return Moment{at: begin.Add(time.Duration(seconds) * time.Second), Accepted: accepted, Settled: settled, Lag: accepted - settled}
	}
	return []Moment{at(0, 0, 0), at(1, 0, 0), at(2, 100, 0), at(3, 100, 100)}
}

func TestATimelineBeginsWithTheFirstAcceptedCount(t *testing.T) {
	begin := time.Now()
	r := &Report{}
	r.timeline("p", "n", ran(begin), begin.Add(2*time.Second))
	r.timeline("p", "n", ran(begin), begin.Add(2*time.Second))
	r.timeline("p", "nothing accepted", ran(begin)[:2], begin)
	if len(r.Timelines) != 1 {
		t.Fatalf("%d timelines", len(r.Timelines))
	}
	got := r.Timelines[0]
	if got.PostingEnds != 1 || len(got.Moments) != 3 || got.Moments[2].Seconds != 2 {
		t.Errorf("the timeline is %+v", got)
	}
	accepted, settled := got.rates(func(m Moment) int64 { return m.Accepted }), got.rates(func(m Moment) int64 { return m.Settled })
	if !slices.Equal(accepted, []float64{0, 100, 0}) || !slices.Equal(settled, []float64{0, 0, 100}) {
		t.Errorf("the rates are %v and %v", accepted, settled)
	}
}

func TestAPlotIsXMLWithALineForEachRateAndTheLag(t *testing.T) {
	begin := time.Now()
	r := &Report{Quick: true, Machine: Machine{Cores: 2, CPU: "a <fast> one"}}
	r.timeline("p", "first & only", ran(begin), begin.Add(2*time.Second))
	r.timeline("p", "second", ran(begin), begin.Add(2*time.Second))
	dir := t.TempDir()
	if err := r.WritePlots(dir); err != nil {
		t.Fatal(err)
	}
	svg, err := os.ReadFile(filepath.Join(dir, "p.svg"))
	if err != nil {
		t.Fatal(err)
	}
	lines := 0
	for d := xml.NewDecoder(strings.NewReader(string(svg))); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v:\n%s", err, svg)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "polyline" {
			lines++
		}
	}
	if lines != 6 {
		t.Errorf("%d lines in:\n%s", lines, svg)
	}
	for _, want := range []string{"first &amp; only", "second", "a &lt;fast&gt; one", "a short run"} {
		if !strings.Contains(string(svg), want) {
			t.Errorf("the plot does not say %q", want)
		}
	}
	if strings.Contains(string(svg), "NaN") || strings.Contains(string(svg), "Inf") {
		t.Errorf("a number is none:\n%s", svg)
	}
}

func TestTheStepsOfAnAxisAreRoundNumbers(t *testing.T) {
	for whole, want := range map[float64]float64{1: 0.5, 3: 1, 31: 20, 48_000: 20_000, 60_001: 50_000, 0.5: 0.2} {
		if got := niceStep(whole, 3); got != want {
			t.Errorf("the steps of %v are %v, not %v", whole, got, want)
		}
	}
}
