package fsys

import (
	"context"

	"github.com/tierflow/tierflow/shared/batch"
)

// Lister lists one folder for all who ask at the same time. A folder in which many work at once is long, and each of
// them would read all of it.
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
	return &Lister{dir, batch.New(listMost, func(asked []struct{}) []listing {
		var l listing
		l.err = FS{}.Each("", dir, func(names []string) error {
			l.names = append(l.names, names...)
			return nil
		})
		all := make([]listing, len(asked))
		for i := range all {
			all[i] = l
		}
		return all
	})}
}

// listMost bounds who is served together.
const listMost = 1024

// ListShared is List of a Lister's folder, in no order: it has every name that was there, and stayed, when it was called. The
// names are not to be changed.
func (s FS) ListShared(step Step, l *Lister) ([]string, error) {
	if skip, err := s.ask(step, l.dir.path); skip || err != nil {
		return nil, err
	}
	got, _ := l.run.Do(context.Background(), struct{}{}) // its folder must stay open
	if got.err != nil {
		return nil, pathError(step, l.dir.path, got.err)
	}
	return got.names, nil
}
