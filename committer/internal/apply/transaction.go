package apply

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
)

// errMoved means that a row changed while this transaction had it locked. A server that locks rows lets this never happen.
var errMoved = errors.New("a locked row was changed by another transaction")

// errRecorded means that update_history has an event, although its row looks as if the event had not been committed.
var errRecorded = errors.New("an event is in update_history")

// transact decides and writes one batch. The statements are few and have one shape whatever the batch: one or two to read,
// one to change contents, one to write history. They use only SQL that MySQL, MariaDB and go-mysql-server share.
//
// An event whose row is as the relocator saw it was most often not committed before. So update_history is read only where a
// row has changed, or where the unique key of update_history refuses an event.
func (a *Applier) transact(ctx context.Context, entries []event.Relocated) ([]Result, error) {
	results, err := a.transaction(ctx, entries, false)
	if errors.Is(err, errRecorded) {
		return a.transaction(ctx, entries, true)
	}
	return results, err
}

// transaction locks rows before it reads update_history. If it read first, it could miss a commit that the lock then waits
// for, and call a committed entry superseded. A catalog's sessions are READ COMMITTED: each statement sees what was
// committed when it began, and locks only the rows that it finds, no gaps (MySQL manual, "Transaction Isolation Levels").
func (a *Applier) transaction(ctx context.Context, entries []event.Relocated, history bool) ([]Result, error) {
	tx, err := a.db.BeginTx(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback() }() // does nothing after Commit; the first error has said what is wrong
	rows, err := lock(ctx, tx, entries)
	if err != nil {
		return nil, err
	}
	records := map[string]record{}
	history = history || !asSeen(entries, rows)
	if history {
		if records, err = recorded(ctx, tx, entries); err != nil {
			return nil, err
		}
	}
	at := time.Now().UTC().Truncate(time.Microsecond)
	results, moves := decide(entries, rows, records, at)
	if len(moves) == 0 {
		return results, nil
	}
	if err := update(ctx, tx, moves, at); err != nil {
		return nil, err
	}
	err = writeHistory(ctx, tx, moves, at)
	if !history && catalog.Kind(err) == fault.Conflict {
		return nil, errRecorded
	}
	if err != nil {
		return nil, err
	}
	return results, tx.Commit()
}

// lock reads and locks the rows of the entries in the order of the primary key: whoever locks more than one row uses this
// order. It does not wait for a row that another transaction has locked, because one such row would hold up all others.
func lock(ctx context.Context, tx *sql.Tx, entries []event.Relocated) (map[item.ID]*row, error) {
	wanted := map[item.ID]bool{}
	for _, e := range entries {
		wanted[e.ID] = true
	}
	found := make(map[item.ID]*row, len(wanted))
	ids := slices.Sorted(maps.Keys(wanted))
	rows, err := tx.QueryContext(ctx, "SELECT cid, content_level, filename, generation, update_time, count_entry FROM contents"+
		" WHERE cid IN ("+placeholders("?", len(ids))+") ORDER BY cid FOR UPDATE SKIP LOCKED", args(ids)...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id item.ID
		var r row
		if err := rows.Scan(&id, &r.level, &r.filename, &r.generation, &r.updated, &r.countEntry); err != nil {
			return nil, err
		}
		found[id] = &r
		delete(wanted, id)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	if len(wanted) == 0 {
		return found, nil
	}
	// A row that was not found is locked, or does not exist.
	ids = slices.Sorted(maps.Keys(wanted))
	skipped, err := tx.QueryContext(ctx, "SELECT cid FROM contents WHERE cid IN ("+placeholders("?", len(ids))+")", args(ids)...)
	if err != nil {
		return nil, err
	}
	defer skipped.Close()
	for skipped.Next() {
		var id item.ID
		if err := skipped.Scan(&id); err != nil {
			return nil, err
		}
		found[id] = &row{locked: true}
	}
	return found, skipped.Err()
}

// recorded reads the history of the entries' events.
func recorded(ctx context.Context, tx *sql.Tx, entries []event.Relocated) (map[string]record, error) {
	ids := make([]string, len(entries))
	for i, e := range entries {
		ids[i] = e.EventID
	}
	rows, err := tx.QueryContext(ctx, "SELECT event_id, cid, new_level, update_time FROM update_history"+
		" WHERE event_id IN ("+placeholders("?", len(ids))+")", args(ids)...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	records := map[string]record{}
	for rows.Next() {
		var eventID string
		var r record
		if err := rows.Scan(&eventID, &r.id, &r.level, &r.at); err != nil {
			return nil, err
		}
		records[eventID] = r
	}
	return records, rows.Err()
}

// maxUpdates is how many rows one statement changes. The server finds the values of a row by going through those of the
// other rows, so the cost of a statement grows with the square of its rows.
const maxUpdates = 100

// update changes the rows of all moves. A foreign key makes sure that the level exists.
func update(ctx context.Context, tx *sql.Tx, moves []move, at time.Time) error {
	for part := range slices.Chunk(moves, maxUpdates) {
		s := updateStatement(part, at)
		res, err := tx.ExecContext(ctx, s.text.String(), s.args...)
		if err != nil {
			return err
		}
		n, err := res.RowsAffected()
		if err == nil && n != int64(len(part)) {
			err = fmt.Errorf("%w: %d of %d are as they were", errMoved, n, len(part))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func updateStatement(moves []move, at time.Time) *statement {
	var s statement
	s.add("UPDATE contents SET generation = generation + 1, update_time = ?", at)
	s.choose("content_level", moves, func(m move) any { return m.To })
	s.choose("view_count", moves, func(m move) any { return m.Count })
	dated := slices.DeleteFunc(slices.Clone(moves), func(m move) bool { return m.CountEntry == "" })
	s.choose("count_entry", dated, func(m move) any { return m.CountEntry })
	s.choose("size_bytes", moves, func(m move) any { return m.Bytes })
	// A link or a clone reads no bytes, so the digest stays as it is.
	digested := slices.DeleteFunc(slices.Clone(moves), func(m move) bool { return m.Digest == "" })
	s.choose("digest", digested, func(m move) any { return m.Digest })
	s.add(" WHERE cid IN (" + placeholders("?", len(moves)) + ")")
	for _, m := range moves {
		s.args = append(s.args, m.ID)
	}
	s.add(" AND (cid, generation) IN (" + placeholders("(?, ?)", len(moves)) + ")")
	for _, m := range moves {
		s.args = append(s.args, m.ID, m.Generation)
	}
	return &s
}

// writeHistory writes the history of all moves. An event has one row. A second move of the same event begins where the first
// one ended, so it is added to the event's row.
func writeHistory(ctx context.Context, tx *sql.Tx, moves []move, at time.Time) error {
	var s statement
	rows := 0
	for _, m := range moves {
		duration := max(0, m.FinishedAt.Sub(m.StartedAt).Microseconds()) // the relocator's clock may have been set back
		if m.recorded {
			if _, err := tx.ExecContext(ctx, "UPDATE update_history SET new_level = ?, update_time = ?, view_count = ?,"+
				" bytes = bytes + ?, duration_us = duration_us + ?, worker_id = ?, reason = ? WHERE event_id = ?",
				m.To, at, m.Count, m.Bytes, duration, m.WorkerID, m.Rule, m.EventID); err != nil {
				return err
			}
			continue
		}
		rows++
		s.args = append(s.args, m.EventID, m.ID, m.From, m.To, m.prevUpdate, at, m.Count, m.Bytes, duration, m.WorkerID, m.Rule)
	}
	if rows == 0 {
		return nil
	}
	_, err := tx.ExecContext(ctx, "INSERT INTO update_history (event_id, cid, old_level, new_level, prev_update_time,"+
		" update_time, view_count, bytes, duration_us, worker_id, reason) VALUES "+placeholders("("+placeholders("?", 11)+")", rows), s.args...)
	return err
}

// statement is SQL text with its arguments.
type statement struct {
	text strings.Builder
	args []any
}

func (s *statement) add(text string, args ...any) {
	s.text.WriteString(text)
	s.args = append(s.args, args...)
}

// choose sets a column to its value for each move. Rows of other moves keep theirs.
func (s *statement) choose(column string, moves []move, value func(move) any) {
	if len(moves) == 0 {
		return
	}
	s.add(", " + column + " = CASE cid")
	for _, m := range moves {
		s.add(" WHEN ? THEN ?", m.ID, value(m))
	}
	s.add(" ELSE " + column + " END")
}

// placeholders repeats a group of placeholders, n times.
func placeholders(group string, n int) string { return strings.Repeat(group+", ", n-1) + group }

func args[T any](vs []T) []any {
	as := make([]any, len(vs))
	for i, v := range vs {
		as[i] = v
	}
	return as
}
