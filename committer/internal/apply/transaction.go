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

// errMoved means that a row was not as it had been locked. No server that keeps its word lets this happen.
var errMoved = errors.New("a locked row was changed by another transaction")

// errRecorded means that update_history has an event whose row is as if it had not been committed.
var errRecorded = errors.New("an event is in update_history")

// transact decides and writes one batch. The statements are few and of one shape whatever the batch: one or two to read,
// one to change contents, one to record. They use nothing that MySQL, MariaDB and go-mysql-server do not share.
//
// An event whose row is as the relocator saw it was most often not committed before, so update_history is only read where
// a row is not, or where its unique key has said so.
func (a *Applier) transact(ctx context.Context, entries []event.Relocated) ([]Result, error) {
	results, err := a.transaction(ctx, entries, false)
	if errors.Is(err, errRecorded) {
		return a.transaction(ctx, entries, true)
	}
	return results, err
}

// transaction locks rows before it reads update_history: who reads first could miss a commit that the lock then waits for,
// and call superseded what was committed. Under READ COMMITTED, which a catalog's sessions have, each statement sees what
// was committed when it began, and only rows that are found are locked, no gaps.
func (a *Applier) transaction(ctx context.Context, entries []event.Relocated, history bool) ([]Result, error) {
	tx, err := a.db.BeginTx(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback() }() // does nothing after Commit; what it could say, the first error has said
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
	err = journal(ctx, tx, moves, at)
	if !history && catalog.Kind(err) == fault.Conflict {
		return nil, errRecorded
	}
	if err != nil {
		return nil, err
	}
	return results, tx.Commit()
}

// lock reads and locks the rows of the entries, in the order of the primary key, as all who lock more than one do. It
// does not wait for a row that somebody else has locked: one such row would hold up all the others.
func lock(ctx context.Context, tx *sql.Tx, entries []event.Relocated) (map[item.ID]*row, error) {
	wanted := map[item.ID]bool{}
	for _, e := range entries {
		wanted[e.ID] = true
	}
	found := make(map[item.ID]*row, len(wanted))
	ids := slices.Sorted(maps.Keys(wanted))
	rows, err := tx.QueryContext(ctx, "SELECT cid, content_level, filename, generation, update_time FROM contents"+
		" WHERE cid IN ("+marks("?", len(ids))+") ORDER BY cid FOR UPDATE SKIP LOCKED", args(ids)...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id item.ID
		var r row
		if err := rows.Scan(&id, &r.level, &r.filename, &r.generation, &r.updated); err != nil {
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
	// What was not found is locked, or not there.
	ids = slices.Sorted(maps.Keys(wanted))
	skipped, err := tx.QueryContext(ctx, "SELECT cid FROM contents WHERE cid IN ("+marks("?", len(ids))+")", args(ids)...)
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

// recorded reads what update_history has of the entries' events.
func recorded(ctx context.Context, tx *sql.Tx, entries []event.Relocated) (map[string]record, error) {
	ids := make([]string, len(entries))
	for i, e := range entries {
		ids[i] = e.EventID
	}
	rows, err := tx.QueryContext(ctx, "SELECT event_id, cid, new_level, update_time FROM update_history"+
		" WHERE event_id IN ("+marks("?", len(ids))+")", args(ids)...)
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

// updateMost is how many rows one statement changes. The server finds a row's values by going through those of the
// others: what a statement costs grows with the square of its rows.
const updateMost = 100

// update changes the rows of all moves. That the level exists, a foreign key guards.
func update(ctx context.Context, tx *sql.Tx, moves []move, at time.Time) error {
	for part := range slices.Chunk(moves, updateMost) {
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
	s.choose("size_bytes", moves, func(m move) any { return m.Bytes })
	// A link or a clone reads no bytes: what is known of them stays.
	digested := slices.DeleteFunc(slices.Clone(moves), func(m move) bool { return m.Digest == "" })
	s.choose("digest", digested, func(m move) any { return m.Digest })
	s.add(" WHERE cid IN (" + marks("?", len(moves)) + ")")
	for _, m := range moves {
		s.args = append(s.args, m.ID)
	}
	s.add(" AND (cid, generation) IN (" + marks("(?, ?)", len(moves)) + ")")
	for _, m := range moves {
		s.args = append(s.args, m.ID, m.Generation)
	}
	return &s
}

// journal writes the history of all moves. An event has one row: a second move of the same event goes on where
// the first one ended, and is added to its row.
func journal(ctx context.Context, tx *sql.Tx, moves []move, at time.Time) error {
	var s statement
	rows := 0
	for _, m := range moves {
		duration := max(0, m.FinishedAt.Sub(m.StartedAt).Microseconds()) // the relocator's clock may have been set back
		if m.recorded {
			if _, err := tx.ExecContext(ctx, "UPDATE update_history SET new_level = ?, update_time = ?, view_count = ?,"+
				" bytes = bytes + ?, duration_us = duration_us + ?, worker_id = ? WHERE event_id = ?",
				m.To, at, m.Count, m.Bytes, duration, m.WorkerID, m.EventID); err != nil {
				return err
			}
			continue
		}
		rows++
		s.args = append(s.args, m.EventID, m.ID, m.From, m.To, m.prevUpdate, at, m.Count, m.Bytes, duration, m.WorkerID)
	}
	if rows == 0 {
		return nil
	}
	_, err := tx.ExecContext(ctx, "INSERT INTO update_history (event_id, cid, old_level, new_level, prev_update_time,"+
		" update_time, view_count, bytes, duration_us, worker_id) VALUES "+marks("("+marks("?", 10)+")", rows), s.args...)
	return err
}

// statement grows with its arguments.
type statement struct {
	text strings.Builder
	args []any
}

func (s *statement) add(text string, args ...any) {
	s.text.WriteString(text)
	s.args = append(s.args, args...)
}

// choose assigns a column its value for each move; rows of other moves keep theirs.
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

// marks repeats a group of placeholders, n times.
func marks(group string, n int) string { return strings.Repeat(group+", ", n-1) + group }

func args[T any](vs []T) []any {
	as := make([]any, len(vs))
	for i, v := range vs {
		as[i] = v
	}
	return as
}
