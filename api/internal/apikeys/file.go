package apikeys

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"
)

// File holds the keys of a file. It reads them again when the file changes. A file that is wrong changes nothing.
type File struct {
	path string
	keys atomic.Pointer[[]Key]
	data []byte // the bytes that the keys were read from
}

// Open reads a file of keys. To follow its changes, start Run.
func Open(path string) (*File, error) {
	f := &File{path: path}
	data, err := read(path)
	if err != nil {
		return nil, err
	}
	ks, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	f.keys.Store(&ks)
	f.data = data
	return f, nil
}

// Keys returns the keys of the last valid file.
func (f *File) Keys() []Key { return *f.keys.Load() }

// again is how often the file is read. The file is small, so comparing its bytes costs little. Its times are less reliable:
// those of a file system may be coarse, and a mounted file may be replaced by an older one.
const again = 500 * time.Millisecond

// Run follows the file until ctx ends, and reports changes: an error where the file is wrong, nil where it is valid again
// or has other keys. It reports the same state once. A change counts when two readings in a row are equal, so Run does not
// take a half-written file for a whole one.
func (f *File) Run(ctx context.Context, changed func(error)) {
	tick := time.NewTicker(again)
	defer tick.Stop()
	last, lastErr := f.data, "" // the result of the reading before
	told := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		data, err := read(f.path)
		text := ""
		if err != nil {
			text = err.Error()
		}
		settled := bytes.Equal(data, last) && text == lastErr
		last, lastErr = data, text
		if !settled {
			continue
		}
		same := err == nil && bytes.Equal(data, f.data)
		if err == nil && !same {
			var ks []Key
			if ks, err = Parse(data); err == nil {
				f.keys.Store(&ks)
				f.data = data
				told = ""
				changed(nil)
				continue
			}
			err = fmt.Errorf("%s: %w", f.path, err)
			text = err.Error()
		}
		if text != told {
			told = text
			changed(err)
		}
	}
}

// read reads a file of keys. Its error names the file.
func read(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	var p *os.PathError
	switch {
	case err != nil && !errors.As(err, &p):
		return nil, fmt.Errorf("read %s: %w", path, err)
	case err != nil:
		return nil, err
	case len(data) > maxFile:
		return nil, fmt.Errorf("%s: it is longer than %d bytes", path, maxFile)
	}
	return data, nil
}
