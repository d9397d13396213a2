package mover

import (
	"testing"
	"time"
)

func TestWhatWasLeftBeforeTheClockWentBackIsSwept(t *testing.T) {
	now := time.Now()
	for age, want := range map[time.Duration]bool{0: false, time.Minute: false, -time.Minute: false, 3 * time.Minute: true,
		-time.Hour: true, -365 * 24 * time.Hour: true} {
		if got := outdated(now.Add(-age), now, 2*time.Minute); got != want {
			t.Errorf("changed %v ago: swept: %v", age, got)
		}
	}
}
