// Package registry is what only the api writes to MySQL: which contents there are, their pins, and the levels.
// The place of a content is the committer's alone.
package registry

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
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
	db    *sql.DB
	store *state.Store
	log   *zap.Logger
}

// New makes a Registry from the pool of a catalog and a store. The store's lease must be at least ForgetLease, and its client
// must not retry.
func New(db *sql.DB, store *state.Store, log *zap.Logger) *Registry { return &Registry{db, store, log} }

// Locks of a database; part of the names that GET_LOCK takes.
const (
	lockItems  = "contents"
	lockLevels = "levels"
	lockChange = "appraisal"
)

// lockWait is how long one registration waits for others; unlockTimeout bounds the way out.
const (
	lockWait      = 5 * time.Second
	unlockTimeout = 2 * time.Second
)

// Register adds a content, on the level whose range starts at 0 where level is "". fault.Conflict: the cid or the
// filename is taken, or one filename is a path prefix of another, which would make a content lie inside another.
func (r *Registry) Register(ctx context.Context, id item.ID, filename, level string) error {
	if err := item.CheckFilename(filename); err != nil {
		return fault.New(fault.Unprocessable, "register content", id.String(), err)
	}
	return r.locked(ctx, lockItems, lockWait, func(conn *sql.Conn) error {
		where, args := "min_counts = 0", []any{}
		if level != "" {
			where, args = "content_level = ?", append(args, level)
		}
		var on string
		err := conn.QueryRowContext(ctx, "SELECT content_level FROM `level` WHERE "+where, args...).Scan(&on)
		if errors.Is(err, sql.ErrNoRows) {
			return fault.New(fault.Unprocessable, "register content", id.String(), noLevel(level))
		} else if err != nil {
			return catalog.Wrap("register content", id.String(), err)
		}
		if level != "" && on != level { // as for Pin
			return fault.New(fault.Unprocessable, "register content", id.String(), noLevel(level))
		}
		if err := r.free(ctx, conn, id, filename); err != nil {
			return err
		}
		_, err = conn.ExecContext(ctx, "INSERT INTO contents (cid, content_level, filename) VALUES (?, ?, ?)", id, on, filename)
		return catalog.Wrap("register content", id.String(), err)
	})
}

func noLevel(name string) error {
	if name == "" {
		return errors.New("there is no level that starts at 0: set the levels first")
	}
	return fmt.Errorf("there is no level %q", name)
}

// free tells whether cid and filename can be taken. The lock makes sure that they still can when they are.
func (r *Registry) free(ctx context.Context, conn *sql.Conn, id item.ID, filename string) error {
	names := []any{filename}
	for i, c := range filename {
		if c == '/' {
			names = append(names, filename[:i])
		}
	}
	// What lies below filename/ sorts from there to before the byte that follows the slash. MySQL compares a shorter text as if
	// spaces followed, which come after control characters: hence the NUL, which is in no name. Other servers do not.
	next := filename + "0"
	args := append([]any{id}, names...)
	args = append(args, filename+"/\x00", next+"\x00", next)
	var otherID item.ID
	var other string
	// Three selects and no OR: each takes its own index, however many contents there are.
	err := conn.QueryRowContext(ctx, "SELECT cid, filename FROM contents WHERE cid = ? "+
		"UNION ALL SELECT cid, filename FROM contents WHERE filename IN (?"+strings.Repeat(", ?", len(names)-1)+") "+
		"UNION ALL SELECT cid, filename FROM contents WHERE filename >= ? AND filename < ? AND filename <> ? LIMIT 1",
		args...).Scan(&otherID, &other)
	conflict := func(format string, a ...any) error {
		return fault.New(fault.Conflict, "register content", id.String(), fmt.Errorf(format, a...))
	}
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil
	case err != nil:
		return catalog.Wrap("register content", id.String(), err)
	case otherID == id:
		return conflict("cid %d is taken, by %q", id, other)
	case other == filename:
		return conflict("filename %q is taken, by content %d", filename, otherID)
	case len(other) < len(filename):
		return conflict("%q lies inside %q, which is content %d", filename, other, otherID)
	}
	return conflict("%q, which is content %d, would lie inside %q", other, otherID, filename)
}

// Pin holds a content on a level; "" lets it go. fault.Unknown where there is no such content, fault.Unprocessable
// where there is no such level.
func (r *Registry) Pin(ctx context.Context, id item.ID, level string) error {
	if level != "" {
		var name string
		err := r.db.QueryRowContext(ctx, "SELECT content_level FROM `level` WHERE content_level = ?", level).Scan(&name)
		switch {
		case err != nil && !errors.Is(err, sql.ErrNoRows):
			return catalog.Wrap("pin content", id.String(), err)
		case name != level: // MySQL takes "gold " for gold, here and in the foreign key, and nobody else does
			return fault.New(fault.Unprocessable, "pin content", id.String(), noLevel(level))
		}
	}
	res, err := r.db.ExecContext(ctx, "UPDATE contents SET pinned_level = ? WHERE cid = ?", sql.NullString{String: level, Valid: level != ""}, id)
	if catalog.Kind(err) == fault.Unprocessable { // it has gone since
		return fault.New(fault.Unprocessable, "pin content", id.String(), noLevel(level))
	}
	return oneRow(res, "pin content", id, err)
}

// oneRow makes the error of a statement on one item's row; fault.Unknown where it has found none.
func oneRow(res sql.Result, op string, id item.ID, err error) error {
	if err != nil {
		return catalog.Wrap(op, id.String(), err)
	}
	if n, err := res.RowsAffected(); err != nil {
		return catalog.Wrap(op, id.String(), err)
	} else if n == 0 {
		return fault.New(fault.Unknown, op, id.String(), errors.New("there is no such content"))
	}
	return nil
}

// Location is the place of a content.
type Location struct {
	Level      string
	Path       string // absolute, of the file or folder
	Generation int64
	Filename   string
}

// Locate reads the place of a content now. fault.Unknown where there is no such content.
func (r *Registry) Locate(ctx context.Context, id item.ID) (Location, error) {
	var l Location
	var root string
	err := r.db.QueryRowContext(ctx, "SELECT l.content_level, l.path, c.filename, c.generation FROM contents c "+
		"JOIN `level` l ON l.content_level = c.content_level WHERE c.cid = ?", id).
		Scan(&l.Level, &root, &l.Filename, &l.Generation)
	if errors.Is(err, sql.ErrNoRows) {
		return Location{}, fault.New(fault.Unknown, "locate content", id.String(), errors.New("there is no such content"))
	}
	l.Path = root + "/" + l.Filename
	return l, catalog.Wrap("locate content", id.String(), err)
}

// Counts is the number of contents on each level. It reads an index as long as the table: give it a deadline.
func (r *Registry) Counts(ctx context.Context) (map[string]int64, error) {
	rows, err := r.db.QueryContext(ctx, "SELECT content_level, COUNT(*) FROM contents GROUP BY content_level")
	if err != nil {
		return nil, catalog.Wrap("count contents", "", err)
	}
	defer rows.Close()
	counts := map[string]int64{}
	for rows.Next() {
		var level string
		var n int64
		if err := rows.Scan(&level, &n); err != nil {
			return nil, catalog.Wrap("count contents", "", err)
		}
		counts[level] = n
	}
	return counts, catalog.Wrap("count contents", "", rows.Err())
}

// SetLevels replaces the levels, in one transaction, which also notes the change: see WithChange. A level that goes must
// not be used by a content, or it is fault.Conflict. tier ids stay as they are: they belong to `relocator init-tiers`.
func (r *Registry) SetLevels(ctx context.Context, p policy.Policy) error {
	return r.locked(ctx, lockLevels, lockWait, func(conn *sql.Conn) error {
		tx, err := conn.BeginTx(ctx, nil)
		if err != nil {
			return catalog.Wrap("set levels", "", err)
		}
		defer func() { _ = tx.Rollback() }() // after COMMIT it does nothing, and where it fails the session's end does it
		before, err := levels(ctx, tx)
		if err != nil {
			return err
		}
		if err := replace(ctx, tx, before, p); err != nil {
			return err
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
		top := sql.NullInt64{Int64: int64(l.Max), Valid: l.Max != policy.Open}
		var err error
		if named(l.Name) {
			err = exec(l.Name, "UPDATE `level` SET min_counts = ?, max_counts = ?, path = ? WHERE content_level = ?",
				l.Min, top, l.Path, l.Name)
		} else {
			err = exec(l.Name, "INSERT INTO `level` (content_level, min_counts, max_counts, path) VALUES (?, ?, ?, ?)",
				l.Name, l.Min, top, l.Path)
		}
		if err != nil {
			return err
		}
	}
	for _, l := range before {
		if _, stays := p.Level(l.Name); stays {
			continue
		}
		err := exec(l.Name, "DELETE FROM `level` WHERE content_level = ?", l.Name)
		if fault.Is(err, fault.Conflict) {
			return fault.New(fault.Conflict, "remove level", l.Name, errors.New("contents lie on it or are pinned to it: "+
				"give it a range that sends them elsewhere, wait until they have moved, and remove it then"))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// errHeld: another connection has kept the lock.
var errHeld = errors.New("others hold it")

// locked calls fn with a connection that holds a lock of this database, which it waits for: what fn finds stays so until it
// has written, as far as this program goes. The lock is the server's and goes with the connection.
func (r *Registry) locked(ctx context.Context, what string, wait time.Duration, fn func(*sql.Conn) error) error {
	conn, err := r.db.Conn(ctx)
	if err != nil {
		return catalog.Wrap("lock", what, err)
	}
	defer conn.Close()
	var database string
	if err := conn.QueryRowContext(ctx, "SELECT DATABASE()").Scan(&database); err != nil {
		return catalog.Wrap("lock", what, err)
	}
	// Names of locks are the server's and have 64 characters at most.
	name := fmt.Sprintf("tierflow:%s:%.16x", what, sha256.Sum256([]byte(database)))
	var got sql.NullInt64
	if err := conn.QueryRowContext(ctx, "SELECT GET_LOCK(?, ?)", name, int(wait.Seconds())).Scan(&got); err != nil {
		return catalog.Wrap("lock", what, err)
	}
	if got.Int64 != 1 {
		return fault.New(fault.Unavailable, "lock", what, fmt.Errorf("%w, for %s by now", errHeld, wait))
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unlockTimeout)
		defer cancel()
		// A connection that cannot be asked any more has lost its lock with its session.
		_, _ = conn.ExecContext(ctx, "SELECT RELEASE_LOCK(?)", name)
	}()
	return fn(conn)
}
