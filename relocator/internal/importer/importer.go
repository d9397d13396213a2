// Package importer registers what lies on a tier and has no row: a row for each file, or for a folder as a unit. It reads
// the tier, and writes rows of contents. It moves and renames nothing.
//
// It may be stopped at any time and started again, and it may run beside a working pipeline. A name that has a row is not
// registered again, whatever level the row names. It holds a page of names in memory, and some names of each open folder,
// however many files there are.
package importer

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/relocator/internal/tier"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
)

// Options of a run. Catalog, Level and Report are required.
type Options struct {
	Catalog *catalog.Catalog
	FS      fsys.FS
	Level   policy.Level
	// AsUnit is a pattern of path.Match. The outermost folder that holds a name of this pattern is one item, with all that is
	// in it. "": each file is an item.
	AsUnit string
	// Map is a CSV of cid and filename, without or with the header "cid,filename". Only what it names is registered, and a
	// folder as a unit. nil: everything on the tier is, and cids go on from the highest one.
	Map    io.Reader
	DryRun bool // register nothing, and report what would be registered

	Report   func(Line)
	Progress func(done, total int64) // total is an estimate, of what is on the tier's file system; nil: none
}

// What a line says of a name.
const (
	WouldRegister = "would-register" // with Options.DryRun
	Refused       = "refused"        // it cannot be registered, and Detail says why
)

// Line is one line of the report.
type Line struct {
	What     string
	ID       item.ID // 0: none yet
	Filename string  // as it lies on the tier; it may be invalid
	Detail   string  // of a refusal the reason, else the size in bytes
}

// Summary counts what a run has found.
type Summary struct {
	Registered int64 // rows made, or to be made with DryRun
	Bytes      int64 // of these
	Known      int64 // names that a row has already
	Refused    int64
}

const (
	// page is how many names are looked up, and how many rows are made, at a time.
	page = 1000
	// settledAge is how long ago a file must have been written. A younger one may still grow, so its size stays unknown.
	settledAge = time.Minute
	// lockWait is how long a page waits while others register items.
	lockWait = 30 * time.Second
	// tries is how often a page begins again when somebody inserts a row by hand meanwhile.
	tries = 5
)

// found is something on the tier that has no row.
type found struct {
	id       item.ID // 0: any
	filename string
	size     int64
}

type run struct {
	o     Options
	root  *tier.Root
	mover *mover.Mover
	page  []found
	seen  int64
	total int64
	sum   Summary
}

// Run registers what lies on the level's tier. With an error it has not looked at everything: it may run again, and goes on.
// The error is fault.Malformed where the options cannot be used.
func Run(ctx context.Context, o Options) (Summary, error) {
	if _, err := path.Match(o.AsUnit, ""); err != nil {
		return Summary{}, fault.New(fault.Malformed, "import", o.AsUnit, err)
	}
	if o.Progress == nil {
		o.Progress = func(int64, int64) {}
	}
	root, err := tier.Open(o.FS, o.Level)
	if err != nil {
		return Summary{}, err
	}
	defer root.Close()
	r := &run{o: o, root: root, mover: mover.New(mover.Options{FS: o.FS})}
	if o.Map != nil {
		err = r.readMap(ctx)
	} else {
		r.total, _ = o.FS.Files(fsys.ReadDigest, root.Dir) // without it there is no estimate
		err = r.walk(ctx, root.Dir, "")
	}
	if err == nil {
		err = r.register(ctx)
	}
	return r.sum, err
}

// walk looks at all names below a folder. A path that a row has is an item; walk does not look below it.
func (r *run) walk(ctx context.Context, dir *fsys.File, prefix string) error {
	err := r.o.FS.Each(fsys.ReadDigest, dir, func(names []string) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		paths := make([]string, 0, len(names))
		for _, n := range names {
			if prefix != "" || n != item.MetaFolder {
				paths = append(paths, prefix+n)
			}
		}
		known, err := r.o.Catalog.FilenamesOf(ctx, paths)
		if err != nil {
			return err
		}
		for _, p := range paths {
			if known[p] != 0 {
				r.sum.Known++
				r.counted()
				continue
			}
			if err := r.look(ctx, dir, p); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, unix.ENOENT) {
		return nil // a release has removed the empty folder meanwhile
	}
	return err
}

// look looks at one name that no row has, in an open folder.
func (r *run) look(ctx context.Context, dir *fsys.File, filename string) error {
	name := path.Base(filename)
	if err := item.CheckFilename(filename); err != nil {
		r.refuse(0, filename, err)
		return nil
	}
	st, err := r.o.FS.Lstat(fsys.ReadDigest, dir, name)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil // it has been moved or removed meanwhile
	case err != nil:
		return err
	case fsys.IsFile(&st):
		return r.found(ctx, found{filename: filename, size: sizeOf(&st)})
	case !fsys.IsDir(&st):
		r.refuse(0, filename, errors.New("it is "+fsys.Kind(&st)))
		return nil
	}
	sub, _, err := r.o.FS.OpenDir(fsys.ReadDigest, dir, name)
	var kind *fsys.KindError
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.As(err, &kind):
		r.refuse(0, filename, err)
		return nil
	case err != nil:
		return err
	}
	defer sub.Close()
	unit, err := r.isUnit(sub)
	if err != nil {
		return err
	}
	if !unit {
		return r.walk(ctx, sub, filename+"/")
	}
	return r.unit(ctx, 0, sub, filename)
}

// isUnit tells whether a folder holds a name of the pattern AsUnit.
func (r *run) isUnit(dir *fsys.File) (bool, error) {
	if r.o.AsUnit == "" {
		return false, nil
	}
	errMatch := errors.New("there is one")
	err := r.o.FS.Each(fsys.ReadDigest, dir, func(names []string) error {
		for _, n := range names {
			if ok, _ := path.Match(r.o.AsUnit, n); ok {
				return errMatch
			}
		}
		return nil
	})
	if errors.Is(err, errMatch) {
		return true, nil
	}
	return false, err
}

// unit takes a folder as one item.
func (r *run) unit(ctx context.Context, id item.ID, dir *fsys.File, filename string) error {
	size, err := r.sizeOfFolder(ctx, dir)
	var kind *fsys.KindError
	if errors.As(err, &kind) { // a move would refuse it as well
		r.refuse(id, filename, err)
		return nil
	}
	if err != nil {
		return err
	}
	return r.found(ctx, found{id, filename, size})
}

// sizeOfFolder adds up the files in a folder. The error is a *fsys.KindError where there is something else in it.
func (r *run) sizeOfFolder(ctx context.Context, dir *fsys.File) (size int64, err error) {
	err = r.o.FS.Each(fsys.ReadDigest, dir, func(names []string) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		for _, n := range names {
			st, err := r.o.FS.Lstat(fsys.ReadDigest, dir, n)
			switch {
			case err != nil:
				return err
			case fsys.IsDir(&st):
				sub, _, err := r.o.FS.OpenDir(fsys.ReadDigest, dir, n)
				if err != nil {
					return err
				}
				inside, err := r.sizeOfFolder(ctx, sub)
				sub.Close()
				if err != nil {
					return err
				}
				size += inside
			case fsys.IsFile(&st):
				size += st.Size
			default:
				return &fsys.KindError{Path: dir.At(n), Kind: fsys.Kind(&st)}
			}
		}
		return nil
	})
	return size, err
}

// sizeOf returns a file's size, or 0 where it may still grow.
func sizeOf(st *unix.Stat_t) int64 {
	if time.Since(time.Unix(st.Mtim.Unix())) < settledAge {
		return 0
	}
	return st.Size
}

func (r *run) refuse(id item.ID, filename string, why error) {
	r.sum.Refused++
	r.o.Report(Line{Refused, id, filename, why.Error()})
	r.counted()
}

func (r *run) counted() {
	r.seen++
	r.o.Progress(r.seen, max(r.total, r.seen))
}

// found adds what has no row to the page, and registers the page when it is full.
func (r *run) found(ctx context.Context, f found) error {
	r.page = append(r.page, f)
	r.counted()
	if len(r.page) < page {
		return nil
	}
	return r.register(ctx)
}

// register makes the rows of the page.
func (r *run) register(ctx context.Context) error {
	if len(r.page) == 0 {
		return nil
	}
	var d decided
	var err error
	if r.o.DryRun {
		d, err = r.decide(ctx, r.o.Catalog.DB())
	} else {
		d, err = r.insert(ctx)
	}
	if err != nil {
		return err
	}
	for _, f := range d.free {
		r.sum.Registered++
		r.sum.Bytes += f.size
		if r.o.DryRun {
			r.o.Report(Line{WouldRegister, f.id, f.filename, fmt.Sprintf("%d bytes", f.size)})
		}
	}
	for _, l := range d.refused {
		r.sum.Refused++
		r.o.Report(l)
	}
	r.sum.Known += d.known
	r.page = r.page[:0]
	return nil
}

// decided is what becomes of a page.
type decided struct {
	free    []found // to be registered
	refused []Line
	known   int64
}

func (r *run) decide(ctx context.Context, q catalog.Querier) (d decided, err error) {
	items := make([]catalog.NewItem, len(r.page))
	for i, f := range r.page {
		items[i] = catalog.NewItem{ID: f.id, Filename: f.filename}
	}
	conflicts, err := catalog.Conflicts(ctx, q, items)
	if err != nil {
		return d, err
	}
	for i, f := range r.page {
		c := conflicts[i]
		switch {
		case c == nil:
			d.free = append(d.free, f)
		case c.Same != 0 && (f.id == 0 || f.id == c.Same):
			d.known++
		default:
			d.refused = append(d.refused, Line{Refused, f.id, f.filename, c.Why})
		}
	}
	return d, nil
}

// insert makes the rows of the page that can be made. Whoever inserts rows by hand takes no lock, so it may have to decide
// again.
func (r *run) insert(ctx context.Context) (d decided, err error) {
	for range tries {
		err = r.o.Catalog.Locked(ctx, catalog.LockItems, lockWait, func(conn *sql.Conn) (err error) {
			if d, err = r.decide(ctx, conn); err != nil || len(d.free) == 0 {
				return err
			}
			return r.insertFree(ctx, conn, d.free)
		})
		if catalog.Kind(err) != fault.Conflict {
			break
		}
	}
	return d, err
}

func (r *run) insertFree(ctx context.Context, conn *sql.Conn, free []found) error {
	const op = "register items"
	var last item.ID
	if err := conn.QueryRowContext(ctx, "SELECT COALESCE(MAX(cid), 0) FROM contents").Scan((*int64)(&last)); err != nil {
		return catalog.Wrap(op, "", err)
	}
	var args []any
	for _, f := range free {
		if f.id == 0 {
			if last++; last < 1 {
				return fault.New(fault.Unprocessable, op, "", errors.New("the highest cid is in use: name the cids with --map"))
			}
			f.id = last
		}
		args = append(args, f.id, r.o.Level.Name, f.filename, f.size)
	}
	_, err := conn.ExecContext(ctx, "INSERT INTO contents (cid, content_level, filename, size_bytes) VALUES (?, ?, ?, ?)"+
		strings.Repeat(", (?, ?, ?, ?)", len(free)-1), args...)
	return catalog.Wrap(op, r.o.Level.Name, err)
}
