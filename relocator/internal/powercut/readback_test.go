package powercut_test

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"os"
	"testing"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/shared/fault"
)

// TestACopyThatTheDiskHasSpoiledIsNotPublished changes one byte on the disk, below the file system, after the copy was
// synced. The page cache still holds the right byte. The same move without dropping the cache must succeed with the
// wrong byte; otherwise this test shows nothing.
func TestACopyThatTheDiskHasSpoiledIsNotPublished(t *testing.T) {
	for _, rt := range routes {
		if rt.method != mover.Copied {
			continue
		}
		for _, source := range []string{synced, adopted} {
			s := scenario{route: rt, kind: file, source: source}
			t.Run(s.String(), func(t *testing.T) {
				if err := spoil(t, s, false); err != nil {
					t.Error(err)
				}
				if err := spoil(t, s, true); err == nil {
					t.Error("the mutant that reads back from the page cache survived")
				} else {
					t.Logf("a mover that reads back from the page cache is found: %v", err)
				}
			})
		}
	}
}

// spoil moves a file while the disk changes a byte of the copy. cached: the mover does not drop the page cache. It returns
// the violation that the move leaves, nil where there is none.
func spoil(t *testing.T, s scenario, cached bool) error {
	r := &run{scenario: s}
	var images []string
	for _, kind := range s.disks {
		image, err := lab.copy(lab.blank(kind))
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, image)
	}
	defer remove(images)
	m, err := boot(s.route, images)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { m.halt() }()
	r.machine = m
	if err := r.prepare(); err != nil {
		t.Fatal(err)
	}
	spoiled := false
	made, moved := mover.New(mover.Options{FS: fsys.FS{Hook: func(step fsys.Step, path string) error {
		if step != fsys.DropCache {
			return nil
		}
		if !spoiled {
			spoiled = true
			if err := flip(path, images[1]); err != nil {
				t.Fatal(err)
			}
		}
		if cached {
			return fsys.Skip
		}
		return nil
	}}}).Make(context.Background(), r.request(0, "first"))
	if !spoiled {
		t.Fatal("the cache was never dropped")
	}
	if moved == nil && made.Discard() != nil {
		t.Fatal("the record was not removed")
	}
	if kind := fault.KindOf(moved); moved != nil && kind != fault.Suspect && kind != fault.Conflict {
		return moved
	}
	// Mount the disks again to read what is on them.
	m.halt()
	if m, err = boot(s.route, images); err != nil {
		t.Fatal(err)
	}
	r.machine = m
	got, err := read(r.place(1))
	switch {
	case moved == nil && err != nil:
		return errors.Join(errors.New("the move succeeded, and the copy cannot be read"), err)
	case moved == nil && !maps.Equal(got, r.want):
		return errors.New("the move succeeded, and the copy is spoiled: " + r.differs(got))
	case moved == nil:
		t.Fatal("the copy is not spoiled: this test shows nothing")
	case s.source == synced && len(got) > 0:
		return errors.New("the move failed, and the copy is visible")
	}
	if names := r.scratch("tmp"); len(names) > 0 {
		t.Errorf("left: %v", names)
	}
	return nil
}

// flip changes a byte of the file on the disk.
func flip(path, image string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	disk, err := os.ReadFile(image)
	if err != nil {
		return err
	}
	at := bytes.Index(disk, data[:4096])
	if at < 0 {
		return errors.New("the copy is not on the disk yet")
	}
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt([]byte{data[100] ^ 1}, int64(at)+100)
	return err
}
