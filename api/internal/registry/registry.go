// Package registry does the api's writes to MySQL: which items exist, their pins, and the levels. Only the committer changes
// the level of an item. Package catalog has the table of who writes which column.
package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
)

// Registry writes. Its errors are fault errors.
type Registry struct {
	catalog *catalog.Catalog
	db      *sql.DB // the catalog's pool
	store   *state.Store
	log     *zap.Logger
}

// New makes a Registry. The store's lease must be at least ForgetLease, and its client must not retry.
func New(c *catalog.Catalog, store *state.Store, log *zap.Logger) *Registry {
	return &Registry{c, c.DB(), store, log}
}

// Locks of a database, beside catalog.LockItems.
const (
	lockLevels  = "levels"
	lockReviews = "reviews"
)

// lockWait is how long a registration or a change of levels waits for others.
const lockWait = 5 * time.Second

// Register adds an item to a level, or to the policy's lowest level where level is "". The error is fault.Conflict where the cid or
// the filename is taken, or where one filename is a path prefix of another: that item would lie inside the other. It is
// fault.Unprocessable where the filename is invalid, there is no such level, or level is "" and the table of levels is no valid
// policy.
func (r *Registry) Register(ctx context.Context, id item.ID, filename, level string) error {
	const op = "register item"
	if err := item.CheckFilename(filename); err != nil {
		return fault.New(fault.Unprocessable, op, id.String(), err)
	}
	if level == "" {
		// Read before the lock: the holder of the lock must not wait for a second connection of the pool.
		p, err := r.catalog.Policy(ctx)
		if err != nil {
			return err
		}
		level = p.Lowest().Name
	}
	return r.catalog.Locked(ctx, catalog.LockItems, lockWait, func(conn *sql.Conn) error {
		if err := levelExists(ctx, conn, op, id, level); err != nil {
			return err
		}
		conflicts, err := catalog.Conflicts(ctx, conn, []catalog.NewItem{{ID: id, Filename: filename}})
		if err != nil {
			return err
		}
		if conflicts[0] != nil {
			return fault.New(fault.Conflict, op, id.String(), errors.New(conflicts[0].Why))
		}
		_, err = conn.ExecContext(ctx, "INSERT INTO contents (cid, content_level, filename) VALUES (?, ?, ?)", id, level, filename)
		if catalog.Kind(err) == fault.Unprocessable { // somebody has removed the level since
			return noLevel(op, id, level)
		}
		return catalog.Wrap(op, id.String(), err)
	})
}

// levelExists returns fault.Unprocessable where no level has exactly this name. MySQL ignores trailing spaces, here and in
// the foreign key. No other part of Tierflow does.
func levelExists(ctx context.Context, q interface {
	QueryRowContext(context.Context, string, ...any) *sql.Row
}, op string, id item.ID, level string) error {
	var name string
	err := q.QueryRowContext(ctx, "SELECT content_level FROM `level` WHERE content_level = ?", level).Scan(&name)
	switch {
	case err != nil && !errors.Is(err, sql.ErrNoRows):
		return catalog.Wrap(op, id.String(), err)
	case name != level:
		return noLevel(op, id, level)
	}
	return nil
}

func noLevel(op string, id item.ID, level string) error {
	return fault.New(fault.Unprocessable, op, id.String(), fmt.Errorf("there is no level %q", level))
}

// Pin pins an item; the zero pin removes its pin. The caller posts the item's last count again. Where it cannot, or
// is killed before, the item's review does so a minute later. The error is fault.Unknown where there is no such item, and
// fault.Unprocessable where there is no such level, or where it is draining.
func (r *Registry) Pin(ctx context.Context, id item.ID, pin policy.Pin) error {
	const op = "pin item"
	level := sql.NullString{String: pin.Level, Valid: pin != policy.Pin{}}
	if level.Valid {
		if err := levelExists(ctx, r.db, op, id, pin.Level); err != nil {
			return err
		}
		p, err := r.catalog.Policy(ctx)
		if err != nil {
			return err
		}
		if l, _ := p.Level(pin.Level); l.State == policy.Draining {
			return fault.New(fault.Unprocessable, op, id.String(), fmt.Errorf("level %q is draining: it gives everything away", l.Name))
		}
	}
	res, err := r.db.ExecContext(ctx, "UPDATE contents SET pinned_level = ?, pinned_until = ?, review_at = "+claimEnds+" WHERE cid = ?",
		level, sql.NullTime{Time: pin.Until, Valid: !pin.Until.IsZero()}, id)
	if catalog.Kind(err) == fault.Unprocessable { // somebody has removed the level since
		return noLevel(op, id, pin.Level)
	}
	return oneRow(res, op, id, err)
}

// Draining returns one error for each level that is to drain and has items pinned to it: the pins would keep them there.
func (r *Registry) Draining(ctx context.Context, levels []policy.Level) (problems []error, err error) {
	for _, l := range levels {
		if l.State != policy.Draining {
			continue
		}
		var n int64
		err := r.db.QueryRowContext(ctx, "SELECT COUNT(*) FROM contents WHERE pinned_level = ? AND (pinned_until IS NULL OR"+
			" pinned_until > UTC_TIMESTAMP(6))", l.Name).Scan(&n)
		if err != nil {
			return nil, catalog.Wrap("count pins to level", l.Name, err)
		}
		if n > 0 {
			problems = append(problems, fmt.Errorf("level %q: it cannot drain while %d items are pinned to it", l.Name, n))
		}
	}
	return problems, nil
}

// oneRow returns the error of a statement on one item's row. It is fault.Unknown where the statement has found no row.
func oneRow(res sql.Result, op string, id item.ID, err error) error {
	if err != nil {
		return catalog.Wrap(op, id.String(), err)
	}
	if n, err := res.RowsAffected(); err != nil {
		return catalog.Wrap(op, id.String(), err)
	} else if n == 0 {
		return fault.New(fault.Unknown, op, id.String(), errors.New("there is no such item"))
	}
	return nil
}

// Location is where an item's file lies.
type Location struct {
	Level      string
	Path       string // absolute, of the file or folder
	Generation int64
	Filename   string
}

// Locate reads where an item's file lies now. The error is fault.Unknown where there is no such item.
func (r *Registry) Locate(ctx context.Context, id item.ID) (Location, error) {
	var l Location
	var root string
	err := r.db.QueryRowContext(ctx, "SELECT l.content_level, l.path, c.filename, c.generation FROM contents c "+
		"JOIN `level` l ON l.content_level = c.content_level WHERE c.cid = ?", id).
		Scan(&l.Level, &root, &l.Filename, &l.Generation)
	if errors.Is(err, sql.ErrNoRows) {
		return Location{}, fault.New(fault.Unknown, "locate item", id.String(), errors.New("there is no such item"))
	}
	l.Path = root + "/" + l.Filename
	return l, catalog.Wrap("locate item", id.String(), err)
}

// Counts returns the number of items on each level; a level without items is not in the map. It reads a whole index: give ctx a
// deadline.
func (r *Registry) Counts(ctx context.Context) (map[string]int64, error) {
	rows, err := r.db.QueryContext(ctx, "SELECT content_level, COUNT(*) FROM contents GROUP BY content_level")
	if err != nil {
		return nil, catalog.Wrap("count items", "", err)
	}
	defer rows.Close()
	counts := map[string]int64{}
	for rows.Next() {
		var level string
		var n int64
		if err := rows.Scan(&level, &n); err != nil {
			return nil, catalog.Wrap("count items", "", err)
		}
		counts[level] = n
	}
	return counts, catalog.Wrap("count items", "", rows.Err())
}

// SetLevels replaces the levels in one transaction, which also records the change for WithReviews. The error is fault.Conflict
// where an item lies on, or is pinned to, a level that p does not have. Tier ids stay: `relocator init-tiers` writes them.
func (r *Registry) SetLevels(ctx context.Context, p policy.Policy) error {
	return r.catalog.Locked(ctx, lockLevels, lockWait, func(conn *sql.Conn) error {
		tx, err := conn.BeginTx(ctx, nil)
		if err != nil {
			return catalog.Wrap("set levels", "", err)
		}
		defer func() { _ = tx.Rollback() }() // does nothing after Commit; where Rollback fails, MySQL ends the session and rolls back
		before, err := levels(ctx, tx)
		if err != nil {
			return err
		}
		if err := replace(ctx, tx, before, p); err != nil {
			return err
		}
		mode := catalog.ModeEnforce
		if p.Observes() {
			mode = catalog.ModeObserve
		}
		if _, err := tx.ExecContext(ctx, "INSERT INTO policy (id, mode) VALUES (1, ?) ON DUPLICATE KEY UPDATE mode = ?", mode, mode); err != nil {
			return catalog.Wrap("set the mode of", "the policy", err)
		}
		if err := recordChange(ctx, tx, before); err != nil {
			return err
		}
		return catalog.Wrap("set levels", "", tx.Commit())
	})
}

func levels(ctx context.Context, tx *sql.Tx) ([]policy.Level, error) {
	rows, err := tx.QueryContext(ctx, "SELECT content_level, min_counts, COALESCE(max_counts, ?) FROM `level`", policy.Open)
	if err != nil {
		return nil, catalog.Wrap("read levels", "", err)
	}
	defer rows.Close()
	var ls []policy.Level
	for rows.Next() {
		var l policy.Level
		if err := rows.Scan(&l.Name, &l.Min, &l.Max); err != nil {
			return nil, catalog.Wrap("read levels", "", err)
		}
		ls = append(ls, l)
	}
	return ls, catalog.Wrap("read levels", "", rows.Err())
}

func replace(ctx context.Context, tx *sql.Tx, before []policy.Level, p policy.Policy) error {
	exec := func(level, statement string, args ...any) error {
		_, err := tx.ExecContext(ctx, statement, args...)
		return catalog.Wrap("set level", level, err)
	}
	named := func(name string) bool {
		return slices.ContainsFunc(before, func(l policy.Level) bool { return l.Name == name })
	}
	for _, l := range p.Levels() {
		top := sql.NullInt64{Int64: l.Max, Valid: l.Max != policy.Open}
		demote := sql.NullInt64{Int64: l.Demote.Count, Valid: l.Demote.Set}
		residency, state := int64(l.MinResidency/time.Second), l.State.String()
		var err error
		if named(l.Name) {
			err = exec(l.Name, "UPDATE `level` SET min_counts = ?, max_counts = ?, path = ?, demote_counts = ?, min_residency = ?, state = ?"+
				" WHERE content_level = ?", l.Min, top, l.Path, demote, residency, state, l.Name)
		} else {
			err = exec(l.Name, "INSERT INTO `level` (content_level, min_counts, max_counts, path, demote_counts, min_residency, state)"+
				" VALUES (?, ?, ?, ?, ?, ?, ?)", l.Name, l.Min, top, l.Path, demote, residency, state)
		}
		if err != nil {
			return err
		}
	}
	for _, l := range before {
		if _, stays := p.Level(l.Name); stays {
			continue
		}
		err := exec(l.Name, "UPDATE contents SET pinned_level = NULL, pinned_until = NULL WHERE pinned_level = ?"+
			" AND pinned_until <= UTC_TIMESTAMP(6)", l.Name) // pins that have ended
		if err == nil {
			err = exec(l.Name, "DELETE FROM `level` WHERE content_level = ?", l.Name)
		}
		if fault.Is(err, fault.Conflict) {
			return fault.New(fault.Conflict, "remove level", l.Name, errors.New("items lie on it or are pinned to it: "+
				"give it a range that sends them elsewhere, wait until they have moved, and remove it then"))
		}
		if err != nil {
			return err
		}
	}
	return nil
}
