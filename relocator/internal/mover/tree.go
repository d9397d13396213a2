package mover

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/tier"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
)

// node is a file or folder of a directory that is moved as a unit. The top node has no name.
type node struct {
	name     string
	st       unix.Stat_t
	children []*node // sorted by name
	method   string  // Linked, Cloned or Copied, for a file
	sum      []byte  // the SHA-256 of a file; nil where it was not read
}

// walk lists a folder with everything below it. It refuses entries that are neither files nor folders.
func (m *Mover) walk(ctx context.Context, step fsys.Step, dir *fsys.File, st *unix.Stat_t, depth int) (*node, error) {
	if depth > maxDepth {
		return nil, fault.New(fault.Unsupported, "read", dir.Path(),
			fmt.Errorf("its folders are nested more than %d deep", maxDepth))
	}
	n := &node{st: *st}
	names, err := m.fs.List(step, dir)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		st, err := m.fs.Lstat(step, dir, name)
		if missing(err) {
			return nil, changed(dir.At(name))
		}
		if err != nil {
			return nil, err
		}
		child := &node{st: st}
		switch {
		case fsys.IsFile(&st):
		case fsys.IsDir(&st):
			if child, err = m.walkInto(ctx, step, dir, name, depth); err != nil {
				return nil, err
			}
		default:
			return nil, &fsys.KindError{Path: dir.At(name), Kind: fsys.Kind(&st)}
		}
		child.name = name
		n.children = append(n.children, child)
	}
	return n, nil
}

func (m *Mover) walkInto(ctx context.Context, step fsys.Step, dir *fsys.File, name string, depth int) (*node, error) {
	sub, st, err := m.fs.OpenDir(step, dir, name)
	if missing(err) {
		return nil, changed(dir.At(name))
	}
	if err != nil {
		return nil, err
	}
	defer sub.Close()
	return m.walk(ctx, step, sub, &st, depth+1)
}

func (n *node) isDir() bool { return fsys.IsDir(&n.st) }

// files calls visit for every file below n, with its path relative to n.
func (n *node) files(prefix string, visit func(path string, n *node)) {
	for _, k := range n.children {
		if k.isDir() {
			k.files(prefix+k.name+"/", visit)
		} else {
			visit(prefix+k.name, k)
		}
	}
}

// size adds up the lengths of all files, and the disk space that their copies need, in bytes.
func (n *node) size() (bytes, space int64) {
	n.files("", func(_ string, f *node) { bytes += f.st.Size; space += allocated(&f.st) })
	return bytes, space
}

// allocated is how many bytes of a file are not in holes.
func allocated(st *unix.Stat_t) int64 { return min(st.Size, st.Blocks*512) }

// methods is the method of a whole directory: Copied where any file was copied, else Cloned where any was cloned.
func (n *node) methods() string {
	m := Linked
	n.files("", func(_ string, f *node) {
		if f.method == Copied || f.method == Cloned && m == Linked {
			m = f.method
		}
	})
	return m
}

// digest is the SHA-256 of a directory: `sha256sum` of all files, `LC_ALL=C sort` of the lines, and `sha256sum` of those.
func (n *node) digest() []byte {
	var lines []string
	n.files("", func(path string, f *node) {
		line := hex.EncodeToString(f.sum) + "  " + path + "\n"
		if strings.ContainsAny(path, "\\\n\r") {
			line = `\` + hex.EncodeToString(f.sum) + "  " + escaper.Replace(path) + "\n"
		}
		lines = append(lines, line)
	})
	slices.Sort(lines)
	h := sha256.New()
	for _, l := range lines {
		h.Write([]byte(l))
	}
	return h.Sum(nil)
}

// escaper escapes file names as sha256sum (GNU coreutils) does.
var escaper = strings.NewReplacer(`\`, `\\`, "\n", `\n`, "\r", `\r`)

// prepareTree copies a directory into the attempt's folder and makes every file and folder of it durable.
func (j *job) prepareTree(ctx context.Context, src *opened, made *Copy) error {
	if err := j.fs.Mkdir(fsys.MakeAttempt, j.to.Tmp, j.attempt, 0o700); err != nil {
		return err
	}
	attempt, _, err := j.fs.OpenDir(fsys.MakeAttempt, j.to.Tmp, j.attempt)
	if err != nil {
		return err
	}
	defer attempt.Close()
	if err := j.subtree(ctx, src.tree, src.file, attempt, treeName); err != nil {
		return err
	}
	if err := j.fs.Fsync(fsys.FsyncTree, attempt); err != nil {
		return suspect("fsync", err)
	}
	now, err := j.fs.Stat(fsys.RecheckSource, src.file)
	if err != nil {
		return err
	}
	tree, err := j.walk(ctx, fsys.RecheckSource, src.file, &now, 0)
	if err != nil {
		return err
	}
	if !sameTree(src.tree, tree) {
		return changed(src.file.Path())
	}
	made.Method = src.tree.methods()
	if made.Method != Linked {
		if err := j.sums(ctx, fsys.ReadSource, src.tree, src.file, j.progress); err != nil {
			return err
		}
		made.Digest = digest(src.tree.digest())
	}
	return nil
}

// sums reads all files of n, which lie below dir, that have no sum yet.
func (m *Mover) sums(ctx context.Context, step fsys.Step, n *node, dir *fsys.File, progress func()) error {
	for _, k := range n.children {
		if k.sum != nil {
			continue
		}
		f, st, err := m.openIn(step, dir, k.name)
		if err != nil {
			return err
		}
		if k.isDir() {
			err = m.sums(ctx, step, k, f, progress)
		} else {
			k.sum, _, err = m.sum(ctx, step, f, st.Size, progress)
		}
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// Digest reads an item on a tier and returns its digest, "sha256:<hex>". The digest of a directory is that of the sorted
// lines that sha256sum prints for its files, with their paths relative to it. Kinds: InvalidName, MissingFile,
// Unsupported, Suspect. A cancelled context gives its cause.
func (m *Mover) Digest(ctx context.Context, root *tier.Root, filename string) (string, error) {
	sum, err := m.digest(ctx, root, filename)
	return digest(sum), wrap("read", root.Dir.At(filename), err)
}

func (m *Mover) digest(ctx context.Context, root *tier.Root, filename string) ([]byte, error) {
	if err := item.CheckFilename(filename); err != nil {
		return nil, fault.New(fault.InvalidName, "read", filename, err)
	}
	i, err := m.find(ctx, fsys.ReadDigest, root, filename)
	if missing(err) || otherSpelling(err) {
		return nil, fault.New(fault.MissingFile, "read", root.Dir.At(filename), err)
	}
	if err != nil {
		return nil, err
	}
	defer i.Close()
	return m.sumOf(ctx, fsys.ReadDigest, i, noProgress)
}

func noProgress() {}

// sumOf returns the SHA-256 of a file or directory. It calls progress after every chunk.
func (m *Mover) sumOf(ctx context.Context, step fsys.Step, i *opened, progress func()) ([]byte, error) {
	if fsys.IsFile(&i.st) {
		sum, _, err := m.sum(ctx, step, i.file, i.st.Size, progress)
		return sum, err
	}
	n, err := m.walk(ctx, step, i.file, &i.st, 0)
	if err != nil {
		return nil, err
	}
	if err := m.sums(ctx, step, n, i.file, progress); err != nil {
		return nil, err
	}
	return n.digest(), nil
}

// subtree makes dst/name a durable copy of the folder src, whose entries n lists.
func (j *job) subtree(ctx context.Context, n *node, src, dst *fsys.File, name string) error {
	if err := j.fs.Mkdir(fsys.MakeTree, dst, name, 0o700); err != nil {
		return err
	}
	to, _, err := j.fs.OpenDir(fsys.MakeTree, dst, name)
	if err != nil {
		return err
	}
	defer to.Close()
	for _, k := range n.children {
		if err := j.entry(ctx, k, src, to); err != nil {
			return err
		}
	}
	if err := j.metadata(to, src, &n.st); err != nil {
		return err
	}
	if err := j.fs.Fsync(fsys.FsyncTree, to); err != nil {
		return suspect("fsync", err)
	}
	return nil
}

// entry copies one child of a folder into dst.
func (j *job) entry(ctx context.Context, k *node, src, dst *fsys.File) error {
	f, st, err := j.openIn(fsys.OpenSource, src, k.name)
	if missing(err) || err == nil && !fsys.Same(&st, &k.st) {
		f.Close()
		return changed(src.At(k.name))
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if k.isDir() {
		return j.twoNames(j.subtree(ctx, k, f, dst, k.name), f.Path())
	}
	k.method, k.sum, err = j.file(ctx, &opened{parent: src, base: k.name, file: f, st: st}, dst, k.name)
	return j.twoNames(err, f.Path())
}

// sameTree tells whether a source directory is as it was. A linked file only has to be the same inode: the link changed
// its ctime, and its bytes cannot differ from themselves.
func sameTree(was, is *node) bool {
	if was.name != is.name || !fsys.Same(&was.st, &is.st) || was.isDir() != is.isDir() {
		return false
	}
	if !was.isDir() {
		return was.method == Linked || unchanged(&was.st, &is.st)
	}
	return was.st.Mode == is.st.Mode && was.st.Uid == is.st.Uid && was.st.Gid == is.st.Gid &&
		slices.EqualFunc(was.children, is.children, sameTree)
}
