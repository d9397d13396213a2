package benchmarks

import (
	"os"
	"testing"
	"time"
)

func TestTheCPUTimeOfAProcessGrowsAsItWorks(t *testing.T) {
	m, err := startMeter(map[string]int{"this": os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		used, err := m.used()
		if err != nil {
			t.Fatal(err)
		}
		if used["this"] >= 50*time.Millisecond {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("a minute of work is said to have taken %v", used["this"])
		}
	}
}

func TestAQuantileIsTheTimeWithinWhichSoManyAre(t *testing.T) {
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
