package relocatortest

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/tierflow/tierflow/shared/entryid"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
)

// Committer plays the committer, one entry at a time, until the test ends. It is written from docs/design.md, not from the
// committer's code.
func (w *World) Committer() {
	w.T.Helper()
	w.consume("c1", stream.Options{Stream: w.Store.Keys().Relocated(), Group: state.GroupCommitter, Slots: slots,
		Handle: func(ds []*stream.Delivery) {
			for _, d := range ds {
				if err := w.commit(context.Background(), d); err != nil {
					w.T.Error(err)
				}
			}
		}})
}

func (w *World) commit(ctx context.Context, d *stream.Delivery) error {
	r, err := event.ParseRelocated(d.Values)
	if err != nil {
		return err
	}
	at := time.Now().UTC().Truncate(time.Microsecond)
	outcome := event.OutcomeCommitted
	var one int
	err = w.Catalog.DB().QueryRowContext(ctx, "SELECT 1 FROM update_history WHERE event_id = ?", r.EventID).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		outcome, err = w.commitRow(ctx, r, at)
	}
	if err != nil {
		return err
	}
	row, err := w.Catalog.Row(ctx, r.ID)
	if err != nil {
		return err
	}
	err = w.Store.Finish(ctx, []state.Finished{{EntryID: d.ID, RowLevel: row.Level, Event: event.Committed{
		EventID: r.EventID, ID: r.ID, From: r.From, To: r.To, Filename: r.Filename, Generation: r.Generation, Outcome: outcome,
		CommittedAt: at}}})[0]
	if err == nil {
		d.Settled()
	}
	return err
}

func (w *World) commitRow(ctx context.Context, r event.Relocated, at time.Time) (event.Outcome, error) {
	tx, err := w.Catalog.DB().BeginTx(ctx, nil)
	if err != nil {
		return "", err
	}
	defer func() { _ = tx.Rollback() }()
	var newest string
	err = tx.QueryRowContext(ctx, "SELECT count_entry FROM contents WHERE cid = ? FOR UPDATE", int64(r.ID)).Scan(&newest)
	if errors.Is(err, sql.ErrNoRows) || err == nil && entryid.Newer(newest, r.CountEntry) {
		return event.OutcomeSuperseded, nil
	}
	if err != nil {
		return "", err
	}
	res, err := tx.ExecContext(ctx, "UPDATE contents SET content_level = ?, update_time = ?, generation = generation + 1,"+
		" view_count = ?, count_entry = ? WHERE cid = ? AND generation = ?", r.To, at, int64(r.Count), r.CountEntry, int64(r.ID), r.Generation)
	if err != nil {
		return "", err
	}
	if n, err := res.RowsAffected(); err != nil || n != 1 {
		return event.OutcomeSuperseded, err
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO update_history (event_id, cid, old_level, new_level, prev_update_time,
		update_time, view_count, bytes, duration_us, worker_id) VALUES (?, ?, ?, ?, NOW(6), NOW(6), ?, ?, 0, 't')`,
		r.EventID, int64(r.ID), r.From, r.To, int64(r.Count), r.Bytes); err != nil {
		return "", err
	}
	return event.OutcomeCommitted, tx.Commit()
}
