package tier_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/testdisk"
	"github.com/tierflow/tierflow/relocator/internal/tier"
)

func TestTheFiguresOfATierAreBytesAlsoWhereItsFileSystemWantsLargeReads(t *testing.T) {
	root, err := tier.Open(fsys.FS{}, on(t, testdisk.Folding(t, "forms")))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	got, err := root.Usage()
	if err != nil {
		t.Fatal(err)
	}
	var below unix.Statfs_t
	if err := unix.Statfs(t.TempDir(), &below); err != nil {
		t.Fatal(err)
	}
	if want := int64(below.Blocks) * below.Frsize; got.Total != want || got.Used < 0 || got.Used > want || got.Free > want {
		t.Errorf("%+v, want %d bytes in all", got, want)
	}
}
