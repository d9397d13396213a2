package batch

// Waiting returns the number of calls that wait for the next batch.
func Waiting[In, Out any](r *Runner[In, Out]) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.waiting)
}
