package importer_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/importer"
	"github.com/tierflow/tierflow/relocator/internal/relocatortest"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
)

func TestMain(m *testing.M) { relocatortest.Main(m) }

// world is a MySQL and tiers, and what imports have reported.
type world struct {
	*relocatortest.World
	lines []string
}

func newWorld(t *testing.T) *world { return &world{World: relocatortest.New(t)} }

// run imports a level, bronze where the options name none.
func (w *world) run(ctx context.Context, o importer.Options) (importer.Summary, error) {
	w.lines = nil
	if o.Level.Name == "" {
		o.Level = w.Level("bronze")
	}
	o.Catalog = w.Catalog
	o.Report = func(l importer.Line) {
		w.lines = append(w.lines, fmt.Sprintf("%s %d %q %s", l.What, l.ID, l.Filename, l.Detail))
	}
	return importer.Run(ctx, o)
}

// imports runs to the end and compares the summary and the lines of the report, in any order.
func (w *world) imports(o importer.Options, want importer.Summary, lines ...string) {
	w.T.Helper()
	sum, err := w.run(w.T.Context(), o)
	if err != nil {
		w.T.Fatal(err)
	}
	if sum != want {
		w.T.Errorf("%+v, want %+v", sum, want)
	}
	slices.Sort(w.lines)
	slices.Sort(lines)
	if !slices.Equal(w.lines, lines) {
		w.T.Errorf("the report says\n%s\nwant\n%s", strings.Join(w.lines, "\n"), strings.Join(lines, "\n"))
	}
}

// old writes a file that was written long ago.
func (w *world) old(level, name string, size int) {
	w.T.Helper()
	w.File(level, name, make([]byte, size))
	long := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(w.Roots[level], name), long, long); err != nil {
		w.T.Fatal(err)
	}
}

// rows are all rows, as "cid level filename size".
func (w *world) rows() (all []string) {
	w.T.Helper()
	rows, err := w.Catalog.List(w.T.Context(), "", 0, 100_000)
	if err != nil {
		w.T.Fatal(err)
	}
	for _, r := range rows {
		all = append(all, fmt.Sprintf("%d %s %s %d", r.ID, r.Level, r.Filename, r.SizeBytes))
	}
	return all
}

func (w *world) hasRows(want ...string) {
	w.T.Helper()
	if got := w.rows(); !slices.Equal(got, want) {
		w.T.Errorf("rows\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestAnImportRegistersEveryFileOnceWithItsSize(t *testing.T) {
	w := newWorld(t)
	w.Exec("INSERT INTO contents (cid, content_level, filename) VALUES (41, 'gold', 'known.mp4'), (5, 'bronze', 'shows')")
	w.old("bronze", "a.mp4", 3)
	w.imports(importer.Options{}, importer.Summary{Registered: 1, Bytes: 3})
	w.hasRows("5 bronze shows 0", "41 gold known.mp4 0", "42 bronze a.mp4 3")

	w.old("bronze", "known.mp4", 3)    // waits for its release
	w.old("bronze", "shows/1/x.ts", 3) // of an item that is a folder
	w.old("bronze", "films/x/b.mp4", 7)
	w.File("bronze", "films/x/young.mp4", []byte("may still grow"))
	w.old("gold", "hot.mp4", 9)
	w.imports(importer.Options{}, importer.Summary{Registered: 2, Bytes: 7, Known: 3})
	rows := w.rows()
	w.imports(importer.Options{}, importer.Summary{Known: 5})
	w.hasRows(rows...)
	w.imports(importer.Options{Level: w.Level("gold")}, importer.Summary{Registered: 1, Bytes: 9})
	if got := w.rows(); got[len(got)-1] != "45 gold hot.mp4 9" {
		t.Error(got)
	}
}

func TestAFolderThatHoldsAMatchIsOneItem(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"live/one/master.m3u8", "live/one/720p/list.m3u8", "live/one/720p/1.ts", "live/two/360p/list.m3u8",
		"live/two/notes.txt", "root.m3u8"} {
		w.old("bronze", name, 10)
	}
	w.imports(importer.Options{AsUnit: "*.m3u8", DryRun: true}, importer.Summary{Registered: 4, Bytes: 60},
		`would-register 0 "live/one" 30 bytes`, `would-register 0 "live/two/360p" 10 bytes`, `would-register 0 "live/two/notes.txt" 10 bytes`,
		`would-register 0 "root.m3u8" 10 bytes`)
	w.hasRows()
	w.imports(importer.Options{AsUnit: "*.m3u8"}, importer.Summary{Registered: 4, Bytes: 60})
	w.imports(importer.Options{AsUnit: "*.m3u8"}, importer.Summary{Known: 4})
	w.imports(importer.Options{}, importer.Summary{Known: 4}) // not even what is in a unit
	_, err := w.run(t.Context(), importer.Options{AsUnit: "[a"})
	if !fault.Is(err, fault.Malformed) {
		t.Error(err)
	}
}

func TestWhatCannotBeRegisteredIsListedAndHoldsUpNothing(t *testing.T) {
	w := newWorld(t)
	w.Exec("INSERT INTO contents (cid, content_level, filename) VALUES (1, 'gold', 'unit/inner/old.ts')")
	for _, name := range []string{"good.mp4", "bad\xff.mp4", "space ", "unit/list.m3u8", "linked/list.m3u8"} {
		w.old("bronze", name, 1)
	}
	for name, make := range map[string]func(path string) error{
		"link.mp4":    func(p string) error { return os.Symlink("good.mp4", p) },
		"linked/l.ts": func(p string) error { return os.Symlink("list.m3u8", p) },
		"fifo":        func(p string) error { return unix.Mkfifo(p, 0o600) },
	} {
		if err := make(filepath.Join(w.Roots["bronze"], name)); err != nil {
			t.Fatal(err)
		}
	}
	path := func(name string) string { return filepath.Join(w.Roots["bronze"], name) }
	w.imports(importer.Options{AsUnit: "*.m3u8"}, importer.Summary{Registered: 1, Bytes: 1, Refused: 6},
		`refused 0 "bad\xff.mp4" filename is not UTF-8`,
		`refused 0 "space " filename ends with a space, which SQL comparisons ignore`,
		`refused 0 "link.mp4" it is a symbolic link`,
		`refused 0 "fifo" it is a FIFO`,
		`refused 0 "linked" `+path("linked/l.ts")+` is a symbolic link`,
		`refused 0 "unit" "unit/inner/old.ts", which is item 1, would lie inside "unit"`)
	w.hasRows("1 gold unit/inner/old.ts 0", "2 bronze good.mp4 1")
}

func TestAMapGivesCidsAndNamesAllThatIsRegistered(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"a.mp4", "b, c.mp4", "show/1.ts", "show/2.ts", "not in the map"} {
		w.old("bronze", name, 5)
	}
	w.Exec("INSERT INTO contents (cid, content_level, filename) VALUES (77, 'bronze', 'other')")
	const csv = "cid,filename\n900,a.mp4\n7,\"b, c.mp4\"\n8,show\n9,show/1.ts\n900,again.mp4\n10,gone.mp4\nx,a.mp4\n11\n77,show/2.ts\n12,../a\n"
	summary := importer.Summary{Registered: 3, Bytes: 20, Refused: 7}
	refused := []string{
		`refused 9 "show/1.ts" "show/1.ts" lies inside "show", which is item 8`,
		`refused 900 "again.mp4" there is no such file on the tier`,
		`refused 10 "gone.mp4" there is no such file on the tier`,
		`refused 0 "a.mp4" line 8 of the map: the cid must be a whole number from 1 to 9223372036854775807, without sign or leading zeros`,
		`refused 0 "11" line 9 of the map has 1 fields: it must have a cid and a filename`,
		`refused 77 "show/2.ts" cid 77 is taken, by "other"`,
		`refused 12 "../a" filename has the component ".."`,
	}
	w.imports(importer.Options{Map: strings.NewReader(csv)}, summary, refused...)
	rows := []string{"7 bronze b, c.mp4 5", "8 bronze show 10", "77 bronze other 0", "900 bronze a.mp4 5"}
	w.hasRows(rows...)
	w.imports(importer.Options{Map: strings.NewReader(csv)}, importer.Summary{Known: 3, Refused: 7}, refused...)
	w.hasRows(rows...)
}

// However often it is stopped, a name is registered once, and in the end all are.
func TestAnImportThatIsStoppedAnywhereGoesOnWhereItWas(t *testing.T) {
	w := newWorld(t)
	const files = 2500 // more than two pages
	for i := range files {
		w.File("bronze", fmt.Sprintf("folder %d/%d.mp4", i%7, i), nil)
	}
	stopped := 0
	for after := 50; ; after += 500 {
		ctx, cancel := context.WithCancel(t.Context())
		calls := 0
		_, err := w.run(ctx, importer.Options{FS: fsys.FS{Hook: func(fsys.Step, string) error {
			if calls++; calls == after {
				cancel()
			}
			return nil
		}}})
		cancel()
		if err == nil {
			break
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		stopped++
	}
	if stopped < 3 {
		t.Errorf("it was stopped %d times only", stopped)
	}
	if n := len(w.rows()); n != files {
		t.Errorf("%d rows of %d files", n, files)
	}
}

func TestImportsAndOtherRegistrationsAtOnceGiveEachNameOneCid(t *testing.T) {
	w := newWorld(t)
	for i := range 1500 {
		w.File("bronze", fmt.Sprintf("b%d", i), nil)
		w.File("gold", fmt.Sprintf("g%d", i), nil)
	}
	var all sync.WaitGroup
	for _, level := range []string{"bronze", "bronze", "gold"} {
		o := importer.Options{Catalog: w.Catalog, Level: w.Level(level), Report: func(l importer.Line) { t.Errorf("%+v", l) }}
		all.Go(func() {
			if _, err := importer.Run(t.Context(), o); err != nil {
				t.Error(err)
			}
		})
	}
	all.Go(func() {
		for i := range 100 { // by hand, without any lock
			_, err := w.Catalog.DB().ExecContext(t.Context(),
				"INSERT INTO contents (cid, content_level, filename) SELECT COALESCE(MAX(cid), 0) + 1, 'bronze', ? FROM contents", fmt.Sprintf("hand%d", i))
			if err != nil {
				t.Log(err) // the import was faster
			}
		}
	})
	all.Wait()
	names := map[string]bool{}
	for _, r := range w.rows() {
		names[strings.Fields(r)[2]] = true
	}
	for i := range 1500 {
		if !names[fmt.Sprintf("b%d", i)] || !names[fmt.Sprintf("g%d", i)] {
			t.Fatalf("file %d has no row", i)
		}
	}
}

func TestAnImportBesideAWorkingPipelineRegistersNoCopy(t *testing.T) {
	w := newWorld(t)
	const items = 15
	bodies := map[int][]byte{}
	for i := 1; i <= items; i++ {
		bodies[i] = w.Item(i, fmt.Sprintf("films/%d.mp4", i))
	}
	w.Run()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for i := range 20 {
			for _, level := range []string{"bronze", "silver", "gold"} {
				sum, err := importer.Run(t.Context(), importer.Options{Catalog: w.Catalog, Level: w.Level(level),
					Report: func(l importer.Line) { t.Errorf("%+v", l) }})
				if err != nil || sum.Registered != 0 {
					t.Errorf("run %d: %+v, %v", i, sum, err)
				}
			}
		}
	}()
	count := map[string]int{"bronze": 0, "silver": 1000, "gold": 2000}
	levels := []string{"silver", "bronze", "gold"}
	for _, level := range levels {
		for i := 1; i <= items; i++ {
			w.Post(i, count[level])
		}
	}
	<-ended
	w.Settled()
	for i, body := range bodies {
		w.Lies(i, "gold", body)
	}
	if rows, err := w.Catalog.List(t.Context(), "", 0, 1000); err != nil || len(rows) != items || rows[items-1].ID != item.ID(items) {
		t.Errorf("%d rows, %v", len(rows), err)
	}
}
