package benchmarks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestNumbersShowThreeDigitsOrAllBeforeThePoint(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 0.00123: "0.00123", 0.5678: "0.568", 1: "1.00", 12.34: "12.3", 123.4: "123", 1234.5: "1,234", 1234567: "1,234,567",
	} {
		if got := number(v); got != want {
			t.Errorf("%v is shown as %s, not as %s", v, got, want)
		}
	}
}

func TestTheSubjectsOfACaseAreMeasuredInTurn(t *testing.T) {
	report := &Report{}
	b := &Bench{Options: Options{Rounds: 3, Log: io.Discard}, part: "p", report: report}
	var order []string
	subject := func(name string, values ...float64) Subject {
		return Subject{Name: name, Min: 2, Measure: func(context.Context) (float64, error) {
			order = append(order, name)
			v := values[0]
			values = values[1:]
			return v, nil
		}}
	}
	err := b.Compare(t.Context(), Case{Figure: Figure{Name: "f", Unit: "x/s"}, Ours: subject("a", 10, 20, 60),
		Against: []Subject{subject("b", 5, 20, 20), subject("c", 1, 2, 3)}})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(order, []string{"a", "b", "c", "a", "b", "c", "a", "b", "c"}) {
		t.Errorf("measured in the order %v", order)
	}
	row := report.Rows[0]
	if got := row.Ratios(row.Against[0]); !slices.Equal(got, []float64{2, 1, 3}) {
		t.Errorf("ratios %v", got)
	}
	var table strings.Builder
	if err := report.WriteTable(&table); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"20.0 (10.0 to 60.0)", "2.00 (1.00 to 3.00)", "10.0 (10.0 to 20.0)", "≥ 2.00"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table does not say %s:\n%s", want, table.String())
		}
	}
}

func TestAFailedCheckEndsTheCaseAndKeepsWhatWasMeasured(t *testing.T) {
	report := &Report{}
	b := &Bench{Options: Options{Rounds: 3, Log: io.Discard}, part: "p", report: report}
	lost := errors.New("one post is not in the stream")
	n := 0
	err := b.Compare(t.Context(), Case{Figure: Figure{Name: "f"}, Ours: Subject{Name: "a", Measure: func(context.Context) (float64, error) {
		if n++; n == 2 {
			return 0, lost
		}
		return 1, nil
	}}})
	if !errors.Is(err, lost) || len(report.Rows[0].Values) != 1 {
		t.Errorf("error %v, values %v", err, report.Rows[0].Values)
	}
}

func TestARefusalIsMeasuredAgainButNotForEver(t *testing.T) {
	report := &Report{}
	b := &Bench{Options: Options{Rounds: 1, Log: io.Discard}, part: "p", report: report}
	for refusals, measured := range map[int]int{0: 1, 2: 1, 3: 0} {
		left := refusals
		name := fmt.Sprint(refusals)
		err := b.Compare(t.Context(), Case{Figure: Figure{Name: name}, Ours: Subject{Name: "a", Measure: func(context.Context) (float64, error) {
			if left--; left >= 0 {
				return 0, fmt.Errorf("one post was %w", errRefused)
			}
			return 1, nil
		}}})
		if row := report.row("p", Figure{Name: name}); len(row.Values) != measured || errors.Is(err, errRefused) != (measured == 0) {
			t.Errorf("after %d refusals: error %v, values %v", refusals, err, row.Values)
		}
	}
}

func TestAQuantileIsTheTimeThatSoManyDoNotExceed(t *testing.T) {
	var times []time.Duration
	for i := 1000; i > 0; i-- {
		times = append(times, time.Duration(i)*time.Millisecond)
	}
	for of1000, want := range map[int]float64{0: 1, 500: 501, 990: 991, 999: 1000, 1000: 1000} {
		if got := quantile(times, of1000); got != want {
			t.Errorf("%d of 1,000 are within %v ms, not %v", of1000, want, got)
		}
	}
}
