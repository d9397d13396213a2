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
