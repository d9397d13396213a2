package tier

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/shared/fault"
)

// The reserve is an empty folder in .tierflow. A release needs a folder of its own before it can free anything, and a tier
// without an inode or a block left has no room for a new one. So it takes the reserve, by a rename, and puts it back at its end.
// One is enough: after the first release there is room, or the next release takes the reserve in its turn.

// keepReserve makes the reserve where it is missing. Where there is no room for it, the next call tries again.
func (r *Root) keepReserve() error {
	_, err := r.fs.Lstat(fsys.OpenTier, r.meta, reserveName)
	if !errors.Is(err, unix.ENOENT) {
		return err
	}
	err = r.fs.Mkdir(fsys.MakeTierFolder, r.meta, reserveName, 0o700)
	if full(err) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EROFS) {
		return nil
	}
	return err
}

// TakeReserve renames the reserve to name in released/. Only its taker may use that folder, until it calls PutReserve. It calls
// ReserveOver at its end in any case. Kinds: Busy while another release of this process has it, NoSpace where it is missing.
func (r *Root) TakeReserve(step fsys.Step, name string) error {
	err := r.renameNew(step, r.meta, reserveName, r.Released, name)
	switch {
	case err == nil:
		r.reserves.Add(1)
		return nil
	case !errors.Is(err, unix.ENOENT):
		return err
	case r.reserves.Load() > 0:
		return fault.New(fault.Busy, "take the reserve of tier", r.Level.Name, errors.New("another release uses it"))
	}
	return &fault.Error{Kind: fault.NoSpace, Op: "take the reserve of tier", Subject: r.Level.Name, Level: r.Level.Name,
		Err:  errors.New("there is no room for a folder, and the folder that is kept for this case is missing"),
		Hint: "remove a file that is not Tierflow's from this tier"}
}

// PutReserve makes an empty folder in released/, which TakeReserve has put there, the reserve again. false: there is a new one,
// and the caller must remove the folder. A mover may have removed the folder meanwhile, which is no error.
func (r *Root) PutReserve(step fsys.Step, name string) (bool, error) {
	err := r.renameNew(step, r.Released, name, r.meta, reserveName)
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOTEMPTY) {
		return false, nil
	}
	if errors.Is(err, unix.ENOENT) {
		err = r.keepReserve()
	}
	return err == nil, err
}

// ReserveOver says that the release which took the reserve is over.
func (r *Root) ReserveOver() { r.reserves.Add(-1) }

// renameNew renames a folder. Without RENAME_NOREPLACE, it may replace an empty folder.
func (r *Root) renameNew(step fsys.Step, from *fsys.File, name string, to *fsys.File, newName string) error {
	err := r.fs.RenameNew(step, from, name, to, newName)
	if fsys.CannotRenameNew(err) {
		err = r.fs.Rename(step, from, name, to, newName)
	}
	return err
}
