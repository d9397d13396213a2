package catalog

import (
	"context"
	"database/sql"
	"strings"
	"time"

	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
)

// pageSize is how many rows one statement reads where a caller may pass any number.
const pageSize = 1000

// Row is a row of contents. Times are in UTC, with microseconds.
type Row struct {
	ID         item.ID
	Level      string
	Filename   string
	Generated  time.Time // generate_time
	Updated    time.Time // update_time: when the level last changed
	Generation int64     // one higher after every commit, every release that began and the first count
	ViewCount  item.Count
	SizeBytes  int64
	Digest     string    // "sha256:<hex>" of the last copy, "" where none was made
	Pinned     string    // the level that the item is pinned to, "" for none
	PinEnds    time.Time // when the pin ends by itself; zero: never
	CountEntry string    // id in `views` of the entry whose count ViewCount is; "" unknown, and older than any
	ReviewAt   time.Time // when the decision on the item must be looked at again; zero: never
}

// Item returns the input of policy.Policy.Decide for this row. count is the item's newest count. An event or the state may
// have a newer count than the row.
func (r Row) Item(count item.Count) policy.Item {
	return policy.Item{Level: r.Level, Count: int64(count), Arrived: r.Updated, Pin: policy.Pin{Level: r.Pinned, Until: r.PinEnds}, Size: r.SizeBytes}
}

// CountedOrMoved reports whether the item ever had a view event or a move. Somebody may have put an item without either on
// its level on purpose.
func (r Row) CountedOrMoved() bool { return r.ViewCount > 0 || r.Generation > 0 }

const rowColumns = "cid, content_level, filename, generate_time, update_time, generation, view_count, size_bytes, digest, pinned_level, count_entry, pinned_until, review_at"

// Row reads one row. The error is fault.Unknown where there is none.
func (c *Catalog) Row(ctx context.Context, id item.ID) (Row, error) {
	row, err := scanRow(c.db.QueryRowContext(ctx, "SELECT "+rowColumns+" FROM contents WHERE cid = ?", id))
	return row, Wrap("look up item", id.String(), err)
}

// Rows reads the rows of these ids. An id without a row is not in the map.
func (c *Catalog) Rows(ctx context.Context, ids []item.ID) (map[item.ID]Row, error) {
	found := make(map[item.ID]Row, len(ids))
	err := inPages(ids, func(in string, args []any) error {
		rows, err := selectRows(ctx, c.db, "WHERE cid "+in, args...)
		for _, r := range rows {
			found[r.ID] = r
		}
		return err
	})
	if err != nil {
		return nil, Wrap("look up items", "", err)
	}
	return found, nil
}

// LockRows reads the rows of these ids and locks them, in the order of the primary key: whoever locks more than one row uses this
// order. A row that another transaction has locked is not in the map, and holds up no other.
func LockRows(ctx context.Context, tx *sql.Tx, ids []any) (map[item.ID]Row, error) {
	rows, err := selectRows(ctx, tx, "WHERE cid IN (?"+strings.Repeat(",?", len(ids)-1)+") ORDER BY cid FOR UPDATE SKIP LOCKED", ids...)
	locked := make(map[item.ID]Row, len(rows))
	for _, r := range rows {
		locked[r.ID] = r
	}
	return locked, err
}

// dueRows selects due reviews. The server reads no more of the index than the limit.
const dueRows = "WHERE review_at <= UTC_TIMESTAMP(6) ORDER BY review_at, cid LIMIT ? FOR UPDATE SKIP LOCKED"

// LockDue reads at most limit rows whose review is due by the server's clock, and locks them: the longest due first, by the index
// of review_at. It leaves out a row that another transaction has locked. So it waits for nobody, whatever the order of its locks.
func LockDue(ctx context.Context, tx *sql.Tx, limit int) ([]Row, error) {
	return selectRows(ctx, tx, dueRows, limit)
}

// Placements reads the rows of these ids and calls fn for each row that exists, in no order. It reads only ID, Level,
// Filename, Updated, Pinned and PinEnds: it is for callers that look up thousands of items a second.
func (c *Catalog) Placements(ctx context.Context, ids []item.ID, fn func(Row)) error {
	err := inPages(ids, func(in string, args []any) error {
		rows, err := c.db.QueryContext(ctx, "SELECT cid, content_level, filename, update_time, COALESCE(pinned_level, ''), pinned_until FROM contents WHERE cid "+in, args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var r Row
			var ends sql.NullTime
			if err := rows.Scan((*int64)(&r.ID), &r.Level, &r.Filename, &r.Updated, &r.Pinned, &ends); err != nil {
				return err
			}
			r.PinEnds = ends.Time
			fn(r)
		}
		return rows.Err()
	})
	return Wrap("look up items", "", err)
}

// inPages calls query for each page of the ids, with the SQL text "IN (?, ...)" and its arguments.
func inPages(ids []item.ID, query func(in string, args []any) error) error {
	for len(ids) > 0 {
		part := ids[:min(pageSize, len(ids))]
		ids = ids[len(part):]
		args := make([]any, len(part))
		for i, id := range part {
			args[i] = int64(id)
		}
		if err := query("IN (?"+strings.Repeat(",?", len(part)-1)+")", args); err != nil {
			return err
		}
	}
	return nil
}

// ByFilename reads the row of exactly this name. The error is fault.Unknown where there is none.
func (c *Catalog) ByFilename(ctx context.Context, name string) (Row, error) {
	row, err := scanRow(c.db.QueryRowContext(ctx, "SELECT "+rowColumns+" FROM contents WHERE filename = ?", name))
	if err == nil && row.Filename != name {
		row, err = Row{}, sql.ErrNoRows // the comparison in SQL ignores trailing spaces
	}
	return row, Wrap("look up file", name, err)
}

// List reads at most limit rows with ids above after, ascending. Where level is "", it lists the items of all levels.
func (c *Catalog) List(ctx context.Context, level string, after item.ID, limit int) ([]Row, error) {
	where, args := "WHERE cid > ? ORDER BY cid LIMIT ?", []any{after, limit}
	if level != "" {
		where, args = "WHERE content_level = ? AND "+where[len("WHERE "):], append([]any{level}, args...)
	}
	rows, err := selectRows(ctx, c.db, where, args...)
	return rows, Wrap("list items", level, err)
}

// Outlines reads at most limit rows with ids above after, ascending. Of each it reads only what Item, CountedOrMoved and sums of sizes
// need: it is for callers that read all rows at once.
func (c *Catalog) Outlines(ctx context.Context, after item.ID, limit int) ([]Row, error) {
	rows, err := c.db.QueryContext(ctx, "SELECT cid, content_level, update_time, generation, view_count, size_bytes, COALESCE(pinned_level, ''),"+
		" pinned_until FROM contents WHERE cid > ? ORDER BY cid LIMIT ?", after, limit)
	if err != nil {
		return nil, Wrap("read items", "", err)
	}
	defer rows.Close()
	var all []Row
	for rows.Next() {
		var r Row
		var ends sql.NullTime
		if err := rows.Scan((*int64)(&r.ID), &r.Level, &r.Updated, &r.Generation, (*int64)(&r.ViewCount), &r.SizeBytes, &r.Pinned, &ends); err != nil {
			return nil, Wrap("read items", "", err)
		}
		r.PinEnds = ends.Time
		all = append(all, r)
	}
	return all, Wrap("read items", "", rows.Err())
}

// Each calls fn for every row, ascending by id. It stops at fn's first error and returns that error unchanged. It reads page
// by page, so fn may be slow, and rows may change meanwhile.
func (c *Catalog) Each(ctx context.Context, fn func(Row) error) error {
	for after := item.ID(0); ; {
		rows, err := c.List(ctx, "", after, pageSize)
		if err != nil {
			return err
		}
		for _, r := range rows {
			if err := fn(r); err != nil {
				return err
			}
			after = r.ID
		}
		if len(rows) < pageSize {
			return nil
		}
	}
}

func selectRows(ctx context.Context, q Querier, where string, args ...any) ([]Row, error) {
	rows, err := q.QueryContext(ctx, "SELECT "+rowColumns+" FROM contents "+where, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []Row
	for rows.Next() {
		r, err := scanRow(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, rows.Err()
}

func scanRow(from interface{ Scan(...any) error }) (Row, error) {
	var r Row
	var pinned sql.NullString
	var ends, review sql.NullTime
	if err := from.Scan(&r.ID, &r.Level, &r.Filename, &r.Generated, &r.Updated, &r.Generation, &r.ViewCount,
		&r.SizeBytes, &r.Digest, &pinned, &r.CountEntry, &ends, &review); err != nil {
		return Row{}, err
	}
	r.Pinned, r.PinEnds, r.ReviewAt = pinned.String, ends.Time, review.Time
	return r, nil
}
