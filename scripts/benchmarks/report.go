package benchmarks

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Report has all that a run has measured. --json writes it as JSON.
type Report struct {
	Machine   Machine     `json:"machine"`
	Quick     bool        `json:"quick"`
	StartedAt time.Time   `json:"started_at"`
	Rows      []*Row      `json:"rows"`
	Timelines []*Timeline `json:"timelines,omitempty"`
	Errors    []string    `json:"errors,omitempty"` // of failed checks and failed measurements
}

// Row is a figure with its values, one for each round.
type Row struct {
	Part    string    `json:"part"`
	Name    string    `json:"name"`
	Unit    string    `json:"unit"`
	Values  []float64 `json:"values"`
	Min     float64   `json:"min,omitempty"` // wanted
	Max     float64   `json:"max,omitempty"` // wanted
	Against []Against `json:"against,omitempty"`
}

// Against is what a row is compared with. Its values come from the same rounds as the row's.
type Against struct {
	Name   string    `json:"name"`
	Values []float64 `json:"values"`
	Min    float64   `json:"min,omitempty"` // wanted ratio
	Max    float64   `json:"max,omitempty"` // wanted ratio
}

// row returns the row of a figure, and makes it if there is none.
func (r *Report) row(part string, f Figure) *Row {
	for _, row := range r.Rows {
		if row.Part == part && row.Name == f.Name && row.Unit == f.Unit {
			return row
		}
	}
	row := &Row{Part: part, Name: f.Name, Unit: f.Unit, Min: f.Min, Max: f.Max}
	r.Rows = append(r.Rows, row)
	return row
}

// Ratios returns the row's value divided by the other's, for each round.
func (r *Row) Ratios(a Against) []float64 {
	var ratios []float64
	for i, v := range a.Values {
		ratios = append(ratios, r.Values[i]/v)
	}
	return ratios
}

// spread is the minimum, the median and the maximum.
type spread struct{ min, median, max float64 }

func spreadOf(values []float64) spread {
	if len(values) == 0 {
		return spread{math.NaN(), math.NaN(), math.NaN()}
	}
	s := slices.Sorted(slices.Values(values))
	return spread{s[0], (s[(len(s)-1)/2] + s[len(s)/2]) / 2, s[len(s)-1]}
}

// String is "median (min to max)".
func (s spread) String() string {
	if s.min == s.max {
		return number(s.median)
	}
	return fmt.Sprintf("%s (%s to %s)", number(s.median), number(s.min), number(s.max))
}

// number formats with three digits, or with all digits before the point, and with commas.
func number(v float64) string {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return "-"
	}
	digits := 0
	if v != 0 {
		digits = max(0, 2-int(math.Floor(math.Log10(math.Abs(v)))))
	}
	text := strconv.FormatFloat(v, 'f', digits, 64)
	whole, rest, point := strings.Cut(text, ".")
	if whole = grouped(whole); point {
		return whole + "." + rest
	}
	return whole
}

// grouped puts commas between the thousands.
func grouped(whole string) string {
	for i := len(whole) - 3; i > 0; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	return whole
}

// WriteTable writes the report as a Markdown table of medians, with the minimum and the maximum.
func (r *Report) WriteTable(w io.Writer) error {
	table := [][]string{{"part", "what", "unit", "Tierflow", "against", "its figure", "ratio", "wanted"}}
	for _, row := range r.Rows {
		ours := spreadOf(row.Values)
		against := row.Against
		if row.Min != 0 || row.Max != 0 || len(against) == 0 {
			table = append(table, []string{row.Part, row.Name, row.Unit, ours.String(), "", "", "", wanted(row.Min, row.Max, ours)})
		}
		for _, a := range against {
			ratio := spreadOf(row.Ratios(a))
			table = append(table, []string{row.Part, row.Name, row.Unit, ours.String(), a.Name, spreadOf(a.Values).String(),
				ratio.String(), wanted(a.Min, a.Max, ratio)})
		}
	}
	_, err := fmt.Fprintf(w, "%s\n\n%s", r.Machine, markdown(table))
	return err
}

// wanted returns the text of the wanted value, and whether the median reaches it.
func wanted(minimum, maximum float64, s spread) string {
	var text string
	reached := true
	switch {
	case minimum != 0:
		text, reached = "≥ "+number(minimum), s.median >= minimum
	case maximum != 0:
		text, reached = "≤ "+number(maximum), s.median <= maximum
	}
	if !reached {
		text += " missed"
	}
	return text
}

// markdown writes rows in columns; the first row is the header. In the columns that name a row, it leaves out the leading
// cells that repeat those of the row above.
func markdown(table [][]string) string {
	const names = 4 // columns
	width := make([]int, len(table[0]))
	for _, row := range table {
		for i, cell := range row {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	line := func(cells []string, pad string) {
		for i, cell := range cells {
			b.WriteString("| " + cell + strings.Repeat(pad, width[i]-utf8.RuneCountInString(cell)) + " ")
		}
		b.WriteString("|\n")
	}
	line(table[0], " ")
	line(make([]string, len(width)), "-")
	for i, row := range table[1:] {
		shown := slices.Clone(row)
		for j := 0; j < names && row[j] == table[i][j]; j++ {
			shown[j] = ""
		}
		line(shown, " ")
	}
	return b.String()
}

// quantile returns the time, in milliseconds, that so many of 1,000 times do not exceed. It sorts them.
func quantile(times []time.Duration, of1000 int) float64 {
	slices.Sort(times)
	return float64(times[min(len(times)*of1000/1000, len(times)-1)].Microseconds()) / 1000
}
