package mover

import (
	"context"
	"errors"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
)

// Claimed is a file or directory that Claim has made durable.
type Claimed struct {
	Bytes  int64
	Digest string // as Mover.Digest gives it
}

// Claim takes over a copy that lies on a tier already, as Make takes over one that it finds, but without a source.
// Afterwards the copy is durable, and no late releaser can take its name away. Call it after the look-up of a row that
// shall name the level, under the item's lock. It reads all bytes. It does not know whether they are the right ones.
//
// Kinds: those of Make. A cancelled context gives its cause.
func (m *Mover) Claim(ctx context.Context, id item.ID, filename string, level policy.Level) (Claimed, error) {
	claimed, err := m.claim(ctx, id, filename, level)
	return claimed, setLevel(wrap("take over", id.String()+" ("+filename+") on "+level.Name, err), level)
}

func (m *Mover) claim(ctx context.Context, id item.ID, filename string, level policy.Level) (c Claimed, err error) {
	if err := item.CheckFilename(filename); err != nil {
		return c, fault.New(fault.InvalidName, "take over", id.String(), err)
	}
	root, err := m.tiers.Open(level)
	if err != nil {
		return c, err
	}
	defer root.Close()
	j := &job{Mover: m, r: Request{ID: id, Filename: filename, From: level, To: level}, from: root, to: root}
	if err := j.clearReleased(ctx); err != nil {
		return c, err
	}
	have, err := m.find(ctx, fsys.LookTarget, root, filename)
	if err != nil {
		return c, err
	}
	defer have.Close()
	if _, err := j.same(ctx, have, have); err != nil { // compared with itself, it is only made durable
		return c, err
	}
	before, err := m.list(ctx, have)
	if err != nil {
		return c, err
	}
	sum, err := m.sumOf(ctx, fsys.ReadAdopted, have, noProgress)
	if err != nil {
		return c, err
	}
	after, err := m.list(ctx, have)
	if err != nil {
		return c, err
	}
	there, err := j.inPlace(fsys.LookTarget, root, filename, have)
	if err == nil && (!there || !sameTree(before, after)) {
		err = fault.New(fault.Busy, "take over", have.file.Path(), errors.New("it is being changed"))
	}
	if err != nil {
		return c, err
	}
	folders, err := j.folders(ctx)
	if err != nil {
		return c, err
	}
	defer j.closeFolders(folders)
	if err := j.fsyncFolders(folders); err != nil {
		return c, err
	}
	c.Bytes, c.Digest = before.st.Size, digest(sum)
	if before.isDir() {
		c.Bytes, _ = before.size()
	}
	return c, root.Check(fsys.RecheckTier)
}
