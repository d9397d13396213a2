package catalog

import (
	"context"
	"database/sql"
	"math"
	"strings"
	"time"

	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
)

// pageSize is how many rows one statement reads where a caller may want any number.
const pageSize = 1000

// Row is a row of contents. Times are in UTC, with microseconds.
type Row struct {
	ID         item.ID
	Level      string
	Filename   string
	Generated  time.Time // generate_time
	Updated    time.Time // update_time: when the level last changed
	Generation int64     // one higher after every commit and every begun release
	ViewCount  item.Count
	SizeBytes  int64
	Digest     string // "sha256:<hex>" of the last copy, "" where none was made
	Pinned     string // the level it is held on, "" for none
}

// Item is what the policy needs to know of the row, with its newest count, which an event or the state may know better
// than the row.
func (r Row) Item(count item.Count) policy.Item {
	return policy.Item{Level: r.Level, Count: int64(count), Pin: r.Pinned}
}

// History is a row of update_history: one committed relocation.
type History struct {
	ID             int64
	EventID        string
	CID            item.ID
	OldLevel       string
	NewLevel       string
	PrevUpdateTime time.Time
	UpdateTime     time.Time
	ViewCount      item.Count
	Bytes          int64
	Duration       time.Duration // whole microseconds
	WorkerID       string
}

const (
	levelColumns     = "min_counts, max_counts, path, tier_id"
	rowColumns       = "cid, content_level, filename, generate_time, update_time, generation, view_count, size_bytes, digest, pinned_level"
	appraisalColumns = "change_id, before_levels, after_cid, changed_at"
	historyColumns   = "id, event_id, cid, old_level, new_level, prev_update_time, update_time, view_count, bytes, duration_us, worker_id"
)

// Content reads one row; fault.Unknown where there is none.
func (c *Catalog) Content(ctx context.Context, id item.ID) (Row, error) {
	row, err := scanRow(c.db.QueryRowContext(ctx, "SELECT "+rowColumns+" FROM contents WHERE cid = ?", id))
	return row, Wrap("look up content", id.String(), err)
}

// Contents reads the rows of these ids; an id that has none is not in the map.
func (c *Catalog) Contents(ctx context.Context, ids []item.ID) (map[item.ID]Row, error) {
	found := make(map[item.ID]Row, len(ids))
	err := inPages(ids, func(in string, args []any) error {
		rows, err := c.rows(ctx, "WHERE cid "+in, args...)
		for _, r := range rows {
			found[r.ID] = r
		}
		return err
	})
	if err != nil {
		return nil, Wrap("look up contents", "", err)
	}
	return found, nil
}

// Placements reads where the contents of these ids lie, and calls fn for each row, in no order, with ID, Level, Filename
// and Pinned; the rest of the row is not read. It is for those who look up thousands of contents a second.
func (c *Catalog) Placements(ctx context.Context, ids []item.ID, fn func(Row)) error {
	err := inPages(ids, func(in string, args []any) error {
		rows, err := c.db.QueryContext(ctx, "SELECT cid, content_level, filename, COALESCE(pinned_level, '') FROM contents WHERE cid "+in, args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var r Row
			if err := rows.Scan((*int64)(&r.ID), &r.Level, &r.Filename, &r.Pinned); err != nil {
				return err
			}
			fn(r)
		}
		return rows.Err()
	})
	return Wrap("look up contents", "", err)
}

// inPages calls query for the ids, page by page, with the SQL "IN (?, ...)" and its arguments.
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

// ByFilename reads the row of exactly this name; fault.Unknown where there is none.
func (c *Catalog) ByFilename(ctx context.Context, name string) (Row, error) {
	row, err := scanRow(c.db.QueryRowContext(ctx, "SELECT "+rowColumns+" FROM contents WHERE filename = ?", name))
	if err == nil && row.Filename != name {
		row, err = Row{}, sql.ErrNoRows // the comparison in SQL ignores trailing spaces
	}
	return row, Wrap("look up file", name, err)
}

// List reads rows with ids above after, ascending, limit at most; of one level, or of all where level is "".
func (c *Catalog) List(ctx context.Context, level string, after item.ID, limit int) ([]Row, error) {
	where, args := "WHERE cid > ? ORDER BY cid LIMIT ?", []any{after, limit}
	if level != "" {
		where, args = "WHERE content_level = ? AND "+where[len("WHERE "):], append([]any{level}, args...)
	}
	rows, err := c.rows(ctx, where, args...)
	return rows, Wrap("list contents", level, err)
}

// Each calls fn for every row, ascending by id, and stops at its first error, which it returns as it is. It reads
// pages: fn may take its time, and rows may change meanwhile.
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

// History reads a content's relocations, newest first, limit at most, with row ids below before; 0 starts at the
// newest. The history outlives its content: an unknown one without history has an empty one.
func (c *Catalog) History(ctx context.Context, id item.ID, before int64, limit int) ([]History, error) {
	const op = "read the history of content"
	if before == 0 {
		before = math.MaxInt64
	}
	rows, err := c.db.QueryContext(ctx, "SELECT "+historyColumns+
		" FROM update_history WHERE cid = ? AND id < ? ORDER BY id DESC LIMIT ?", id, before, limit)
	if err != nil {
		return nil, Wrap(op, id.String(), err)
	}
	defer rows.Close()
	var hs []History
	for rows.Next() {
		var h History
		var us int64
		if err := rows.Scan(&h.ID, &h.EventID, &h.CID, &h.OldLevel, &h.NewLevel, &h.PrevUpdateTime, &h.UpdateTime,
			&h.ViewCount, &h.Bytes, &us, &h.WorkerID); err != nil {
			return nil, Wrap(op, id.String(), err)
		}
		h.Duration = time.Duration(us) * time.Microsecond
		hs = append(hs, h)
	}
	return hs, Wrap(op, id.String(), rows.Err())
}

// Levels reads the level table as it is, ascending by Min; it need not be a valid policy.
func (c *Catalog) Levels(ctx context.Context) ([]policy.Level, error) {
	const op, subject = "read", "the level table"
	rows, err := c.db.QueryContext(ctx, "SELECT content_level, "+levelColumns+" FROM `level` ORDER BY min_counts, content_level")
	if err != nil {
		return nil, Wrap(op, subject, err)
	}
	defer rows.Close()
	var levels []policy.Level
	for rows.Next() {
		var l policy.Level
		var top sql.NullInt64
		if err := rows.Scan(&l.Name, &l.Min, &top, &l.Path, &l.TierID); err != nil {
			return nil, Wrap(op, subject, err)
		}
		l.Max = policy.Open
		if top.Valid {
			l.Max = top.Int64
		}
		levels = append(levels, l)
	}
	return levels, Wrap(op, subject, rows.Err())
}

// Policy reads the level table and validates it as a whole; where it is invalid, the error is
// fault.Unprocessable and names every problem.
func (c *Catalog) Policy(ctx context.Context) (policy.Policy, error) {
	levels, err := c.Levels(ctx)
	if err != nil {
		return policy.Policy{}, err
	}
	p, err := policy.New(levels)
	if err != nil {
		return policy.Policy{}, &fault.Error{Kind: fault.Unprocessable, Op: "use", Subject: "the level table", Err: err,
			Hint: "correct it with PUT /v1/levels or in SQL"}
	}
	return p, nil
}

func (c *Catalog) rows(ctx context.Context, where string, args ...any) ([]Row, error) {
	rows, err := c.db.QueryContext(ctx, "SELECT "+rowColumns+" FROM contents "+where, args...)
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
	if err := from.Scan(&r.ID, &r.Level, &r.Filename, &r.Generated, &r.Updated, &r.Generation, &r.ViewCount,
		&r.SizeBytes, &r.Digest, &pinned); err != nil {
		return Row{}, err
	}
	r.Pinned = pinned.String
	return r, nil
}
