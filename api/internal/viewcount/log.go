package viewcount

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tierflow/tierflow/shared/item"
)

// A folder holds the log of views and the counts made from it. There is no other state: a counter that starts reads it
// again.
//
//	views-<any>.log              lines "<seconds since 1970, with a fraction> <cid> <viewer>", as docs/nginx.conf writes them:
//	                             a file an hour, only ever appended to
//	<start>-<length>.counts      lines "<cid> <count>": a period that is over, in ms. Its views in the log do not count again
//	clock                        the last reading of the clock, for Clock
const (
	logPrefix, logSuffix = "views-", ".log"
	countsSuffix         = ".counts"

	// maxLine is the longest line that is read.
	maxLine = 16 << 10
	// idle is how long a file of the log must be unchanged before it may be removed. Its hour is over, so nobody writes to
	// it any more.
	idle = 2 * time.Hour
)

// Log reads a folder into a Window. Only one goroutine may use it.
type Log struct {
	dir    string
	window *Window
	read   map[string]int64     // how many bytes of each file of the log were read, by the file's name
	stored map[string]time.Time // files of counts, and when their periods ended

	Malformed int64 // lines that cannot be parsed
}

// OpenLog reads the files of counts that were stored before now. Read does the rest.
//
// A file of a period of the future is from before the clock went back. It gets the name of a period that has just ended: else
// its counts would last until that future, and no view would count before it.
func OpenLog(dir string, w *Window, now time.Time) (*Log, error) {
	l := &Log{dir: dir, window: w, read: map[string]int64{}, stored: map[string]time.Time{}}
	names, err := l.names(countsSuffix)
	if err != nil {
		return nil, err
	}
	ended := w.end(w.at(now) - 1).UnixMilli()
	for i, name := range names {
		var start, length int64
		if _, err := fmt.Sscanf(name, "%d-%d"+countsSuffix, &start, &length); err != nil {
			return nil, fmt.Errorf("%s: its name is not that of a period: %w", filepath.Join(dir, name), err)
		}
		if start+length > now.Add(w.period).UnixMilli() {
			start = ended - length - int64(i) // different files, different names
			past := fmt.Sprintf("%d-%d%s", start, length, countsSuffix)
			if err := os.Rename(filepath.Join(dir, name), filepath.Join(dir, past)); err != nil {
				return nil, err
			}
			name = past
		}
		if err := l.load(name, time.UnixMilli(start)); err != nil {
			return nil, err
		}
		end := time.UnixMilli(start + length)
		l.stored[name] = end
		if end.After(w.closed) {
			w.closed = end
		}
	}
	return l, nil
}

func (l *Log) names(suffix string) ([]string, error) {
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), suffix) && e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// load adds the counts of a period that is over.
func (l *Log) load(name string, start time.Time) error {
	b, err := os.ReadFile(filepath.Join(l.dir, name))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		id, count, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		i, ierr := item.ParseID(id)
		n, nerr := item.ParseCount(count)
		if err := cmp.Or(ierr, nerr); err != nil {
			return fmt.Errorf("%s: %q: %w", filepath.Join(l.dir, name), line, err)
		}
		l.window.restore(start, i, n)
	}
	return nil
}

// Read moves the window to now, reads what was added to the log since the last call, and stores the counts of the periods
// that are over.
func (l *Log) Read(now time.Time) error {
	l.window.Slide(now)
	names, err := l.names(logSuffix)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, logPrefix) {
			if err := l.follow(name); err != nil {
				return err
			}
		}
	}
	for _, period := range l.window.due() {
		if err := l.store(period); err != nil {
			return err
		}
	}
	return nil
}

// follow reads the whole lines that were added to a file since the last time.
func (l *Log) follow(name string) error {
	f, err := os.Open(filepath.Join(l.dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	ahead := info.ModTime().After(l.window.now.Add(slack))
	if _, err := f.Seek(l.read[name], io.SeekStart); err != nil {
		return err
	}
	r := bufio.NewReaderSize(f, maxLine)
	for {
		line, err := r.ReadSlice('\n')
		length := int64(len(line))
		for long := err == bufio.ErrBufferFull; long; long = err == bufio.ErrBufferFull {
			var more []byte
			more, err = r.ReadSlice('\n')
			line, length = nil, length+int64(len(more))
		}
		if err == io.EOF {
			return nil // an unfinished last line is read when its rest is there
		}
		if err != nil {
			return err
		}
		l.read[name] += length
		l.take(bytes.TrimSuffix(line, []byte("\n")), ahead)
	}
}

// take counts a line. ahead says that the clock was ahead when the last line of the file was written, and has gone back since. Views
// of that future are not counted: most are in files of counts, and the others would count again after every restart.
func (l *Log) take(line []byte, ahead bool) {
	seconds, rest, _ := bytes.Cut(line, []byte(" "))
	cid, viewer, found := bytes.Cut(rest, []byte(" "))
	at, err := strconv.ParseFloat(string(seconds), 64)
	id, ierr := item.ParseID(string(cid))
	if !found || err != nil || ierr != nil {
		l.Malformed++
		return
	}
	seen := time.UnixMilli(int64(at * 1000))
	if ahead && seen.After(l.window.now.Add(slack)) {
		return
	}
	l.window.See(seen, id, viewer)
}

// store writes the counts of a period that is over and closes the period. A process that dies before the file has its name
// counts from the log again.
func (l *Log) store(period int64) error {
	of := l.window.counts[period]
	var b bytes.Buffer
	for _, id := range slices.Sorted(maps.Keys(of)) {
		fmt.Fprintf(&b, "%s %s\n", id, of[id])
	}
	end, length := l.window.end(period), l.window.period
	name := fmt.Sprintf("%d-%d%s", end.Add(-length).UnixMilli(), length.Milliseconds(), countsSuffix)
	path := filepath.Join(l.dir, name)
	f, err := os.Create(path + ".new")
	if err != nil {
		return err
	}
	_, err = f.Write(b.Bytes())
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	l.stored[name] = end
	l.window.close(period)
	return nil
}

// Tidy removes the files that no count depends on any more. The caller must have reported all changed counts first. After
// that, nobody needs to know which items were viewed in a period that the window has left.
func (l *Log) Tidy() error {
	start := l.window.end(l.window.oldest - 1)
	var errs []error
	for name, end := range l.stored {
		if !end.After(start) {
			delete(l.stored, name)
			errs = append(errs, os.Remove(filepath.Join(l.dir, name)))
		}
	}
	for name := range l.read {
		path := filepath.Join(l.dir, name)
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			delete(l.read, name) // somebody else removed it
			continue
		}
		written := l.window.now.Add(-idle)
		if open := l.window.open(); open.Before(written) {
			written = open
		}
		old := err == nil && (info.ModTime().Before(written) || info.ModTime().After(l.window.now.Add(idle)))
		if old && info.Size() == l.read[name] {
			delete(l.read, name)
			err = os.Remove(path)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
