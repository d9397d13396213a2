package benchmarks

import (
	"encoding/xml"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// WritePlots writes the timelines of each part as <part>.svg into a folder.
func (r *Report) WritePlots(folder string) error {
	byPart := map[string][]*Timeline{}
	for _, t := range r.Timelines {
		byPart[t.Part] = append(byPart[t.Part], t)
	}
	note := r.StartedAt.Format("2006-01-02") + ", " + fmt.Sprintf("%d cores of %s", r.Machine.Cores, r.Machine.CPU)
	if r.Quick {
		note += ", a short run: its figures say little"
	}
	for part, timelines := range byPart {
		if err := os.WriteFile(filepath.Join(folder, part+".svg"), plotted(note, timelines), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// The sizes of a plot, in pixels. Each timeline has a row with two charts: rates on the left, the lag on the right.
const (
	plotWidth   = 960
	rowHeight   = 200
	topMargin   = 50
	chartWidth  = 380
	chartHeight = 120
	leftChart   = 70
	rightChart  = 550
)

// The colours of the lines. They differ in brightness as well.
const (
	colourAccepted = "#9ecae1"
	colourSettled  = "#08519c"
	colourLag      = "#b15928"
)

// dashed is the style of the line that shows when posting ends.
const dashed = `stroke="#666" stroke-dasharray="4 3"`

// line is one line of a chart, with one value for each moment of the timeline.
type line struct {
	colour string
	values []float64
}

// plotted returns the SVG of the timelines, one below the other. The note says where they come from.
func plotted(note string, timelines []*Timeline) []byte {
	var b strings.Builder
	height := topMargin + rowHeight*len(timelines)
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif" font-size="12" fill="#333">`+"\n",
		plotWidth, height, plotWidth, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", plotWidth, height)
	text(&b, leftChart, 18, "start", note)
	x := leftChart
	for _, l := range []struct{ colour, name string }{
		{colourAccepted, "accepted a second"}, {colourSettled, "settled a second"}, {colourLag, "unsettled entries"},
	} {
		if l.colour == colourLag {
			x = rightChart
		}
		fmt.Fprintf(&b, `<rect x="%d" y="31" width="14" height="6" fill="%s"/>`+"\n", x, l.colour)
		text(&b, float64(x+20), 38, "start", l.name)
		x += 160
	}
	stroke(&b, float64(x), 34, float64(x+14), 34, dashed)
	text(&b, float64(x+20), 38, "start", "posting ends")
	for i, t := range timelines {
		top := topMargin + i*rowHeight
		text(&b, leftChart, float64(top+18), "start", t.Name)
		lag := make([]float64, len(t.Moments))
		for i, m := range t.Moments {
			lag[i] = float64(m.Lag)
		}
		t.chart(&b, leftChart, top+30,
			line{colourAccepted, t.rates(func(m Moment) int64 { return m.Accepted })},
			line{colourSettled, t.rates(func(m Moment) int64 { return m.Settled })})
		t.chart(&b, rightChart, top+30, line{colourLag, lag})
	}
	b.WriteString("</svg>\n")
	return []byte(b.String())
}

// chart draws lines over the time. A dashed line shows when posting ended.
func (t *Timeline) chart(b *strings.Builder, left, top int, lines ...line) {
	end, most := t.PostingEnds, 1.0
	for _, m := range t.Moments {
		end = max(end, m.Seconds)
	}
	for _, l := range lines {
		for _, v := range l.values {
			most = max(most, v)
		}
	}
	stepX, stepY := niceStep(end, 6), niceStep(most, 3)
	most = math.Ceil(most/stepY) * stepY
	x := func(seconds float64) float64 { return float64(left) + seconds/end*chartWidth }
	y := func(v float64) float64 { return float64(top+chartHeight) - v/most*chartHeight }
	for i := 0; float64(i)*stepY <= most; i++ {
		v := float64(i) * stepY
		stroke(b, x(0), y(v), x(end), y(v), `stroke="#ddd"`)
		text(b, x(0)-6, y(v)+4, "end", tick(v))
	}
	for i := 0; float64(i)*stepX <= end; i++ {
		v := float64(i) * stepX
		text(b, x(v), float64(top+chartHeight+16), "middle", tick(v)+" s")
	}
	stroke(b, x(t.PostingEnds), y(0), x(t.PostingEnds), y(most), dashed)
	for _, l := range lines {
		fmt.Fprintf(b, `<polyline fill="none" stroke="%s" stroke-width="1.5" points="`, l.colour)
		for i, v := range l.values {
			fmt.Fprintf(b, "%.1f,%.1f ", x(t.Moments[i].Seconds), y(v))
		}
		b.WriteString("\"/>\n")
	}
}

// niceStep returns 1, 2 or 5 times a power of ten, of which at most n make up the whole.
func niceStep(whole float64, n int) float64 {
	least := whole / float64(n)
	power := math.Pow(10, math.Floor(math.Log10(least)))
	for _, times := range []float64{1, 2, 5} {
		if times*power >= least {
			return times * power
		}
	}
	return 10 * power
}

// tick formats the number at a tick of an axis.
func tick(v float64) string {
	if v < 10 && v != math.Trunc(v) {
		return fmt.Sprintf("%.1f", v)
	}
	return grouped(strconv.FormatFloat(v, 'f', 0, 64))
}

func text(b *strings.Builder, x, y float64, anchor, s string) {
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="%s">`, x, y, anchor)
	_ = xml.EscapeText(b, []byte(s)) // a Builder takes everything
	b.WriteString("</text>\n")
}

func stroke(b *strings.Builder, x1, y1, x2, y2 float64, style string) {
	fmt.Fprintf(b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" %s/>`+"\n", x1, y1, x2, y2, style)
}
