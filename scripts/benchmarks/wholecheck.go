package benchmarks

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/item"
)

// check checks that no accepted count is lost. Each is in the stream once, and the row of each item has the newest
// one. The files are where the rows say, with their bytes. It returns the number of accepted counts.
func (w *whole) check(ctx context.Context, p posted) (accepted int, err error) {
	var l ledger
	if p.lines {
		l, err = w.posts.accountBatches(ctx, p.ok)
	} else {
		l, err = w.posts.account(ctx, p.ok, p.late)
	}
	w.advance(l)
	if err != nil {
		return 0, err
	}
	rows, err := w.rows(ctx)
	if err != nil {
		return 0, err
	}
	files, err := filesOf(w.folders)
	if err != nil {
		return 0, err
	}
	wrong := append(lost(l.posted(), rows), misplaced(rows, files)...)
	for id := range l.newest {
		digest, moves := w.digests[id]
		if !moves || len(wrong) > 0 {
			continue
		}
		now, err := stack.Digest(filepath.Join(w.folders[rows[id].level], rows[id].filename))
		if err != nil {
			return 0, err
		}
		if now != digest {
			wrong = append(wrong, fmt.Sprintf("the file of item %s has changed", id))
		}
	}
	if len(wrong) > 0 {
		return 0, fmt.Errorf("%d things are wrong after all was settled, such as: %s\n%s", len(wrong),
			strings.Join(wrong[:min(5, len(wrong))], "; "), w.stack.Logs())
	}
	return l.entries, nil
}

// advance notes what was posted, so that the next load goes on from there.
func (w *whole) advance(l ledger) {
	const underWay = 10_000 // more than are posted at once
	for id, count := range l.posted() {
		if id < firstMover {
			w.from = max(w.from, int(count)-firstCount+underWay)
		}
	}
	w.moved += l.movers
}

// posted returns the newest count of each item.
func (l ledger) posted() map[item.ID]item.Count {
	all := make(map[item.ID]item.Count, len(l.newest))
	for id, e := range l.newest {
		text, _ := e.Values["count"].(string)
		count, err := item.ParseCount(text)
		if err != nil {
			count = -1 // no row has it
		}
		all[id] = count
	}
	return all
}

// isMover tells whether the load with moves sends an item to and fro.
func isMover(id item.ID) bool { return id >= firstMover && id < firstFresh }

// place is what a row says of an item.
type place struct {
	level, filename string
	count           item.Count
}

func (w *whole) rows(ctx context.Context) (map[item.ID]place, error) {
	rows, err := w.stack.DB().QueryContext(ctx, "SELECT cid, content_level, filename, view_count FROM contents")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := map[item.ID]place{}
	for rows.Next() {
		var id item.ID
		var p place
		if err := rows.Scan(&id, &p.level, &p.filename, &p.count); err != nil {
			return nil, err
		}
		all[id] = p
	}
	return all, rows.Err()
}

// filesOf returns the files of all tiers: the levels on which each lies, by its filename.
func filesOf(folders map[string]string) (map[string][]string, error) {
	files := map[string][]string{}
	for level, folder := range folders {
		err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case d.IsDir() && d.Name() == item.MetaFolder:
				return fs.SkipDir
			case !d.IsDir():
				name := strings.TrimPrefix(path, folder+"/")
				files[name] = append(files[name], level)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return files, nil
}

// lost says which rows do not have the newest count of their item, or are not on the level that it calls for.
func lost(newest map[item.ID]item.Count, rows map[item.ID]place) (wrong []string) {
	for id, count := range newest {
		row, ok := rows[id]
		switch {
		case !ok:
			wrong = append(wrong, fmt.Sprintf("item %s has no row", id))
		case row.count != count:
			wrong = append(wrong, fmt.Sprintf("item %s: its row has the count %s, the last was %s", id, row.count, count))
		case row.level != levelOf(count):
			wrong = append(wrong, fmt.Sprintf("item %s: it is on %s, its last count is %s", id, row.level, count))
		}
	}
	return wrong
}

// levelOf returns the level that a posted count calls for.
func levelOf(count item.Count) string {
	switch {
	case count >= counts["gold"]:
		return "gold"
	case count >= counts["silver"]:
		return "silver"
	}
	return "bronze"
}

// misplaced says which files are not on the level of their row, or there and on others, and which have no row.
func misplaced(rows map[item.ID]place, files map[string][]string) (wrong []string) {
	named := map[string]bool{}
	for id, row := range rows {
		named[row.filename] = true
		if on := files[row.filename]; !slices.Equal(on, []string{row.level}) {
			wrong = append(wrong, fmt.Sprintf("item %s: its row says %s, its file is on %v", id, row.level, on))
		}
	}
	for name := range files {
		if !named[name] {
			wrong = append(wrong, fmt.Sprintf("no row names %s", name))
		}
	}
	return wrong
}
