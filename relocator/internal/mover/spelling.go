package mover

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/tier"
	"github.com/tierflow/tierflow/shared/fault"
)

// CheckSpelling compares an existing filename, and the folders in it, with the spellings of the tier's own folders. On a
// file system that folds case or Unicode forms, a name leads to files with other names, which may be other items. A
// *fsys.SpellingError: what is there has another name. A missing name may be an error or not.
func (m *Mover) CheckSpelling(ctx context.Context, step fsys.Step, root *tier.Root, filename string) error {
	if root.ComparesBytes() {
		return nil
	}
	return m.eachFolder(step, root, filename, func(dir *fsys.File, name string) error {
		return root.CheckSpelling(ctx, step, dir, name)
	})
}

// eachFolder calls fn with the tier's root and each folder above a filename, and with the name of the next one in it.
func (m *Mover) eachFolder(step fsys.Step, root *tier.Root, filename string, fn func(dir *fsys.File, name string) error) error {
	dir := root.Dir
	parts := strings.Split(filename, "/")
	for i, name := range parts {
		if err := fn(dir, name); err != nil || i == len(parts)-1 {
			return err
		}
		sub, _, err := m.fs.OpenDir(step, dir, name)
		if err != nil {
			return err
		}
		defer sub.Close()
		dir = sub
	}
	return nil
}

// folds tells whether any folder of the final name that is there folds names.
func (j *job) folds() (folds bool, err error) {
	if j.to.ComparesBytes() {
		return false, nil
	}
	found := errors.New("found")
	err = j.eachFolder(fsys.ClearReleased, j.to, j.r.Filename, func(dir *fsys.File, _ string) error {
		is, err := j.to.Folds(fsys.ClearReleased, dir)
		if err == nil && is {
			err = found
		}
		return err
	})
	var kind *fsys.KindError
	if missing(err) || errors.As(err, &kind) { // what has the name of a folder is reported when the name is looked up
		err = nil
	}
	if err == found {
		return true, nil
	}
	return false, err
}

func otherSpelling(err error) bool {
	var other *fsys.SpellingError
	return errors.As(err, &other)
}

// noDirectories is the fault of a directory whose target cannot rename without replacing. No retry helps: the file system
// has to be another one.
func (j *job) noDirectories(err error) error {
	return &fault.Error{Kind: fault.Unsupported, Op: "publish", Subject: j.to.Dir.At(j.r.Filename), Err: err,
		Hint: "put the tier on ext4, xfs or btrfs itself, or keep directories off this level; then retry"}
}

// twoNames is the fault of a directory with two entries whose names the target takes for one.
func (j *job) twoNames(err error, path string) error {
	var known *fault.Error
	if !errors.Is(err, unix.EEXIST) || errors.As(err, &known) {
		return err
	}
	return &fault.Error{Kind: fault.Unsupported, Op: "copy", Subject: path,
		Err:  fmt.Errorf("the target's file system takes its name for that of another entry of its folder: %w", err),
		Hint: "give one of the two another name, then retry"}
}
