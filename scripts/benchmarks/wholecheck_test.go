package benchmarks

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/tierflow/tierflow/shared/item"
)

func TestALostCountIsFound(t *testing.T) {
	newest := map[item.ID]item.Count{1: 5000, 2: 1200}
	for name, c := range map[string]struct {
		rows  map[item.ID]place
		wrong int
	}{
		"all in their rows": {map[item.ID]place{1: {"gold", "a", 5000}, 2: {"silver", "b", 1200}, 3: {"gold", "c", 0}}, 0},
		"an older count":    {map[item.ID]place{1: {"gold", "a", 4999}, 2: {"silver", "b", 1200}}, 1},
		"another level":     {map[item.ID]place{1: {"gold", "a", 5000}, 2: {"bronze", "b", 1200}}, 1},
		"no row":            {map[item.ID]place{2: {"silver", "b", 1200}}, 1},
	} {
		if wrong := lost(newest, c.rows); len(wrong) != c.wrong {
			t.Errorf("%s: found %q", name, wrong)
		}
	}
}

func TestAFileThatIsNotWhereItsRowSaysIsFound(t *testing.T) {
	dir := t.TempDir()
	folders := map[string]string{}
	for _, level := range []string{"bronze", "silver"} {
		folders[level] = filepath.Join(dir, level)
		if err := os.MkdirAll(filepath.Join(folders[level], "videos"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"bronze/videos/a", "silver/videos/b", "bronze/videos/c", "silver/videos/c", "bronze/.tierflow"} {
		if err := os.MkdirAll(filepath.Join(dir, "bronze", item.MetaFolder), 0o755); err != nil {
			t.Fatal(err)
		}
		if file == "bronze/.tierflow" {
			file += "/tier.json"
		}
		if err := os.WriteFile(filepath.Join(dir, file), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filesOf(folders)
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 3 || !reflect.DeepEqual(files["videos/a"], []string{"bronze"}) || len(files["videos/c"]) != 2 {
		t.Fatalf("the files are %v", files)
	}
	delete(files, "videos/c")
	for name, c := range map[string]struct {
		rows  map[item.ID]place
		wrong int
	}{
		"all there":        {map[item.ID]place{1: {"bronze", "videos/a", 0}, 2: {"silver", "videos/b", 0}}, 0},
		"on another level": {map[item.ID]place{1: {"silver", "videos/a", 0}, 2: {"silver", "videos/b", 0}}, 1},
		"nowhere":          {map[item.ID]place{1: {"bronze", "videos/a", 0}, 2: {"silver", "videos/b", 0}, 3: {"silver", "d", 0}}, 1},
		"without a row":    {map[item.ID]place{1: {"bronze", "videos/a", 0}}, 1},
	} {
		if wrong := misplaced(c.rows, files); len(wrong) != c.wrong {
			t.Errorf("%s: found %q", name, wrong)
		}
	}
	if wrong := misplaced(map[item.ID]place{1: {"bronze", "c", 0}}, map[string][]string{"c": {"bronze", "silver"}}); len(wrong) != 1 {
		t.Errorf("a file that lies twice: found %q", wrong)
	}
}

func TestTheLoadWithMovesSendsEachMoverToAndFro(t *testing.T) {
	l := &load{ids: []string{"1", "2"}, movers: []string{"7", "8"}}
	var levels []string
	for i := range 4 * moveEvery {
		cid, count := l.view(i)
		if moves := cid == "7" || cid == "8"; moves != (i%moveEvery == moveEvery-1) {
			t.Fatalf("post %d is of item %s", i, cid)
		} else if moves {
			levels = append(levels, cid+" "+levelOf(item.Count(count)))
		} else if levelOf(item.Count(count)) != "gold" {
			t.Fatalf("post %d has the count %d", i, count)
		}
	}
	if want := []string{"7 silver", "8 silver", "7 bronze", "8 bronze"}; !reflect.DeepEqual(levels, want) {
		t.Errorf("the moves are %q, not %q", levels, want)
	}
	l.moved = 3
	if cid, count := l.view(moveEvery - 1); cid != "8" || levelOf(item.Count(count)) != "bronze" {
		t.Errorf("after three moves the next is of item %s to %s", cid, levelOf(item.Count(count)))
	}
}
