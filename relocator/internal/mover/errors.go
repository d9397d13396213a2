package mover

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
)

// wrap gives a file system error its kind. It returns faults, and the cause of a cancelled context, unchanged.
func wrap(op, subject string, err error) error {
	var known *fault.Error
	if err == nil || errors.As(err, &known) || errors.Is(err, context.Canceled) ||
		errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	e := fault.New(fault.Internal, op, subject, err)
	var kind *fsys.KindError
	var attribute *fsys.AttributeError
	switch {
	case otherSpelling(err):
		e.Kind = fault.Conflict
	case errors.As(err, &attribute):
		e.Kind, e.Hint = fault.Unsupported, fmt.Sprintf("take the attribute away (chattr -%c %s), then retry", attribute.Letter(), attribute.Path)
	case errors.As(err, &kind):
		e.Kind, e.Hint = fault.Unsupported, "only regular files and folders of them can be moved"
	case isAny(err, unix.ENOSPC, unix.EDQUOT):
		e.Kind = fault.NoSpace // setLevel adds the hint, which names the tier
	case isAny(err, unix.EIO, unix.EUCLEAN, unix.EBADMSG, unix.ENODEV):
		e.Kind, e.Hint = fault.Suspect, "look at the disk and the kernel's log"
	case isAny(err, unix.EROFS):
		e.Kind, e.Hint = fault.Suspect, "it is read-only: look at the kernel's log, then mount it writable"
	case missing(err):
		e.Kind = fault.Busy // the name was there a moment ago: another attempt has removed it
	case isAny(err, unix.EACCES, unix.EPERM):
		e.Kind, e.Hint = fault.Suspect, "the relocator's user needs the right to read, write and rename there"
	}
	return e
}

// setLevel names the level whose tier failed: the one that holds the error's path, else the first. A fault that names a
// level already keeps it.
func setLevel(err error, levels ...policy.Level) error {
	var e *fault.Error
	if !errors.As(err, &e) || e.Level != "" {
		return err
	}
	var attribute *fsys.AttributeError
	if errors.As(err, &attribute) && slices.ContainsFunc(levels, func(l policy.Level) bool { return isTiersOwn(l, attribute.Path) }) {
		e.Kind = fault.Suspect // it concerns every item, so the tier is at fault
	}
	if e.Kind != fault.Suspect && e.Kind != fault.NoSpace {
		return err
	}
	e.Level = levels[0].Name
	var at *fs.PathError
	if errors.As(err, &at) {
		for _, l := range levels {
			if strings.HasPrefix(at.Path+"/", strings.TrimSuffix(l.Path, "/")+"/") {
				e.Level = l.Name
			}
		}
	}
	if e.Kind == fault.NoSpace && e.Hint == "" {
		e.Hint = "free space or inodes on the tier of level " + e.Level
	}
	return err
}

// isTiersOwn tells whether a path is that of a folder which a tier has for itself.
func isTiersOwn(l policy.Level, path string) bool {
	root := strings.TrimSuffix(l.Path, "/")
	return path == root || strings.TrimPrefix(path, root+"/") == item.MetaFolder || filepath.Dir(path) == root+"/"+item.MetaFolder
}

func isAny(err error, errnos ...error) bool {
	return slices.ContainsFunc(errnos, func(e error) bool { return errors.Is(err, e) })
}

func missing(err error) bool { return isAny(err, unix.ENOENT, unix.ENOTDIR) }

// suspect is the fault of a failed fsync, whatever its errno. The kernel reports an fsync error once and drops the pages.
// The caller must discard the file and must not call fsync again.
func suspect(op string, err error) error {
	return &fault.Error{Kind: fault.Suspect, Op: op, Err: err, Hint: "look at the disk and the kernel's log"}
}

func changed(path string) error {
	return fault.New(fault.Changed, "read", path, errors.New("it changed while it was read"))
}

func conflict(path, format string, args ...any) error {
	return &fault.Error{Kind: fault.Conflict, Op: "publish", Subject: path, Err: fmt.Errorf(format, args...),
		Hint: "find out which of the two is right, and move the other out of the tier"}
}
