package fsys

import (
	"sync"
	"time"
)

// InFlight knows the operations that have begun and not returned. The zero value is usable. It is safe for concurrent use.
type InFlight struct {
	mu             sync.Mutex
	oldest, newest *operation
}

// operation is an element of the list of all that are in flight, in the order of their begin.
type operation struct {
	in          *InFlight
	path        string
	began       time.Time
	older, next *operation
}

// Slow returns the paths of the operations that began longer ago than that, the oldest first. For an operation on a name it may
// be the path of the folder.
func (i *InFlight) Slow(than time.Duration) (paths []string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for o := i.oldest; o != nil && time.Since(o.began) > than; o = o.next {
		paths = append(paths, o.path)
	}
	return paths
}

// begin notes an operation; nil where nobody wants to know.
func (i *InFlight) begin(path string) *operation {
	if i == nil {
		return nil
	}
	o := &operation{in: i, path: path, began: time.Now()}
	i.mu.Lock()
	defer i.mu.Unlock()
	if o.older = i.newest; o.older == nil {
		i.oldest = o
	} else {
		o.older.next = o
	}
	i.newest = o
	return o
}

// end notes that the operation has returned.
func (o *operation) end() {
	if o == nil {
		return
	}
	i := o.in
	i.mu.Lock()
	defer i.mu.Unlock()
	if o.older == nil {
		i.oldest = o.next
	} else {
		o.older.next = o.next
	}
	if o.next == nil {
		i.newest = o.older
	} else {
		o.next.older = o.older
	}
}
