package mover

import (
	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/tier"
	"github.com/tierflow/tierflow/shared/content"
)

// Exists tells whether a file or folder has the content's name on the level's tier. A tier that is not there is
// fault.TierRefused: then nobody knows.
func (m *Mover) Exists(level content.Level, filename string) (bool, error) {
	root, err := tier.Open(m.fs, level)
	if err != nil {
		return false, err
	}
	defer root.Close()
	i, err := m.find(fsys.LookTarget, root, filename)
	if missing(err) {
		return false, nil
	}
	i.Close()
	return err == nil, wrap("look for", root.Dir.At(filename), err)
}
