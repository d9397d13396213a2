package batch

// Waiting is how many calls gather for the next batch.
func Waiting[In, Out any](r *Runner[In, Out]) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.waiting)
}
