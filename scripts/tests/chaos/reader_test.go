package chaos_test

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/item"
)

// reader looks each item up and reads it, again and again (G1).
type reader struct {
	w     *world
	roots map[string]string  // of the levels
	want  map[item.ID]string // digests
	stop  func()

	mu    sync.Mutex
	found []string
}

// read starts a reader, which knows the bytes of the samples.
func (w *world) read(samples []stack.Sample) *reader {
	w.t.Helper()
	r := &reader{w: w, roots: map[string]string{}, want: map[item.ID]string{}}
	levels, err := w.Catalog.Levels(w.t.Context())
	w.must("read the levels", err)
	for _, l := range levels {
		r.roots[l.Name] = l.Path
	}
	for _, s := range samples {
		digest, err := stack.Digest(filepath.Join(r.roots[s.Level], s.Filename))
		w.must("read a sample", err)
		r.want[s.ID] = digest
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			for id := range r.want {
				r.look(ctx, id)
			}
			select {
			case <-ctx.Done():
			case <-time.After(5 * time.Millisecond): // leaves CPU time to the others
			}
		}
	}()
	r.stop = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	return r
}

// look reads one item where its row says. A finding counts only where the row is the same afterwards: a commit and a
// release both raise the generation before they change anything that is read.
func (r *reader) look(ctx context.Context, id item.ID) {
	before, err := r.w.Catalog.Row(ctx, id)
	if err != nil {
		return // MySQL is away
	}
	there, changes := r.w.presence.of(before.Level)
	if !there {
		return // its tier is away; the others are not
	}
	digest, failed := stack.Digest(filepath.Join(r.roots[before.Level], before.Filename))
	if failed == nil && digest == r.want[id] {
		return
	}
	if _, now := r.w.presence.of(before.Level); now != changes {
		return
	}
	after, err := r.w.Catalog.Row(ctx, id)
	if err != nil || after.Generation != before.Generation {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.found = append(r.found, fmt.Sprintf("%s item %s on %s, generation %d: %v, digest %q, want %q",
		time.Now().Format("15:04:05.000"), id, before.Level, before.Generation, failed, digest, r.want[id]))
}

func (r *reader) problems() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	found := r.found
	r.found = nil
	return found
}
