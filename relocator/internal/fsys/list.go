package fsys

import (
	"context"

	"github.com/tierflow/tierflow/shared/batch"
)

// Lister lists one folder once for all callers that ask at the same time. A folder in which many operations work has many
// entries, and each caller would read all of them.
type Lister struct {
	dir *File
	run *batch.Runner[struct{}, listing]
}

type listing struct {
	names []string
	err   error
}

// NewLister makes the Lister of an open folder.
func NewLister(dir *File) *Lister {
	return &Lister{dir, batch.New(maxListBatch, func(callers []struct{}) []listing {
		var l listing
		l.err = FS{}.Each("", dir, func(names []string) error {
			l.names = append(l.names, names...)
			return nil
		})
		all := make([]listing, len(callers))
		for i := range all {
			all[i] = l
		}
		return all
	})}
}

// maxListBatch bounds how many callers share one listing.
const maxListBatch = 1024

// ListShared lists a Lister's folder, in no order. It returns every name that was there when it was called and is still
// there when it returns. Callers share the slice and must not change it.
func (s FS) ListShared(step Step, l *Lister) ([]string, error) {
	defer s.InFlight.begin(l.dir.path).end()
	if skip, err := s.callHook(step, l.dir.path); skip || err != nil {
		return nil, err
	}
	// There is no way to give up waiting: the folder must stay open while it is read.
	got, _ := l.run.Do(context.Background(), struct{}{})
	if got.err != nil {
		return nil, pathError(step, l.dir.path, got.err)
	}
	return got.names, nil
}
