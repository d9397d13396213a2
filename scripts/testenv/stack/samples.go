package stack

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/tierflow/tierflow/shared/item"
)

// Sample is an item to add: a file of Size bytes, or, if there are Parts, a directory of files with these sizes. The bytes
// depend only on the names.
type Sample struct {
	ID       item.ID
	Filename string
	Level    string
	Size     int64
	Parts    map[string]int64
}

// Bytes returns the size of the whole item.
func (p Sample) Bytes() int64 {
	n := p.Size
	for _, size := range p.Parts {
		n += size
	}
	return n
}

// expected is what must be true of an item once all entries are settled.
type expected struct {
	Sample
	digest string
	count  item.Count // the last that was posted
	posted bool       // false: it stays on its first level
}

// rowsPerInsert keeps a statement far below the size limit of a server.
const rowsPerInsert = 500

// Add writes the samples' files to their tiers and inserts their rows with SQL, as an operator fills a catalogue.
func (s *Stack) Add(ctx context.Context, samples ...Sample) error {
	folders, err := s.Folders(ctx)
	if err != nil {
		return err
	}
	for chunk := range slices.Chunk(samples, rowsPerInsert) {
		var args []any
		for _, p := range chunk {
			folder, ok := folders[p.Level]
			if !ok {
				return fmt.Errorf("item %s: there is no level %q", p.ID, p.Level)
			}
			path := filepath.Join(folder, p.Filename)
			if err := p.write(path); err != nil {
				return err
			}
			digest, err := Digest(path)
			if err != nil {
				return err
			}
			s.mu.Lock()
			s.expected[p.ID] = &expected{Sample: p, digest: digest}
			s.mu.Unlock()
			args = append(args, int64(p.ID), p.Level, p.Filename)
		}
		statement := "INSERT INTO contents (cid, content_level, filename) VALUES (?, ?, ?)" +
			strings.Repeat(", (?, ?, ?)", len(chunk)-1)
		if _, err := s.DB().ExecContext(ctx, statement, args...); err != nil {
			return fmt.Errorf("insert items: %w", err)
		}
	}
	return nil
}

func (p Sample) write(path string) error {
	if len(p.Parts) == 0 {
		return writeFile(path, p.Filename, p.Size)
	}
	for name, size := range p.Parts {
		if err := writeFile(filepath.Join(path, name), p.Filename+"/"+name, size); err != nil {
			return err
		}
	}
	return nil
}

// writeFile makes a file of bytes that depend only on the seed.
func writeFile(path, seed string, size int64) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, rand.NewChaCha8(sha256.Sum256([]byte(seed))), size)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// Digest returns "sha256:<hex>" of a file, or of the sorted "<hex>  <path>" lines of a directory's files.
func Digest(path string) (string, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return "", err
	}
	if !info.IsDir() {
		sum, err := sumFile(path)
		return "sha256:" + sum, err
	}
	var lines []string
	err = filepath.WalkDir(path, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(path, file)
		if err != nil {
			return err
		}
		sum, err := sumFile(file)
		lines = append(lines, sum+"  "+name+"\n")
		return err
	})
	slices.Sort(lines)
	return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(strings.Join(lines, "")))), err
}

func sumFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), err
}

// place is what statfs and stat say about a folder's file system.
type place struct{ device, free uint64 }

func filesystem(dir string) (place, error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return place{}, err
	}
	var st syscall.Stat_t
	if err := syscall.Stat(dir, &st); err != nil {
		return place{}, err
	}
	return place{device: st.Dev, free: fs.Bavail * uint64(fs.Bsize)}, nil
}
