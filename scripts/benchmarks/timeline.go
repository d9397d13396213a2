package benchmarks

import (
	"context"
	"slices"
	"time"
)

// Timeline is how the streams filled and emptied during a measurement. Time 0 is the last sample before the first accepted
// count.
type Timeline struct {
	Part        string   `json:"part"`
	Name        string   `json:"name"`
	PostingEnds float64  `json:"posting_ends_s"`
	Moments     []Moment `json:"moments"` // one each sampleEvery, and one when all is settled
}

// Moment is a sample of the streams. Its numbers count from the beginning of the measurement.
type Moment struct {
	Seconds  float64 `json:"s"`
	Accepted int64   `json:"accepted"` // view events
	Settled  int64   `json:"settled"`  // view events
	Lag      int64   `json:"lag"`      // entries of all streams that are not settled

	at time.Time
}

// sampleEvery is the time between two samples. A sample costs Redis one transaction of four commands.
const sampleEvery = 100 * time.Millisecond

// watchStreams samples the streams until the caller calls stop, which returns the samples.
func (w *whole) watchStreams(ctx context.Context) (stop func() ([]Moment, error)) {
	var moments []Moment
	sample := func() error {
		m, err := w.look(ctx)
		if err == nil {
			moments = append(moments, m)
		}
		return err
	}
	stopping, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		tick := time.NewTicker(sampleEvery)
		defer tick.Stop()
		err := sample()
		for err == nil {
			select {
			case <-stopping:
				stopped <- sample()
				return
			case <-tick.C:
				err = sample()
			}
		}
		stopped <- err
	}()
	return func() ([]Moment, error) {
		close(stopping)
		err := <-stopped
		return moments, err
	}
}

// timeline records the samples of a measurement whose posting ended at the given time. Of several with one name, the last
// stays.
func (r *Report) timeline(part, name string, moments []Moment, ended time.Time) {
	first := slices.IndexFunc(moments, func(m Moment) bool { return m.Accepted > 0 })
	if first < 0 {
		return
	}
	moments = moments[max(first-1, 0):]
	// The last sample comes when all is settled. A rate over a few milliseconds would say nothing.
	if n := len(moments); n > 2 && moments[n-1].at.Sub(moments[n-2].at) < sampleEvery/2 {
		moments = slices.Delete(moments, n-2, n-1)
	}
	begin := moments[0].at
	for i := range moments {
		moments[i].Seconds = moments[i].at.Sub(begin).Seconds()
	}
	t := &Timeline{Part: part, Name: name, PostingEnds: ended.Sub(begin).Seconds(), Moments: moments}
	for i, old := range r.Timelines {
		if old.Part == part && old.Name == name {
			r.Timelines[i] = t
			return
		}
	}
	r.Timelines = append(r.Timelines, t)
}

// rates returns how fast a number grew before each moment, a second; that of the first moment is 0.
func (t *Timeline) rates(of func(Moment) int64) []float64 {
	rates := make([]float64, len(t.Moments))
	for i := 1; i < len(t.Moments); i++ {
		before, now := t.Moments[i-1], t.Moments[i]
		if took := now.Seconds - before.Seconds; took > 0 {
			rates[i] = float64(of(now)-of(before)) / took
		}
	}
	return rates
}
