package mover_test

import (
	"context"
	"errors"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/relocator/internal/testdisk"
	"github.com/tierflow/tierflow/relocator/internal/tier"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/policy"
)

// twoNames are two filenames that a file system takes for one, and the file system.
type twoNames struct {
	what string
	disk func(testing.TB) string
	a, b string
}

func foldingBy(mode string) func(testing.TB) string {
	return func(t testing.TB) string { return testdisk.Folding(t, mode) }
}

var foldedNames = []twoNames{
	{"case", foldingBy("case"), "Movie.mkv", "movie.mkv"},
	{"the case of a folder", foldingBy("case"), "Show/1.mkv", "show/1.mkv"},
	{"the case of a folder and a file", foldingBy("case"), "Shows/A/Ep.mkv", "shows/a/ep.mkv"},
	{"case that is not ASCII", foldingBy("case"), "\u00c9t\u00e9.mkv", "\u00e9t\u00e9.mkv"},
	{"normal form", foldingBy("forms"), "caf\u00e9.mkv", "cafe\u0301.mkv"},
	{"the normal form of a folder", foldingBy("forms"), "caf\u00e9/1.mkv", "cafe\u0301/1.mkv"},
	{"a second letter K", foldingBy("forms"), "\u212a.mkv", "K.mkv"},
	{"case on ext4", testdisk.CaseFolded, "Movie.mkv", "movie.mkv"},
	{"the case of a folder on ext4", testdisk.CaseFolded, "Show/1.mkv", "show/1.mkv"},
	{"normal form on ext4", testdisk.CaseFolded, "caf\u00e9.mkv", "cafe\u0301.mkv"},
}

// twins makes bronze, which tells the names apart, with two items of equal bytes and times, and gold, which folds.
func (n twoNames) twins(t *testing.T) (bronze, gold policy.Level, data []byte) {
	t.Helper()
	bronze, gold = newLevel(t, t.TempDir(), "bronze"), newLevel(t, n.disk(t), "gold")
	data = random(50_000)
	for _, name := range []string{n.a, n.b} {
		write(t, bronze.Path+"/"+name, data)
		when := time.Now().Add(-time.Hour).Truncate(time.Second)
		if err := os.Chtimes(bronze.Path+"/"+name, when, when); err != nil {
			t.Fatal(err)
		}
	}
	return bronze, gold, data
}

func TestTwoItemsWhoseNamesTheDiskTakesForOneKeepTheirOwnFiles(t *testing.T) {
	for _, n := range foldedNames {
		t.Run(n.what, func(t *testing.T) {
			bronze, gold, data := n.twins(t)
			m := mover.New(mover.Options{})
			ctx := context.Background()
			mustMake(t, m, request(bronze, gold, n.a))

			made, err := m.Make(ctx, request(bronze, gold, n.b))
			wantKind(t, err, fault.Conflict, "takes one name for the other", "another filename")
			if made != nil {
				t.Errorf("the other item's copy was adopted: %+v", made)
			}
			wantClean(t, gold)

			// A row names the second item on gold all the same: by an operator's hand, or by a version that adopted.
			there, err := m.Compare(ctx, mover.Comparison{Filename: n.b, Old: bronze, Current: gold, OldIsOriginal: true})
			if there || err != nil {
				t.Errorf("the other item's file passes for the copy that the row names: %v, %v", there, err)
			}
			if _, err := m.Make(ctx, request(gold, bronze, n.b)); !fault.Is(err, fault.MissingFile) {
				t.Errorf("the other item's file passes for the source: %v", err)
			}
			if outcome, err := m.Release(ctx, release(gold, n.b)); outcome != mover.Gone || err != nil {
				t.Errorf("the release is %q, %v", outcome, err)
			}
			sameBytes(t, gold.Path+"/"+n.a, data)
			if got := ownName(t, gold, n.a); got != n.a {
				t.Errorf("gold has %+q in place of %+q", got, n.a)
			}

			// The place is free when the first item has left.
			if outcome, err := m.Release(ctx, release(gold, n.a)); outcome != mover.Released || err != nil {
				t.Fatalf("the release is %q, %v", outcome, err)
			}
			mustMake(t, m, request(bronze, gold, n.b))
			if got := ownName(t, gold, n.b); got != n.b {
				t.Errorf("gold has %+q in place of %+q", got, n.b)
			}
			wantClean(t, bronze, gold)
		})
	}
}

func TestAFolderWithAnotherSpellingIsNotUsed(t *testing.T) {
	bronze, gold := newLevel(t, t.TempDir(), "bronze"), newLevel(t, testdisk.Folding(t, "case"), "gold")
	write(t, bronze.Path+"/Show/1.mkv", random(3))
	write(t, bronze.Path+"/show/2.mkv", random(4))
	m := mover.New(mover.Options{})
	mustMake(t, m, request(bronze, gold, "Show/1.mkv"))
	made, err := m.Make(context.Background(), request(bronze, gold, "show/2.mkv"))
	wantKind(t, err, fault.Conflict, `"Show"`)
	if made != nil {
		t.Errorf("made %+v", made)
	}
	wantClean(t, gold)
	if left := tree(t, gold.Path); len(left) != 3 {
		t.Errorf("gold has %v", left)
	}
}

// ownName is the filename as the folders of the tier themselves spell it, where each folder has one entry.
func ownName(t *testing.T, l policy.Level, filename string) string {
	t.Helper()
	own := ""
	for range strings.Split(filename, "/") {
		es, err := os.ReadDir(filepath.Join(l.Path, own))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range es {
			if e.Name() != ".tierflow" {
				own = path.Join(own, e.Name())
				break
			}
		}
	}
	return own
}

func TestAFolderOfAUnionThatFoldsIsNoticedByTheNameItself(t *testing.T) {
	for mode, n := range map[string]twoNames{"case": {a: "Movie.mkv", b: "movie.mkv"}, "forms": {a: "\u212a.mkv", b: "K.mkv"}} {
		t.Run(mode, func(t *testing.T) { unionThatFolds(t, mode, n) })
	}
}

func unionThatFolds(t *testing.T, mode string, n twoNames) {
	folds, at := testdisk.Folding(t, mode), t.TempDir()
	n.disk = func(t testing.TB) string {
		testdisk.Union(t, at, testdisk.Memory(t, "8m"), folds)
		return at
	}
	bronze, gold, data := n.twins(t)
	write(t, folds+"/gold/"+n.a, data)
	root, err := tier.Open(fsys.FS{}, gold)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if traits, err := root.Traits(); err != nil || traits.FoldsCase || traits.FoldsForms {
		t.Fatalf("the probe was to meet the folder that does not fold: %+v, %v", traits, err)
	}
	m := mover.New(mover.Options{})
	_, err = m.Make(context.Background(), request(bronze, gold, n.b))
	wantKind(t, err, fault.Conflict, "takes one name for the other")
	if mode == "case" && !strings.Contains(err.Error(), `"Movie.mkv"`) {
		t.Errorf("%v does not name what is there", err)
	}
	if outcome, err := m.Release(context.Background(), release(gold, n.b)); outcome != mover.Gone || err != nil {
		t.Errorf("the release is %q, %v", outcome, err)
	}
	sameBytes(t, folds+"/gold/"+n.a, data)
}

// TestALateReleaserCannotTakeTheCopyOfAnotherSpelling pauses a releaser after it has compared the spelling. Meanwhile its
// copy goes, and another item gets a copy whose name is one with the releaser's on that disk.
func TestALateReleaserCannotTakeTheCopyOfAnotherSpelling(t *testing.T) {
	n := twoNames{disk: foldingBy("case"), a: "Movie.mkv", b: "movie.mkv"}
	bronze, gold, data := n.twins(t)
	m := mover.New(mover.Options{})
	mustMake(t, m, request(bronze, gold, n.a))
	late := mover.New(mover.Options{FS: at(fsys.RenameReleased, 1, func(string) error {
		if outcome, err := m.Release(context.Background(), release(gold, n.a)); outcome != mover.Released || err != nil {
			t.Errorf("the release is %q, %v", outcome, err)
		}
		r := request(bronze, gold, n.b)
		r.ID++
		mustMake(t, m, r)
		return nil
	})})
	outcome, err := late.Release(context.Background(), release(gold, n.a))
	if outcome != mover.RetryLater || err != nil {
		t.Errorf("the late release is %q, %v", outcome, err)
	}
	sameBytes(t, gold.Path+"/"+n.b, data)
	wantClean(t, gold)
}

// renames makes an FS whose probe finds RENAME_NOREPLACE, although the FUSE file system does not have it.
func renames() fsys.FS {
	return fsys.FS{Hook: func(step fsys.Step, path string) error {
		if step == fsys.ProbeNames && filepath.Base(path) == "renamed" {
			return fsys.Skip
		}
		return nil
	}}
}

func TestADirectoryWithTwoEntriesWhoseNamesTheTargetTakesForOneIsRefused(t *testing.T) {
	for what, names := range map[string][2]string{"files": {"a.ts", "A.ts"}, "folders": {"a/1.ts", "A/2.ts"}} {
		t.Run(what, func(t *testing.T) {
			bronze, gold := newLevel(t, t.TempDir(), "bronze"), newLevel(t, testdisk.Folding(t, "case"), "gold")
			write(t, bronze.Path+"/show/"+names[0], random(3))
			write(t, bronze.Path+"/show/"+names[1], random(4))
			_, err := mover.New(mover.Options{FS: renames()}).Make(context.Background(), request(bronze, gold, "show"))
			wantKind(t, err, fault.Unsupported, "takes its name for that of another entry", "another name")
			wantClean(t, gold)
		})
	}
}

func TestATierThatRewritesNamesIsRefusedByMoves(t *testing.T) {
	bronze, gold := newLevel(t, t.TempDir(), "bronze"), newLevel(t, testdisk.Folding(t, "rewrite"), "gold")
	write(t, bronze.Path+"/x", random(3))
	_, err := mover.New(mover.Options{}).Make(context.Background(), request(bronze, gold, "x"))
	wantKind(t, err, fault.TierRefused, "another spelling than it was given")
	wantClean(t, gold)
}

// withoutNoReplace are file systems of Debian on FUSE that have no RENAME_NOREPLACE.
var withoutNoReplace = map[string]func(testing.TB) string{
	"mergerfs": func(t testing.TB) string {
		at := t.TempDir()
		testdisk.Union(t, at, testdisk.Memory(t, "8m"), t.TempDir())
		return at
	},
	"bindfs": func(t testing.TB) string {
		at := t.TempDir()
		testdisk.FUSE(t, at, "bindfs", t.TempDir(), at)
		return at
	},
	"ntfs-3g": func(t testing.TB) string {
		image, at := filepath.Join(t.TempDir(), "ntfs.image"), t.TempDir()
		if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 32<<20)); err != nil {
			t.Fatal(err)
		}
		testdisk.Run(t, "mkntfs", "-q", "-F", "-Q", image)
		testdisk.FUSE(t, at, "ntfs-3g", image, at)
		return at
	},
}

func TestOnlyFilesMoveToATierThatCannotRenameWithoutReplacing(t *testing.T) {
	for kind, disk := range withoutNoReplace {
		t.Run(kind, func(t *testing.T) {
			bronze, gold := newLevel(t, t.TempDir(), "bronze"), newLevel(t, disk(t), "gold")
			var steps []fsys.Step
			m := mover.New(mover.Options{FS: recorder(&steps)})
			data := random(10_000)
			for _, name := range []string{"a/b/1.mkv", "a/b/2.mkv", "3.mkv"} {
				write(t, bronze.Path+"/"+name, data)
				mustMake(t, m, request(bronze, gold, name))
				sameBytes(t, gold.Path+"/"+name, data)
			}

			writeTree(t, bronze.Path+"/show")
			steps = nil
			made, err := m.Make(context.Background(), request(bronze, gold, "show"))
			wantKind(t, err, fault.Unsupported, "RENAME_NOREPLACE", gold.Path+"/show", "ext4, xfs or btrfs")
			if made != nil || contains(steps, fsys.MakeAttempt) || contains(steps, fsys.WriteTemp) {
				t.Errorf("the directory was copied before it was refused: %+v", made)
			}
			if contains(steps, fsys.ProbeNames) {
				t.Error("the tier was probed again")
			}

			// Releases reuse each other's folders by a rename.
			defer m.Expect()()
			defer m.Expect()()
			for _, name := range []string{"a/b/1.mkv", "a/b/2.mkv", "3.mkv"} {
				if outcome, err := m.Release(context.Background(), release(gold, name)); outcome != mover.Released || err != nil {
					t.Errorf("the release of %s is %q, %v", name, outcome, err)
				}
			}
			if left := tree(t, gold.Path); len(left) != 1 {
				t.Errorf("left: %v", left)
			}
		})
	}
}
