package benchmarks

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/shared/batch"
)

// A bare program checks nothing that it finds, and relies on having its files for itself. Its speed is the best that the
// disk and the kernel can do.

// loop moves all files in the simplest way: fsync, link, fsync, unlink, fsync, by 32 goroutines.
func (t *trees) loop() (time.Duration, error) {
	folders := map[string]int{}
	for i := range (t.n + 999) / 1000 {
		for _, dir := range []string{t.a, t.b} {
			path := filepath.Join(dir, fmt.Sprintf("%02d", i))
			if err := os.MkdirAll(path, 0o755); err != nil {
				return 0, err
			}
			fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_DIRECTORY, 0)
			if err != nil {
				return 0, err
			}
			defer func() { _ = syscall.Close(fd) }()
			folders[path] = fd
		}
	}
	return t.swapBare(32, func(_ int, from, to string) error {
		return moveBare(from, to, folders[filepath.Dir(from)], folders[filepath.Dir(to)])
	})
}

func moveBare(from, to string, fromFolder, toFolder int) error {
	fd, err := syscall.Open(from, syscall.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = syscall.Close(fd) }()
	return inTurn(
		func() error { return syscall.Fsync(fd) },
		func() error { return syscall.Link(from, to) },
		func() error { return syscall.Fsync(toFolder) },
		func() error { return syscall.Unlink(from) },
		func() error { return syscall.Fsync(fromFolder) },
	)
}

// atOnce is the number of moves that a relocator has under way at once.
const atOnce = 256

// steps moves all files by the steps of the mover, and shares syncs between moves as the mover does. It makes a link in
// tmp/, syncs, makes the link with the name, syncs, and removes the link in tmp/. Then it moves the old file out of the
// way, removes it, and syncs.
func (t *trees) steps() (time.Duration, error) {
	s, err := newBareScratch(t.a)
	if err != nil {
		return 0, err
	}
	defer s.close()
	return t.swapBare(atOnce, func(w int, from, to string) error {
		temp := filepath.Join(s.tmp, filepath.Base(from))
		return inTurn(
			func() error { return syscall.Link(from, temp) },
			s.sync,
			func() error { return syscall.Link(temp, to) },
			s.sync,
			func() error { return syscall.Unlink(temp) },
			func() error { return s.release(w, from) },
			s.sync,
		)
	})
}

// copies moves new files from memory to the disk by the steps of the mover: it syncs what it has written, reads it back and
// compares it.
func (t *trees) copies() (time.Duration, error) {
	if err := t.refill(); err != nil {
		return 0, err
	}
	s, err := newBareScratch(t.b)
	if err != nil {
		return 0, err
	}
	defer s.close()
	source, err := newBareScratch(t.memory)
	if err != nil {
		return 0, err
	}
	defer source.close()
	return t.eachFile(t.memory, t.b, atOnce, func(w int, from, to string) error {
		temp := filepath.Join(s.tmp, filepath.Base(from))
		return inTurn(
			func() error { return copyBare(from, temp, s.sync) },
			func() error { return syscall.Link(temp, to) },
			s.sync,
			func() error { return syscall.Unlink(temp) },
			func() error { return source.release(w, from) },
		)
	})
}

func copyBare(from, to string, sync func() error) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.Sum256(data)
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := sync(); err != nil {
		return err
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return err
	}
	if _, err := f.ReadAt(data, 0); err != nil {
		return err
	}
	if again := sha256.Sum256(data); !bytes.Equal(sum[:], again[:]) {
		return fmt.Errorf("%s: what was read back differs", to)
	}
	return nil
}

// swapBare moves all files from a to b by so many goroutines. The next call moves them back.
func (t *trees) swapBare(workers int, move func(w int, from, to string) error) (time.Duration, error) {
	took, err := t.eachFile(t.a, t.b, workers, move)
	t.a, t.b = t.b, t.a
	return took, err
}

// eachFile moves all files from a to b by so many goroutines, and checks the result.
func (t *trees) eachFile(a, b string, workers int, move func(w int, from, to string) error) (time.Duration, error) {
	next := make(chan int, t.n)
	for i := range t.n {
		next <- i
		if i%1000 == 0 {
			if err := os.MkdirAll(filepath.Join(b, fmt.Sprintf("%02d", i/1000)), 0o755); err != nil {
				return 0, err
			}
		}
	}
	close(next)
	syscall.Sync()
	begin := time.Now()
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range next {
				name := fmt.Sprintf("%02d/%05d.mp4", i/1000, i)
				if errs[w] = move(w, filepath.Join(a, name), filepath.Join(b, name)); errs[w] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(begin)
	return took, errors.Join(errors.Join(errs...), t.check(a, b))
}

// bareScratch holds the folders beside a tree that its files pass through during a move, and its shared syncs.
type bareScratch struct {
	dir, tmp string
	released []string // a folder for each goroutine
	fd       int
	syncs    *batch.Runner[struct{}, error]
}

func newBareScratch(tree string) (_ *bareScratch, err error) {
	s := &bareScratch{dir: tree + ".scratch", fd: -1}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	s.tmp = filepath.Join(s.dir, "tmp")
	if err := os.MkdirAll(s.tmp, 0o755); err != nil {
		return nil, err
	}
	for w := range atOnce {
		s.released = append(s.released, filepath.Join(s.dir, "released-"+strconv.Itoa(w)))
		if err := os.Mkdir(s.released[w], 0o755); err != nil {
			return nil, err
		}
	}
	if s.fd, err = syscall.Open(s.dir, syscall.O_RDONLY|syscall.O_DIRECTORY, 0); err != nil {
		return nil, err
	}
	s.syncs = batch.New(atOnce, func(asked []struct{}) []error {
		err := unix.Syncfs(s.fd)
		errs := make([]error, len(asked))
		for i := range errs {
			errs[i] = err
		}
		return errs
	})
	return s, nil
}

func (s *bareScratch) close() {
	_ = syscall.Close(s.fd)
	_ = os.RemoveAll(s.dir)
}

// sync returns when a sync that has begun after the call is over.
func (s *bareScratch) sync() error {
	failed, err := s.syncs.Do(context.Background(), struct{}{})
	return errors.Join(failed, err)
}

// release renames a folder, moves the file into it, and removes the file.
func (s *bareScratch) release(w int, file string) error {
	folder := s.released[w]
	s.released[w] = strings.TrimSuffix(folder+".again", ".again.again")
	gone := filepath.Join(s.released[w], "copy")
	return inTurn(
		func() error { return syscall.Rename(folder, s.released[w]) },
		func() error { return syscall.Rename(file, gone) },
		func() error { return syscall.Unlink(gone) },
	)
}

func inTurn(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}
