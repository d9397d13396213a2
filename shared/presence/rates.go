package presence

import "time"

// window is the time that rates are averages of.
const window = time.Minute

// rates remembers what was counted within the last minute.
type rates struct{ samples []sample }

type sample struct {
	at     time.Time
	totals map[string]int64
}

// add takes note of the totals now, and returns how much they have grown a second within the last minute, or since the first call.
func (r *rates) add(now time.Time, totals map[string]int64) map[string]float64 {
	r.samples = append(r.samples, sample{now, totals})
	for len(r.samples) > 2 && now.Sub(r.samples[1].at) >= window {
		r.samples = r.samples[1:]
	}
	first := r.samples[0]
	seconds := now.Sub(first.at).Seconds()
	grown := map[string]float64{}
	for name, total := range totals {
		grown[name] = 0
		if seconds > 0 {
			grown[name] = float64(total-first.totals[name]) / seconds
		}
	}
	return grown
}
