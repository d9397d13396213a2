package tier

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
)

// Init makes the parts of the level's tier that are missing, durably: the root, .tierflow/, tmp/, released/, and last the
// identity. It returns the tier's id. A second call changes nothing.
//
//   - The level has no TierID: Init uses an existing identity of this level, which an earlier run has left that stopped
//     before the id was in MySQL. Otherwise it makes a new identity.
//   - The level has a TierID: the tier must exist and have that id. A folder without an identity is a disk that is not
//     mounted: fault.TierRefused, and nothing is written.
//   - An identity of another level, or another id: fault.TierRefused.
func Init(fs fsys.FS, level policy.Level, now time.Time) (id string, err error) {
	if level.TierID != "" {
		r, err := Open(fs, level)
		if err != nil {
			return "", err
		}
		defer r.Close()
		return r.ID, nil
	}
	if err := makeRoot(fs, level); err != nil {
		return "", fail(level, err)
	}
	r, found, err := open(fs, level)
	if err != nil {
		return "", err
	}
	defer r.Close()
	if found == nil {
		if found, err = r.makeIdentity(now); err != nil {
			return "", fail(level, err)
		}
	}
	if err := r.finish(found); err != nil {
		return "", err
	}
	// The run that wrote an existing identity may have been cut short before the identity was durable.
	for _, d := range []*fsys.File{r.meta, r.Dir} {
		if err := fs.Fsync(fsys.SyncTierFolder, d); err != nil {
			return "", fail(level, err)
		}
	}
	return r.ID, nil
}

// makeRoot makes the root, and the folders above it that are missing.
func makeRoot(fs fsys.FS, level policy.Level) error {
	above := level.Path
	var missing []string
	for {
		dir, _, err := fs.OpenRoot(fsys.OpenTier, above)
		if err == nil {
			for i := len(missing) - 1; i >= 0; i-- {
				sub, err := (&Root{Level: level, fs: fs}).folder(dir, missing[i], 0o755)
				dir.Close()
				if err != nil {
					return err
				}
				dir = sub
			}
			dir.Close()
			return nil
		}
		if !errors.Is(err, unix.ENOENT) || above == "/" {
			return err
		}
		missing = append(missing, filepath.Base(above))
		above = filepath.Dir(above)
	}
}

// folder opens dir/name. It makes a missing folder first, durably.
func (r *Root) folder(dir *fsys.File, name string, mode uint32) (*fsys.File, error) {
	f, _, err := r.fs.OpenDir(fsys.OpenTier, dir, name)
	if !errors.Is(err, unix.ENOENT) {
		return f, err
	}
	if err := r.fs.Mkdir(fsys.MakeTierFolder, dir, name, mode); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, err
	}
	if err := r.fs.Fsync(fsys.SyncTierFolder, dir); err != nil {
		return nil, err
	}
	f, _, err = r.fs.OpenDir(fsys.OpenTier, dir, name)
	return f, err
}

// makeIdentity writes tier.json completely or not at all, after everything else. Where two processes do so at the same
// time, both return the identity of the one that was first.
func (r *Root) makeIdentity(now time.Time) (*Identity, error) {
	var err error
	if r.meta == nil {
		if r.meta, err = r.folder(r.Dir, item.MetaFolder, 0o700); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{tmpName, releasedName} {
		f, err := r.folder(r.meta, name, 0o700)
		if err != nil {
			return nil, err
		}
		f.Close()
	}
	id := &Identity{ID: newID(), Level: r.Level.Name, CreatedAt: now.UTC().Truncate(time.Microsecond)}
	text, err := json.Marshal(id)
	if err != nil {
		return nil, err
	}
	temp := identityName + "." + id.ID
	f, err := r.fs.Create(fsys.WriteIdentity, r.meta, temp)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// A crash leaves a small file under a name that nothing reads.
	defer func() { _ = r.fs.RemoveAll(context.Background(), fsys.DropIdentity, r.meta, temp) }()
	text = append(text, '\n')
	if n, err := r.fs.WriteAt(fsys.WriteIdentity, f, text, 0); err != nil || n < len(text) {
		return nil, errors.Join(err, fmt.Errorf("wrote %d of %d bytes of %s", n, len(text), f.Path()))
	}
	if err := r.fs.Fsync(fsys.SyncIdentity, f); err != nil {
		return nil, err
	}
	err = r.fs.Link(fsys.LinkIdentity, r.meta, temp, r.meta, identityName)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, err
	}
	found, _, err := r.identity()
	return found, err
}

// newID makes a UUID, version 4.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it never returns an error (crypto/rand)
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}
