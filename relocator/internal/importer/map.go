package importer

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
)

// readMap takes what the map names. A line that cannot be used is refused, and the next one is read.
func (r *run) readMap(ctx context.Context) error {
	lines := csv.NewReader(r.o.Map)
	lines.FieldsPerRecord = -1
	lines.ReuseRecord = true
	for first := true; ; first = false {
		fields, err := lines.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil { // what follows a quote that does not end cannot be told apart
			return fault.New(fault.Malformed, "read map", "", err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if first && slices.Equal(fields, []string{"cid", "filename"}) {
			continue
		}
		line, _ := lines.FieldPos(0)
		if len(fields) != 2 {
			r.refuse(0, fields[0], fmt.Errorf("line %d of the map has %d fields: it must have a cid and a filename", line, len(fields)))
			continue
		}
		id, err := item.ParseID(fields[0])
		if err != nil {
			r.refuse(0, fields[1], fmt.Errorf("line %d of the map: the cid %w", line, err))
			continue
		}
		if err := r.mapped(ctx, id, fields[1]); err != nil {
			return err
		}
	}
}

// mapped looks at one name that the map gives a cid.
func (r *run) mapped(ctx context.Context, id item.ID, filename string) error {
	if err := item.CheckFilename(filename); err != nil {
		r.refuse(id, filename, err)
		return nil
	}
	dir := r.root.Dir
	if folder := path.Dir(filename); folder != "." {
		d, _, err := r.o.FS.OpenDir(fsys.ReadDigest, dir, folder)
		if err != nil {
			return r.notThere(id, filename, err)
		}
		defer d.Close()
		dir = d
	}
	st, err := r.o.FS.Lstat(fsys.ReadDigest, dir, path.Base(filename))
	if err == nil {
		err = r.mover.CheckSpelling(ctx, fsys.ReadDigest, r.root, filename)
	}
	switch {
	case err != nil:
		return r.notThere(id, filename, err)
	case fsys.IsFile(&st):
		return r.found(ctx, found{id, filename, sizeOf(&st)})
	case !fsys.IsDir(&st):
		r.refuse(id, filename, errors.New("it is "+fsys.Kind(&st)))
		return nil
	}
	sub, _, err := r.o.FS.OpenDir(fsys.ReadDigest, dir, path.Base(filename))
	if err != nil {
		return r.notThere(id, filename, err)
	}
	defer sub.Close()
	return r.unit(ctx, id, sub, filename)
}

// notThere refuses a name to which no file leads. It returns errors of the disk.
func (r *run) notThere(id item.ID, filename string, err error) error {
	var kind *fsys.KindError
	var other *fsys.SpellingError
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		err = errors.New("there is no such file on the tier")
	case errors.As(err, &kind), errors.As(err, &other), errors.Is(err, unix.ENAMETOOLONG):
	default:
		return err
	}
	r.refuse(id, filename, err)
	return nil
}
